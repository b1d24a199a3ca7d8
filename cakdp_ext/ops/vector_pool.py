"""Vector pooling: what the points in each cell around a position have in common, cell beside cell in one vector."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from cakdp_ext.ops.cells import Cells, as_num_cells, group_by_cell, pool_cells
from cakdp_ext.ops.checks import as_float
from cakdp_ext.ops.neighbors import NeighborType, cubes, local_neighbors


@torch.no_grad()
def vector_cells(
    xyz: Tensor,
    counts: Tensor,
    new_xyz: Tensor,
    new_counts: Tensor,
    num_cells: tuple[int, int, int],
    max_distance: float,
    num_samples: int | None = None,
    neighbor_type: NeighborType = "cube",
    max_neighbors: int | None = None,
) -> Cells:
    """Divide the cube around every query into cells, and list the points of each.

    Args:
        xyz: ``(N, 3)`` metres, the points of all frames, frame after frame.
        counts: ``(B,)`` int32 or int64, how many of them each frame has.
        new_xyz: ``(M, 3)`` metres, the queries of all frames; same device and dtype.
        new_counts: ``(B,)``, how many of them each frame has.
        num_cells: ``(gx, gy, gz)`` of the cube.
        max_distance: half the width of the cube, metres; a point exactly that far still counts, in the last cell.
        num_samples: only the first so many points of a cell count, by their row; None for all.
        neighbor_type: ``cube``, or ``ball`` to leave out the points in the cube's corners.
        max_neighbors: look only at the first so many points around a query, by their row; None for all.

    Returns:
        The points of the cells, ``(M, gx, gy, gz)`` of them.

    Raises:
        ValueError: for another shape, dtype or device, a setting that cannot be, or, on CPU, counts that do not add up.

    Source:
        PV-RCNN++ (Shi et al., IJCV 2023), section "VectorPool aggregation".
    """
    shape = as_num_cells(num_cells, "num_cells")
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}; for no limit give None")
    neighbors = local_neighbors(xyz, counts, new_xyz, new_counts, max_distance, max_neighbors, neighbor_type)
    boxes = cubes(as_float(new_xyz, "new_xyz", (None, 3)), max_distance)
    return group_by_cell(xyz, boxes, neighbors, shape, num_samples)


def vector_pool(
    xyz: Tensor,
    counts: Tensor,
    features: Tensor,
    new_xyz: Tensor,
    new_counts: Tensor,
    num_cells: tuple[int, int, int],
    max_distance: float,
    num_samples: int | None = None,
    neighbor_type: NeighborType = "cube",
    pool_type: Literal["avg", "first"] = "avg",
    use_xyz: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pool the features of the points in each cell around every query; the gradient flows to the features only.

    Args:
        xyz: ``(N, 3)``, as for :func:`vector_cells`, like all arguments that are not named here.
        counts: ``(B,)``.
        features: ``(N, C)`` of the points.
        new_xyz: ``(M, 3)``.
        new_counts: ``(B,)``.
        num_cells: ``(gx, gy, gz)``.
        max_distance: metres.
        num_samples: points of a cell that count.
        neighbor_type: ``cube`` or ``ball``.
        pool_type: ``avg``, the mean over a cell's points, or ``first``, its first point.
        use_xyz: put before the features of each cell the mean offset of its points from the query, metres.

    Returns:
        new_features ``(M, gx * gy * gz * C)``, x outermost, or with ``use_xyz`` ``(M, gx * gy * gz * (3 + C))``, 0 in
        empty cells; and points_per_cell ``(M, gx * gy * gz)`` int64, how many points counted. No rows for no queries.

    Raises:
        ValueError: as :func:`vector_cells`; for features that are not one row a point, or another pool_type.

    Source:
        PV-RCNN++ (Shi et al., IJCV 2023), section "VectorPool aggregation".
    """
    if pool_type not in ("avg", "first"):
        raise ValueError(f"pool_type must be 'avg' or 'first', got {pool_type!r}")
    features = as_float(features, "features", (len(xyz), None))
    limit = num_samples if pool_type == "avg" else 1
    cells = vector_cells(xyz, counts, new_xyz, new_counts, num_cells, max_distance, limit, neighbor_type)
    pooled, _ = pool_cells(features, cells, "avg")
    if use_xyz:
        pooled = torch.cat((mean_offsets(xyz, new_xyz, cells).to(pooled.dtype), pooled), dim=-1)
    return pooled.flatten(1), cells.count.flatten(1)


@torch.no_grad()
def mean_offsets(xyz: Tensor, new_xyz: Tensor, cells: Cells) -> Tensor:
    """Average, over the points of each cell, their offsets from the query.

    Args:
        xyz: ``(N, 3)`` metres.
        new_xyz: ``(M, 3)`` metres.
        cells: the cells around the M queries, as :func:`vector_cells` gives them.

    Returns:
        ``(M, gx, gy, gz, 3)`` metres, 0 in empty cells. Offsets are taken before the mean, so that it is exact far from
        the origin too.
    """
    first_of_query = cells.first.flatten(1)[:, 0].contiguous()
    member = torch.arange(len(cells.members), device=xyz.device)
    query = torch.searchsorted(first_of_query, member, right=True) - 1
    offsets = as_float(xyz, "xyz", (None, 3))[cells.members] - as_float(new_xyz, "new_xyz", (None, 3))[query]
    return pool_cells(offsets, replace(cells, members=member), "avg")[0]
