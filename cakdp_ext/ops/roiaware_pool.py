"""RoI-aware point cloud pooling: what the points in each part of a region of interest have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.ops.cells import Cells, PoolMode, as_num_cells, group_by_cell, pool_cells
from cakdp_ext.ops.checks import as_float, check_alike
from cakdp_ext.ops.neighbors import as_count_pair, neighbors_in_boxes


@torch.no_grad()
def roiaware_cells(
    rois: Tensor,
    points: Tensor,
    out_size: int | tuple[int, int, int],
    max_points_per_voxel: int = 128,
    *,
    roi_counts: Tensor | None = None,
    point_counts: Tensor | None = None,
) -> Cells:
    """Divide every RoI into sub-voxels along its own axes, and list the points of each.

    A RoI holds the points that ``points_in_boxes`` says it does, faces included; RoIs may share points. A point lies in
    sub-voxel ``floor(offset / sub-voxel size)`` along each axis, its offset measured from the lower face; one on the
    upper face lies in the last sub-voxel. On CUDA the number of all points found is read on the host, once a call.

    Args:
        rois: ``(R, 7)`` metres and radians, those of all frames, frame after frame. One with a size that is not
            positive, a NaN or an infinity holds nothing.
        points: ``(N, 3)`` metres, those of all frames; same device and dtype.
        out_size: sub-voxels along x, y and z of the RoI, or one number for all three.
        max_points_per_voxel: only the first so many points of a sub-voxel count, by their row.
        roi_counts: ``(B,)`` int32 or int64, how many RoIs each frame has; None for a single frame.
        point_counts: ``(B,)``, how many points; given exactly where ``roi_counts`` is.

    Returns:
        The points of the sub-voxels, ``(R, X, Y, Z)`` of them.

    Raises:
        ValueError: for another shape, dtype or device, a setting that cannot be, or, on CPU, counts that do not add up.

    Source:
        Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.2.
    """
    rois, points = as_float(rois, "rois", (None, 7)), as_float(points, "points", (None, 3))
    shape = as_num_cells(out_size, "out_size")
    if max_points_per_voxel < 1:
        raise ValueError(f"max_points_per_voxel must be at least 1, got {max_points_per_voxel}")
    check_alike(rois, points, ("rois", "points"))
    point_counts, roi_counts = as_count_pair(points, point_counts, rois, roi_counts, ("rois", "roi_counts"))
    neighbors = neighbors_in_boxes(points, rois, point_counts, roi_counts)
    return group_by_cell(points, rois, neighbors, shape, max_points_per_voxel)


def roiaware_pool(
    rois: Tensor,
    points: Tensor,
    features: Tensor,
    out_size: int | tuple[int, int, int],
    max_points_per_voxel: int = 128,
    mode: PoolMode = "max",
    *,
    roi_counts: Tensor | None = None,
    point_counts: Tensor | None = None,
) -> Tensor:
    """Pool the features of the points in each sub-voxel of every RoI; the gradient flows to the features only.

    For the winning points of a maximum, for several features over the same RoIs, or for the points themselves, call
    :func:`roiaware_cells` and :func:`~cakdp_ext.ops.pool_cells`, which this function joins.

    Args:
        rois: ``(R, 7)``, as for :func:`roiaware_cells`, like all arguments that are not named here.
        points: ``(N, 3)``.
        features: ``(N, C)`` of the points.
        out_size: sub-voxels along each axis.
        max_points_per_voxel: only the first so many points of a sub-voxel count.
        mode: ``max`` or ``avg``.
        roi_counts: ``(B,)``, RoIs a frame.
        point_counts: ``(B,)``, points a frame.

    Returns:
        ``(R, X, Y, Z, C)``, 0 in a sub-voxel without points; ``(0, X, Y, Z, C)`` for no RoIs.

    Raises:
        ValueError: as :func:`roiaware_cells`; for features that are not one row a point, or another mode.

    Source:
        Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.2.
    """
    features = as_float(features, "features", (len(points), None))
    cells = roiaware_cells(
        rois, points, out_size, max_points_per_voxel, roi_counts=roi_counts, point_counts=point_counts
    )
    return pool_cells(features, cells, mode)[0]
