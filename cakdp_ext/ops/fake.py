"""What shapes the native ops give, for tensors without data (``torch.compile``, ``torch.export``, meta tensors)."""

from __future__ import annotations

import torch
from torch import Tensor


def register() -> None:
    """Register a fake kernel for every native op; the extension must be loaded."""
    torch.library.register_fake("cakdp::boxes_overlap_bev", _pairwise)
    torch.library.register_fake("cakdp::boxes_overlap_bev_aligned", _one_to_one)
    torch.library.register_fake("cakdp::nms_sorted", _kept)
    torch.library.register_fake("cakdp::points_in_boxes", _holders)
    torch.library.register_fake("cakdp::voxel_query", _neighbours)


def _pairwise(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return boxes1.new_empty(boxes1.shape[0], boxes2.shape[0])


def _one_to_one(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return boxes1.new_empty(boxes1.shape[0])


def _kept(boxes: Tensor, iou_threshold: float, axis_aligned: bool, post_max: int) -> Tensor:
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
