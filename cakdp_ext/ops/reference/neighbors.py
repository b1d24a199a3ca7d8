"""Which points lie in a part of space, every point tried for every region."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cakdp_ext.ops.reference.points import boxes_hold
from cakdp_ext.ops.reference.stacked import blocks_of_pairs, squared_distances

Lists = tuple[Tensor, Tensor, Tensor]


def neighbors_in_boxes(
    points: Tensor, point_counts: Tensor, boxes: Tensor, box_counts: Tensor, max_points: int
) -> Lists:
    """List the points of its frame that each box holds, by their row.

    Args:
        points: ``(N, 3)``, frame after frame.
        point_counts: ``(B,)`` int64.
        boxes: ``(M, 7)``, frame after frame.
        box_counts: ``(B,)`` int64.
        max_points: so many of a box at most; negative for no limit.

    Returns:
        start ``(M,)``, length ``(M,)`` and index ``(T,)``, int64.
    """
    return _search(points, point_counts, boxes, box_counts, max_points, boxes_hold)


def neighbors_in_balls(
    points: Tensor, point_counts: Tensor, centers: Tensor, center_counts: Tensor, radius: float, max_points: int
) -> Lists:
    """List the points of its frame within a radius of each centre; otherwise as :func:`neighbors_in_boxes`.

    Args:
        points: ``(N, 3)``.
        point_counts: ``(B,)``.
        centers: ``(M, 3)``.
        center_counts: ``(B,)``.
        radius: metres; a point exactly that far still counts.
        max_points: so many of a ball at most.

    Returns:
        start ``(M,)``, length ``(M,)`` and index ``(T,)``, int64.
    """

    def balls_hold(middles: Tensor, cloud: Tensor) -> Tensor:
        return squared_distances(middles, cloud) <= radius * radius

    return _search(points, point_counts, centers, center_counts, max_points, balls_hold)


def three_nn_local(
    points: Tensor, centers: Tensor, start: Tensor, length: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Find, for every centre, the three nearest points of the list that goes with it.

    Args:
        points: ``(N, 3)``.
        centers: ``(M, G, 3)``.
        start: ``(M,)`` int64.
        length: ``(M,)`` int64.
        index: ``(T,)`` int64 rows of the points.

    Returns:
        distance_squared and index ``(M, G, 3)``, nearest first; infinity and -1 where a list has fewer points.
    """
    check_lists(start, length, index, len(points))
    distance_squared = centers.new_full(centers.shape, torch.inf)
    nearest = torch.full_like(distance_squared, -1, dtype=torch.int64)
    for m, (begin, count) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        rows = index[begin : begin + max(0, count)]
        distances = squared_distances(centers[m], points[rows]).nan_to_num(nan=torch.inf, posinf=torch.inf)
        distances, order = distances.sort(dim=1, stable=True)
        found = min(3, len(rows))
        distance_squared[m, :, :found] = distances[:, :found]
        nearest[m, :, :found] = rows[order[:, :found]].masked_fill(distances[:, :found].isinf(), -1)
    return distance_squared, nearest


def check_lists(start: Tensor, length: Tensor, index: Tensor, num_rows: int) -> None:
    """Raise ValueError where a list reaches beyond ``index``, or ``index`` beyond the rows."""
    reaches_out = (length > 0) & ((start < 0) | (start + length > len(index)))
    if bool(reaches_out.any()):
        raise ValueError(f"a list reaches beyond the {len(index)} rows that there are")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < num_rows:
        raise ValueError(f"a list holds row {int(index.min())} or {int(index.max())} of {num_rows}")


def _search(
    points: Tensor,
    point_counts: Tensor,
    regions: Tensor,
    region_counts: Tensor,
    max_points: int,
    hold: Callable[[Tensor, Tensor], Tensor],
) -> Lists:
    length = torch.zeros(len(regions), dtype=torch.int64, device=points.device)
    found = [length[:0]]
    for part, rows in blocks_of_pairs(region_counts, point_counts):
        some, cloud = regions[part], points[rows]
        held = hold(some, cloud) & cloud.isfinite().all(1) & some.isfinite().all(1)[:, None]
        if max_points >= 0:
            held &= held.cumsum(1) <= max_points
        length[part] = held.sum(1)
        found.append(held.nonzero()[:, 1] + rows.start)
    return length.cumsum(0) - length, length, torch.cat(found)
