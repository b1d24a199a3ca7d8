"""Neighbouring voxels of a position, from the sorted linear keys of the occupied ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DENSE_LIMIT = 1 << 21
"""Candidate slots held at once."""


@dataclass(frozen=True)
class Neighbourhood:
    """What counts as a neighbour.

    Attributes:
        spatial_shape: ``(Z, Y, X)`` of the grid.
        ranges: ``(rz, ry, rx)``, voxels to either side.
        radius: metres.
        num_samples: neighbours a query.
    """

    spatial_shape: tuple[int, int, int]
    ranges: tuple[int, int, int]
    radius: float
    num_samples: int


def voxel_query(
    queries: Tensor,
    query_xyz: Tensor,
    voxel_coords: Tensor,
    voxel_xyz: Tensor,
    batch_size: int,
    where: Neighbourhood,
) -> tuple[Tensor, Tensor]:
    """Look up, for each query and each row of the grid within range, the run of occupied voxels within reach.

    A row is a line of voxels along x; its occupied voxels are neighbours in the sorted keys, so one binary search a
    row finds all candidates, in the order z, y, x.

    Args:
        queries: ``(Q, 4)`` int64 batch, z, y, x.
        query_xyz: ``(Q, 3)``.
        voxel_coords: ``(V, 4)`` int64 batch, z, y, x; one outside the grid is not found.
        voxel_xyz: ``(V, 3)``.
        batch_size: number of frames.
        where: the neighbourhood.

    Returns:
        index ``(Q, num_samples)`` int64 and empty ``(Q,)`` bool.
    """
    index = queries.new_zeros(len(queries), where.num_samples)
    empty = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
    if len(queries) == 0 or len(voxel_coords) == 0:
        return index, empty
    sizes = voxel_coords.new_tensor((batch_size, *where.spatial_shape))
    outside = ((voxel_coords < 0) | (voxel_coords >= sizes)).any(1)
    keys = _row_key(voxel_coords, where) * where.spatial_shape[2] + voxel_coords[:, 3]
    keys, order = torch.sort(keys.masked_fill(outside, int(sizes.prod())), stable=True)
    repeated = torch.zeros_like(keys, dtype=torch.bool)
    repeated[1:] = keys[1:] == keys[:-1]
    keys, order = keys[~repeated], order[~repeated]
    rz, ry, rx = where.ranges
    chunk = max(1, DENSE_LIMIT // ((2 * rz + 1) * (2 * ry + 1) * (2 * rx + 1)))
    for begin in range(0, len(queries), chunk):
        part = slice(begin, begin + chunk)
        found, position = _candidates(queries[part], keys, where)
        voxel = order[position]
        found &= _within(query_xyz[part], voxel_xyz, voxel, found, where.radius)
        index[part], empty[part] = _take_first(found, voxel, where.num_samples)
    return index, empty


def _row_key(coords: Tensor, where: Neighbourhood) -> Tensor:
    depth, height, _ = where.spatial_shape
    return (coords[..., 0] * depth + coords[..., 1]) * height + coords[..., 2]


def _candidates(queries: Tensor, keys: Tensor, where: Neighbourhood) -> tuple[Tensor, Tensor]:
    """Return which of the slots ``(q, K)`` hold an occupied voxel in range, and its position in ``keys``."""
    depth, height, width = where.spatial_shape
    rz, ry, rx = where.ranges
    device = queries.device
    shifts = torch.cartesian_prod(torch.arange(-rz, rz + 1, device=device), torch.arange(-ry, ry + 1, device=device))
    rows = queries[:, None, :3].repeat(1, len(shifts), 1)
    rows[..., 1:] += shifts
    exists = (rows[..., 1] >= 0) & (rows[..., 1] < depth) & (rows[..., 2] >= 0) & (rows[..., 2] < height)
    row_start = _row_key(rows, where) * width
    low = row_start + (queries[:, 3] - rx).clamp(min=0)[:, None]
    high = row_start + (queries[:, 3] + rx).clamp(max=width - 1)[:, None]
    position = torch.searchsorted(keys, low)[..., None] + torch.arange(2 * rx + 1, device=device)
    inside = position < len(keys)
    position = position.clamp(max=len(keys) - 1)
    found = exists[..., None] & inside & (keys[position] <= high[..., None])
    return found.flatten(1), position.flatten(1)


def _within(query_xyz: Tensor, voxel_xyz: Tensor, voxel: Tensor, found: Tensor, radius: float) -> Tensor:
    near = torch.zeros_like(found)
    query, slot = found.nonzero(as_tuple=True)
    offset = query_xyz[query] - voxel_xyz[voxel[query, slot]]
    near[query, slot] = (offset * offset).sum(1) <= radius * radius
    return near


def _take_first(found: Tensor, voxel: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Return the first voxels found of each query, the rest filled with its very first, and which found none."""
    empty = ~found.any(1)
    first = voxel.gather(1, found.to(torch.uint8).argmax(1, keepdim=True))
    index = first.masked_fill(empty[:, None], 0).repeat(1, num_samples)
    rank = found.cumsum(1) - 1
    query, slot = (found & (rank < num_samples)).nonzero(as_tuple=True)
    index[query, rank[query, slot]] = voxel[query, slot]
    return index, empty
