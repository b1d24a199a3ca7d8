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
