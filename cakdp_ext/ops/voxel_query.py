"""Which occupied voxels surround a position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_float, as_index, check_alike, check_same_device
from cakdp_ext.ops.reference import voxel_query as reference
from cakdp_ext.ops.reference.voxel_query import Neighbourhood


@torch.no_grad()
def voxel_query(
    queries: Tensor,
    query_xyz: Tensor,
    voxel_coords: Tensor,
    voxel_xyz: Tensor,
    spatial_shape: Sequence[int],
    batch_size: int,
    ranges: Sequence[int],
    radius: float,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    """Take the first occupied voxels around each query that lie within a radius of it.

    Neighbours are visited with z outermost, then y, then x, each from ``-range`` to ``+range``. A query may lie outside
    the grid; it then finds what of its neighbourhood lies inside. Of voxels at the same place the first one counts.
    Memory grows with the voxels and the rows of the grid, not with its volume.

    Args:
        queries: ``(Q, 4)`` int32 or int64, the voxel ``(batch, z, y, x)`` in which each query lies.
        query_xyz: ``(Q, 3)`` metres.
        voxel_coords: ``(V, 4)``, likewise, the occupied voxels.
        voxel_xyz: ``(V, 3)`` metres, their centres; dtype of ``query_xyz``.
        spatial_shape: ``(Z, Y, X)`` of the grid.
        batch_size: number of frames.
        ranges: ``(rz, ry, rx)``, voxels to either side.
        radius: metres; a voxel exactly that far still counts.
        num_samples: how many neighbours a query gets.

    Returns:
        index ``(Q, num_samples)`` int64 into the voxels, slots that found nothing repeating the query's first voxel;
        and empty ``(Q,)`` bool, True where the whole row found nothing and is 0. No rows for no queries.

    Raises:
        ValueError: for another shape, tensors that differ in device or dtype, a setting that cannot be, or, on CPU,
            voxels outside the grid, which on CUDA are never found: to tell would make the host wait.

    Source:
        Voxel R-CNN (Deng et al., AAAI 2021), section "Voxel Query".
    """
    queries, voxel_coords = as_index(queries, "queries", (None, 4)), as_index(voxel_coords, "voxel_coords", (None, 4))
    query_xyz = as_float(query_xyz, "query_xyz", (len(queries), 3))
    voxel_xyz = as_float(voxel_xyz, "voxel_xyz", (len(voxel_coords), 3))
    check_alike(query_xyz, voxel_xyz, ("query_xyz", "voxel_xyz"))
    check_same_device(queries, query_xyz, ("queries", "query_xyz"))
    check_same_device(queries, voxel_coords, ("queries", "voxel_coords"))
    where = _check_settings(spatial_shape, ranges, radius, num_samples)
    if voxel_coords.device.type == "cpu":
        _check_within_grid(voxel_coords, batch_size, where.spatial_shape)
    run = native.implementation("voxel_query", queries.device)
    if run is None:
        return reference.voxel_query(queries, query_xyz, voxel_coords, voxel_xyz, batch_size, where)
    return run(
        queries,
        query_xyz,
        voxel_coords,
        voxel_xyz,
        where.spatial_shape,
        batch_size,
        where.ranges,
        where.radius,
        where.num_samples,
    )


def _check_settings(
    spatial_shape: Sequence[int], ranges: Sequence[int], radius: float, num_samples: int
) -> Neighbourhood:
    if len(spatial_shape) != 3 or min(spatial_shape) < 1:
        raise ValueError(f"spatial_shape must be three positive sizes (Z, Y, X), got {tuple(spatial_shape)}")
    if len(ranges) != 3 or min(ranges) < 0:
        raise ValueError(f"ranges must be three sizes (rz, ry, rx) of at least 0, got {tuple(ranges)}")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be positive metres, got {radius}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    depth, height, width = map(int, spatial_shape)
    rz, ry, rx = map(int, ranges)
    return Neighbourhood((depth, height, width), (rz, ry, rx), float(radius), int(num_samples))


def _check_within_grid(voxel_coords: Tensor, batch_size: int, spatial_shape: tuple[int, int, int]) -> None:
    if len(voxel_coords) == 0:
        return
    low, high = voxel_coords.amin(0).tolist(), voxel_coords.amax(0).tolist()
    sizes = (batch_size, *spatial_shape)
    if min(low) < 0 or any(top >= size for top, size in zip(high, sizes, strict=True)):
        raise ValueError(
            f"voxel_coords must lie within batch, z, y, x sizes {sizes}, got {low} to {high}; check spatial_shape"
        )
