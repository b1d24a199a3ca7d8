"""``pcdet.ops.pointnet2.pointnet2_stack.pointnet2_stack_cuda``: sampling, neighbours, grouping, interpolation.

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


def _first_rows(counts: Tensor, query_counts: Tensor) -> Tensor:
    """Give the row ``(M,)`` at which the cloud of each query begins."""
    begin = torch.cumsum(counts, 0) - counts
    return begin.repeat_interleave(query_counts.long())


def _fill(idx: Tensor, index: Tensor, empty: Tensor) -> None:
    idx.copy_(index.masked_fill(empty[:, None], 0))
    idx[:, 0] = idx[:, 0].masked_fill(empty, -1)
