"""What shapes the native ops give, for tensors without data (``torch.compile``, ``torch.export``, meta tensors)."""

from __future__ import annotations

import torch
from torch import Tensor


def register() -> None:
    """Register a fake kernel for every native op; the extension must be loaded."""
    for name in ("boxes_overlap_bev", "boxes_iou_bev", "boxes_iou_3d"):
        torch.library.register_fake(f"cakdp::{name}", _pairwise)
        torch.library.register_fake(f"cakdp::{name}_aligned", _one_to_one)
    torch.library.register_fake("cakdp::nearest_bev_iou", _pairwise)
    torch.library.register_fake("cakdp::nms_sorted", _kept)
    torch.library.register_fake("cakdp::points_in_boxes", _holders)
    torch.library.register_fake("cakdp::voxel_query", _neighbours)
    torch.library.register_fake("cakdp::farthest_point_sampling", _chosen)
    torch.library.register_fake("cakdp::ball_query", _balls)
    torch.library.register_fake("cakdp::group_points", _groups)
    torch.library.register_fake("cakdp::group_points_backward", _groups_gradient)
    torch.library.register_fake("cakdp::three_nn", _three_nearest)
    torch.library.register_fake("cakdp::three_interpolate", _interpolated)
    torch.library.register_fake("cakdp::three_interpolate_backward", _interpolated_gradient)
    torch.library.register_fake("cakdp::neighbors_in_boxes", _neighbors_in_boxes)
    torch.library.register_fake("cakdp::neighbors_in_balls", _neighbors_in_balls)
    torch.library.register_fake("cakdp::three_nn_local", _three_nn_local)
    torch.library.register_fake("cakdp::group_by_cell", _group_by_cell)
    torch.library.register_fake("cakdp::pool_cells_mean", _pool_cells_mean)
    torch.library.register_fake("cakdp::pool_cells_mean_backward", _pool_cells_mean_backward)
    torch.library.register_fake("cakdp::pool_cells_max", _pool_cells_max)
    torch.library.register_fake("cakdp::pool_cells_max_backward", _pool_cells_max_backward)


def _pairwise(boxes1: Tensor, boxes2: Tensor, compat: bool = False) -> Tensor:
    return boxes1.new_empty(boxes1.shape[0], boxes2.shape[0])


def _one_to_one(boxes1: Tensor, boxes2: Tensor, compat: bool = False) -> Tensor:
    return boxes1.new_empty(boxes1.shape[0])


def _kept(
    boxes: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    axis_aligned: bool = False,
    compat: bool = False,
    pre_max: int = -1,
    post_max: int = -1,
) -> Tensor:
    num_kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(num_kept, dtype=torch.int64)


def _holders(points: Tensor, boxes: Tensor) -> Tensor:
    return points.new_empty(points.shape[:2], dtype=torch.int64)


def _neighbours(
    queries: Tensor,
    query_xyz: Tensor,
    voxel_coords: Tensor,
    voxel_xyz: Tensor,
    spatial_shape: list[int],
    batch_size: int,
    ranges: list[int],
    radius: float,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    index = queries.new_empty(queries.shape[0], num_samples)
    return index, queries.new_empty(queries.shape[0], dtype=torch.bool)


def _chosen(xyz: Tensor, counts: Tensor, num_samples: list[int]) -> Tensor:
    return counts.new_empty(sum(num_samples))


def _balls(
    xyz: Tensor, counts: Tensor, new_xyz: Tensor, new_counts: Tensor, radii: list[float], num_samples: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    index = [counts.new_empty(new_xyz.shape[0], number) for number in num_samples]
    return index, [counts.new_empty(new_xyz.shape[0], dtype=torch.bool) for _ in radii]


def _groups(features: Tensor, index: Tensor, empty: Tensor | None) -> Tensor:
    return features.new_empty(index.shape[0], features.shape[1], index.shape[1])


def _groups_gradient(grad: Tensor, index: Tensor, empty: Tensor | None, num_rows: int) -> Tensor:
    return grad.new_empty(num_rows, grad.shape[1])


def _three_nearest(
    unknown: Tensor, unknown_counts: Tensor, known: Tensor, known_counts: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(unknown), torch.empty_like(unknown, dtype=torch.int64)


def _interpolated(features: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    return features.new_empty(index.shape[0], features.shape[1])


def _interpolated_gradient(grad: Tensor, index: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    return grad.new_empty(num_rows, grad.shape[1])


def _neighbors_in_boxes(
    points: Tensor, point_counts: Tensor, boxes: Tensor, box_counts: Tensor, max_points: int
) -> tuple[Tensor, Tensor, Tensor]:
    start, length = (point_counts.new_empty(boxes.shape[0]) for _ in range(2))
    return start, length, point_counts.new_empty(torch.library.get_ctx().new_dynamic_size())


def _neighbors_in_balls(
    points: Tensor, point_counts: Tensor, centers: Tensor, center_counts: Tensor, radius: float, max_points: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _neighbors_in_boxes(points, point_counts, centers, center_counts, max_points)


def _three_nn_local(
    points: Tensor, centers: Tensor, start: Tensor, length: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    return centers.new_empty(centers.shape), index.new_empty(centers.shape)


def _group_by_cell(
    points: Tensor, boxes: Tensor, start: Tensor, length: Tensor, index: Tensor, num_cells: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    total = boxes.shape[0] * num_cells[0] * num_cells[1] * num_cells[2]
    return index.new_empty(total), index.new_empty(total), index.new_empty(index.shape)


def _pool_cells_mean(features: Tensor, first: Tensor, count: Tensor, members: Tensor) -> Tensor:
    return features.new_empty(first.shape[0], features.shape[1])


def _pool_cells_mean_backward(grad: Tensor, first: Tensor, count: Tensor, members: Tensor, num_rows: int) -> Tensor:
    return grad.new_empty(num_rows, grad.shape[1])


def _pool_cells_max(features: Tensor, first: Tensor, count: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    shape = (first.shape[0], features.shape[1])
    return features.new_empty(shape), members.new_empty(shape)


def _pool_cells_max_backward(grad: Tensor, winner: Tensor, num_rows: int) -> Tensor:
    return grad.new_empty(num_rows, grad.shape[1])
