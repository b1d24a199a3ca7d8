"""``pcdet.ops.pointnet2.pointnet2_stack.pointnet2_stack_cuda``: points around points, and what they say together.

Clouds lie one after another in one tensor, ``*_cnt (B,)`` int32 says how many points each has. Indices are int32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext import ops


def ball_query_wrapper(
    batch_size: int,
    num_queries: int,
    radius: float,
    num_samples: int,
    new_xyz: Tensor,
    new_xyz_cnt: Tensor,
    xyz: Tensor,
    xyz_cnt: Tensor,
    idx: Tensor,
) -> int:
    """Fill ``idx (M, num_samples)`` with the first points nearer than a radius, counted within each cloud.

    A row that found nothing begins with -1.
    """
    index, empty = ops.ball_query(xyz, xyz_cnt, new_xyz, new_xyz_cnt, radius, num_samples)
    index -= _first_rows(xyz_cnt, new_xyz_cnt)[:, None]
    _fill(idx, index, empty)
    return 1


def voxel_query_wrapper(
    num_queries: int,
    depth: int,
    height: int,
    width: int,
    num_samples: int,
    radius: float,
    z_range: int,
    y_range: int,
    x_range: int,
    new_xyz: Tensor,
    xyz: Tensor,
    new_coords: Tensor,
    point_indices: Tensor,
    idx: Tensor,
) -> int:
    """Fill ``idx (M, num_samples)`` with the first rows of ``xyz`` in the voxels around each query.

    Args:
        num_queries: M.
        depth: Z.
        height: Y.
        width: X.
        num_samples: neighbours a query.
        radius: metres.
        z_range: voxels to either side, like ``y_range`` and ``x_range``.
        y_range: see ``z_range``.
        x_range: see ``z_range``.
        new_xyz: ``(M, 3)`` metres.
        xyz: ``(N, 3)`` metres.
        new_coords: ``(M, 4)`` int32 batch, z, y, x of each query.
        point_indices: ``(B, Z, Y, X)`` int32 row of the point in each voxel, -1 for none.
        idx: filled; a row that found nothing begins with -1.
    """
    voxels = (point_indices >= 0).nonzero()
    rows = point_indices[tuple(voxels.unbind(1))].long()
    shape, ranges = (depth, height, width), (z_range, y_range, x_range)
    index, empty = ops.voxel_query(
        new_coords, new_xyz, voxels, xyz[rows], shape, len(point_indices), ranges, radius, num_samples
    )
    _fill(idx, rows[index] if len(rows) else index, empty)
    return 1


def group_points_wrapper(
    batch_size: int,
    num_queries: int,
    channels: int,
    num_samples: int,
    features: Tensor,
    features_cnt: Tensor,
    idx: Tensor,
    idx_cnt: Tensor,
    out: Tensor,
) -> int:
    """Fill ``out (M, C, S)`` with the rows of ``features (N, C)`` that ``idx (M, S)`` names within each cloud."""
    out.copy_(ops.group_points(features, idx.long() + _first_rows(features_cnt, idx_cnt)[:, None]))
    return 1


def group_points_grad_wrapper(
    batch_size: int,
    num_queries: int,
    channels: int,
    num_features: int,
    num_samples: int,
    grad_out: Tensor,
    idx: Tensor,
    idx_cnt: Tensor,
    features_cnt: Tensor,
    grad_features: Tensor,
) -> int:
    """Add to ``grad_features (N, C)`` what ``grad_out (M, C, S)`` says about each row."""
    index = idx.long() + _first_rows(features_cnt, idx_cnt)[:, None]
    grad_features.index_add_(0, index.reshape(-1), grad_out.transpose(1, 2).reshape(-1, grad_out.shape[1]))
    return 1


def farthest_point_sampling_wrapper(
    batch_size: int, num_points: int, num_samples: int, xyz: Tensor, temp: Tensor, out: Tensor
) -> int:
    """Fill ``out (B, num_samples)`` with the farthest points of ``xyz (B, N, 3)``; ``temp`` is left alone."""
    out.copy_(ops.farthest_point_sampling(xyz, num_samples))
    return 1


def stack_farthest_point_sampling_wrapper(
    xyz: Tensor, temp: Tensor, xyz_cnt: Tensor, out: Tensor, num_samples: Tensor
) -> int:
    """Fill ``out`` with the rows of the farthest points of each cloud; ``temp`` is left alone."""
    out.copy_(ops.farthest_point_sampling_stacked(xyz, xyz_cnt, num_samples))
    return 1


def three_nn_wrapper(
    unknown: Tensor, unknown_cnt: Tensor, known: Tensor, known_cnt: Tensor, dist2: Tensor, idx: Tensor
) -> int:
    """Fill ``dist2 (N, 3)``, square metres, and ``idx (N, 3)``, rows of ``known``, with the three nearest."""
    distances, index = ops.three_nn(unknown, unknown_cnt, known, known_cnt)
    dist2.copy_(distances.square())
    idx.copy_(index)
    return 1


def three_interpolate_wrapper(features: Tensor, idx: Tensor, weight: Tensor, out: Tensor) -> int:
    """Fill ``out (N, C)`` with the weighted rows of ``features (M, C)`` that ``idx (N, 3)`` names."""
    out.copy_(ops.three_interpolate(features, idx, weight))
    return 1


def three_interpolate_grad_wrapper(grad_out: Tensor, idx: Tensor, weight: Tensor, grad_features: Tensor) -> int:
    """Add to ``grad_features (M, C)`` what ``grad_out (N, C)`` says about each row."""
    shares = grad_out[:, None] * weight[..., None]
    grad_features.index_add_(0, idx.reshape(-1).long(), shares.reshape(-1, grad_out.shape[1]))
    return 1


def query_stacked_local_neighbor_idxs_wrapper_stack(
    support_xyz: Tensor,
    xyz_cnt: Tensor,
    new_xyz: Tensor,
    new_xyz_cnt: Tensor,
    stack_neighbor_idxs: Tensor,
    start_len: Tensor,
    cumsum: Tensor,
    avg_length: int,
    max_distance: float,
    num_samples: int,
    neighbor_type: int,
) -> int:
    """List the rows of ``support_xyz (N, 3)`` around each of ``new_xyz (M, 3)``.

    Args:
        support_xyz: metres.
        xyz_cnt: ``(B,)``.
        new_xyz: metres.
        new_xyz_cnt: ``(B,)``.
        stack_neighbor_idxs: ``(avg_length * M,)`` int32, filled with as many rows as it can hold.
        start_len: ``(M, 2)`` int32, filled with where each list begins and how long it is.
        cumsum: ``(1,)`` int32, filled with how many rows there are; the caller comes again where they did not fit.
        avg_length: see ``stack_neighbor_idxs``.
        max_distance: metres.
        num_samples: most rows of a list; 0 or less for all.
        neighbor_type: 1 for a ball, else a cube.
    """
    found = _neighbors(support_xyz, xyz_cnt, new_xyz, new_xyz_cnt, max_distance, num_samples, neighbor_type)
    fitting = found.index[: len(stack_neighbor_idxs)]
    stack_neighbor_idxs[: len(fitting)].copy_(fitting)
    start_len.copy_(torch.stack((found.start, found.length), dim=1))
    cumsum.fill_(len(found.index))
    return 1


def query_three_nn_by_stacked_local_idxs_wrapper_stack(
    support_xyz: Tensor,
    new_xyz: Tensor,
    centers: Tensor,
    idxs: Tensor,
    dist2: Tensor,
    stack_neighbor_idxs: Tensor,
    start_len: Tensor,
    num_queries: int,
    num_centers: int,
) -> int:
    """Fill ``idxs`` and ``dist2``, both ``(M, G, 3)``, with the three neighbours nearest to ``centers (M, G, 3)``.

    Slots that a list has no point for repeat its nearest; -1 and infinity stand where it has none at all.
    """
    start, length = start_len.long().unbind(1)
    lists = ops.Neighbors(start.contiguous(), length.contiguous(), stack_neighbor_idxs.long())
    squared, index = ops.local_three_nn(support_xyz, centers.view(num_queries, num_centers, 3), lists)
    missing = index < 0
    idxs.copy_(torch.where(missing, index[..., :1], index))
    dist2.copy_(torch.where(missing, squared[..., :1], squared))
    return 1


def vector_pool_wrapper(
    support_xyz: Tensor,
    xyz_cnt: Tensor,
    support_features: Tensor,
    new_xyz: Tensor,
    new_xyz_cnt: Tensor,
    new_features: Tensor,
    new_local_xyz: Tensor,
    point_cnt_of_grid: Tensor,
    grouped_idxs: Tensor,
    num_grid_x: int,
    num_grid_y: int,
    num_grid_z: int,
    max_distance: float,
    use_xyz: bool,
    num_max_sum_points: int,
    num_samples: int,
    neighbor_type: int,
    pooling_type: int,
) -> int:
    """Add up the features of the points in each of ``num_grid_x * num_grid_y * num_grid_z`` cells around each query.

    Of ``support_features (N, C_in)``, channels that are C apart, C those of a cell, are added up. With ``pooling_type``
    0 all points of a cell count; with 1 its first one does, with its last C channels. ``support_xyz (N, 3)``,
    ``new_xyz (M, 3)``, ``max_distance``, ``num_samples`` and ``neighbor_type`` are those of
    :func:`query_stacked_local_neighbor_idxs_wrapper_stack`; the cube around a query is ``2 * max_distance`` wide.

    Filled are ``new_features (M, cells * C)`` with sums, where ``use_xyz`` ``new_local_xyz (M, cells * 3)`` with sums
    of offsets, ``point_cnt_of_grid (M, cells)`` int32, and ``grouped_idxs (num_max_sum_points, 3)`` int32 with as many
    (row, query, cell) as it can hold.

    Returns:
        How many (row, query, cell) there are.
    """
    limit = num_samples if pooling_type == 0 else 0
    found = _neighbors(support_xyz, xyz_cnt, new_xyz, new_xyz_cnt, max_distance, limit, neighbor_type)
    cubes = torch.cat((new_xyz, new_xyz.new_tensor([2 * max_distance] * 3 + [0]).expand(len(new_xyz), 4)), dim=1)
    shape = (num_grid_x, num_grid_y, num_grid_z)
    cells = ops.group_by_cell(support_xyz, cubes, found, shape, None if pooling_type == 0 else 1)
    rows, cell = cells.pairs()
    num_cells = point_cnt_of_grid.shape[1]
    channels = new_features.shape[1] // num_cells
    parts = support_features.unflatten(1, (-1, channels))
    values = parts.sum(1) if pooling_type == 0 else parts[:, -1]
    new_features.view(-1, channels).zero_().index_add_(0, cell, values[rows])
    query = torch.div(cell, num_cells, rounding_mode="floor")
    if use_xyz:
        new_local_xyz.view(-1, 3).zero_().index_add_(0, cell, support_xyz[rows] - new_xyz[query])
    point_cnt_of_grid.copy_(cells.count.view_as(point_cnt_of_grid))
    triples = torch.stack((rows, query, cell - query * num_cells), dim=1)[:num_max_sum_points]
    grouped_idxs[: len(triples)].copy_(triples)
    return len(rows)


def vector_pool_grad_wrapper(
    grad_new_features: Tensor, point_cnt_of_grid: Tensor, grouped_idxs: Tensor, grad_support_features: Tensor
) -> int:
    """Add to ``grad_support_features (N, C_in)`` what ``grad_new_features (M, cells * C)``, of means, says about it."""
    rows, query, cell = grouped_idxs.long().unbind(1)
    num_cells = point_cnt_of_grid.shape[1]
    grad = grad_new_features.unflatten(1, (num_cells, -1))[query, cell]
    grad = grad / point_cnt_of_grid[query, cell].clamp(min=1)[:, None]
    repeats = grad_support_features.shape[1] // grad.shape[1]
    grad_support_features.index_add_(0, rows, grad.repeat(1, repeats))
    return 1


def _neighbors(
    xyz: Tensor,
    counts: Tensor,
    new_xyz: Tensor,
    new_counts: Tensor,
    max_distance: float,
    num_samples: int,
    neighbor_type: int,
) -> ops.Neighbors:
    limit = num_samples if num_samples > 0 else None
    around: ops.NeighborType = "ball" if neighbor_type == 1 else "cube"
    return ops.local_neighbors(xyz, counts, new_xyz, new_counts, max_distance, limit, around)


def _first_rows(counts: Tensor, query_counts: Tensor) -> Tensor:
    """Give the row ``(M,)`` at which the cloud of each query begins."""
    begin = torch.cumsum(counts, 0) - counts
    return begin.repeat_interleave(query_counts.long())


def _fill(idx: Tensor, index: Tensor, empty: Tensor) -> None:
    idx.copy_(index.masked_fill(empty[:, None], 0))
    idx[:, 0] = idx[:, 0].masked_fill(empty, -1)
