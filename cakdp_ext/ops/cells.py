"""Boxes divided into cells: which points each cell holds, and what their features have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_float, as_index, check_alike, check_same_device
from cakdp_ext.ops.neighbors import Neighbors, as_limit, as_neighbors
from cakdp_ext.ops.reference import cells as reference

PoolMode = Literal["max", "avg"]


@dataclass(frozen=True)
class Cells:
    """The points of M boxes that are divided into ``X * Y * Z`` cells.

    Attributes:
        first: ``(M, X, Y, Z)`` int64, where the points of each cell begin in ``members``.
        count: ``(M, X, Y, Z)`` int64, how many of them count.
        members: ``(T,)`` int64 rows of the points, cell after cell, ascending within a cell.
    """

    first: Tensor
    count: Tensor
    members: Tensor

    def table(self, width: int) -> Tensor:
        """Lay the points out densely.

        Args:
            width: most points of a cell.

        Returns:
            ``(M, X, Y, Z, 1 + width)`` int64: how many points are listed, at most ``width``, then their rows, then 0.
        """
        slot = torch.arange(width, device=self.first.device)
        count = self.count.clamp(max=width).unsqueeze(-1)
        if len(self.members) == 0:
            return count.new_zeros(*self.first.shape, 1 + width)
        place = (self.first.unsqueeze(-1) + slot).clamp(max=len(self.members) - 1)
        rows = self.members[place].masked_fill_(slot >= count, 0)
        return torch.cat((count, rows), dim=-1)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """List every point that counts beside the cell that it counts in.

        Returns:
            ``(P,)`` int64 rows of the points and ``(P,)`` int64 cells, numbered through all boxes, ascending. On CUDA,
            P is read on the host.
        """
        count = self.count.flatten()
        cell = torch.arange(len(count), device=count.device).repeat_interleave(count)
        rank = torch.arange(len(cell), device=count.device) - (count.cumsum(0) - count)[cell]
        return self.members[self.first.flatten()[cell] + rank], cell


@torch.no_grad()
def group_by_cell(
    points: Tensor, boxes: Tensor, neighbors: Neighbors, num_cells: tuple[int, int, int], max_points: int | None = None
) -> Cells:
    """Divide boxes into equal cells along their own axes, and list the points of each cell.

    A point lies in cell ``floor(offset / cell size)`` along each axis, its offset measured from the box's lower face;
    one on the upper face, or beyond the box, counts to the outermost cell.

    Args:
        points: ``(N, 3)`` metres.
        boxes: ``(M, 7)`` metres and radians; same device and dtype.
        neighbors: the points of each box.
        num_cells: ``(X, Y, Z)``.
        max_points: let only the first so many points of a cell count; None for all.

    Returns:
        The cells.

    Raises:
        ValueError: for another shape, dtype or device, a number that cannot be, or, on CPU, lists that reach beyond
            their rows (on CUDA those are ignored).
    """
    points, boxes = as_float(points, "points", (None, 3)), as_float(boxes, "boxes", (None, 7))
    check_alike(points, boxes, ("points", "boxes"))
    lists = as_neighbors(neighbors, len(boxes), points, "points")
    limit = as_limit(max_points, "max_points")
    shape = as_num_cells(num_cells, "num_cells")
    run = native.implementation("group_by_cell", points.device) or reference.group_by_cell
    first, count, members = run(points, boxes, lists.start, lists.length, lists.index, shape)
    if limit >= 0:
        count = count.clamp(max=limit)
    return Cells(first.view(-1, *shape), count.view(-1, *shape), members)


def pool_cells(features: Tensor, cells: Cells, mode: PoolMode) -> tuple[Tensor, Tensor | None]:
    """Pool the features of each cell's points; the gradient flows to the features.

    A maximum sends its gradient to the first point that has it; NaN counts as the largest value. On CUDA the backward
    pass adds in no fixed order; everywhere else results do not depend on the number of threads.

    Args:
        features: ``(N, C)`` of the points.
        cells: the cells, on the same device.
        mode: ``max`` or ``avg``.

    Returns:
        pooled ``(M, X, Y, Z, C)``, 0 in empty cells; and for ``max`` the winning rows ``(M, X, Y, Z, C)`` int64, -1 in
        empty cells, else None.

    Raises:
        ValueError: for another shape, dtype or device, another mode, or, on CPU, cells that reach beyond their rows.
    """
    features = as_float(features, "features", (None, None))
    shape = (*cells.first.shape, features.shape[1])
    first, count = as_index(cells.first.flatten(), "first", (None,)), as_index(cells.count.flatten(), "count", (None,))
    members = as_index(cells.members, "members", (None,))
    check_same_device(features, members, ("features", "members"))
    if mode == "avg":
        run = native.implementation("pool_cells_mean", features.device) or reference.pool_cells_mean
        return run(features, first, count, members).view(shape), None
    if mode != "max":
        raise ValueError(f"mode must be 'max' or 'avg', got {mode!r}")
    run = native.implementation("pool_cells_max", features.device) or reference.pool_cells_max
    pooled, winner = run(features, first, count, members)
    return pooled.view(shape), winner.view(shape)


def as_num_cells(num_cells: int | tuple[int, int, int], name: str) -> tuple[int, int, int]:
    """Return three positive numbers of cells, the same one three times for a single number."""
    numbers = (num_cells,) * 3 if isinstance(num_cells, int) else tuple(map(int, num_cells))
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"{name} must be three positive numbers of cells, got {num_cells}")
    return numbers
