"""Intersection over union of boxes, from their overlap in the bird's-eye view."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from cakdp_ext.ops.boxes import limit_period
from cakdp_ext.ops.reference.overlap import boxes_overlap_bev_aligned, for_near_pairs

UPRIGHT_LIMIT = 1 << 16
"""Pairs of upright boxes compared at once: what stays in a processor's cache."""


def boxes_iou_bev(boxes1: Tensor, boxes2: Tensor, compat: bool = False) -> Tensor:
    """Bird's-eye-view IoU ``(N, M)`` of every pair of rotated boxes ``(N, 7)`` and ``(M, 7)``."""
    return for_near_pairs(partial(boxes_iou_bev_aligned, compat=compat), boxes1, boxes2, compat)


def boxes_iou_bev_aligned(boxes1: Tensor, boxes2: Tensor, compat: bool = False) -> Tensor:
    """Bird's-eye-view IoU ``(N,)`` of each pair of rotated boxes ``(N, 7)``."""
    overlap = boxes_overlap_bev_aligned(boxes1, boxes2, compat)
    return _ratio(overlap, boxes1[:, 3:5].prod(1), boxes2[:, 3:5].prod(1), compat)


def boxes_iou_3d(boxes1: Tensor, boxes2: Tensor, compat: bool = False) -> Tensor:
    """Volume IoU ``(N, M)`` of every pair of rotated boxes ``(N, 7)`` and ``(M, 7)``."""
    return for_near_pairs(partial(boxes_iou_3d_aligned, compat=compat), boxes1, boxes2, compat)


def boxes_iou_3d_aligned(boxes1: Tensor, boxes2: Tensor, compat: bool = False) -> Tensor:
    """Volume IoU ``(N,)`` of each pair of rotated boxes ``(N, 7)``."""
    height = _shared_length(boxes1[:, 2], boxes1[:, 5], boxes2[:, 2], boxes2[:, 5])
    overlap = boxes_overlap_bev_aligned(boxes1, boxes2, compat) * height
    return _ratio(overlap, boxes1[:, 3:6].prod(1), boxes2[:, 3:6].prod(1), compat)


def nearest_bev_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Bird's-eye-view IoU ``(N, M)`` after turning each heading to the nearest multiple of 90 degrees."""
    upright1, upright2 = _turn_upright(boxes1), _turn_upright(boxes2)
    iou = boxes1.new_zeros(len(boxes1), len(boxes2))
    rows_at_once = max(1, UPRIGHT_LIMIT // max(1, len(boxes2)))
    for part, rows in zip(iou.split(rows_at_once), upright1.split(rows_at_once), strict=True):
        part.copy_(_upright_iou(rows[:, None], upright2))
    return iou


def _turn_upright(boxes: Tensor) -> Tensor:
    """Return ``(N, 4)`` x, y and extents along both: dx and dy exchanged where the heading is nearer to 90 degrees."""
    from_axis = limit_period(boxes[:, 6:7], 0.5, math.pi).abs()
    size = torch.where(from_axis < math.pi / 4, boxes[:, 3:5], boxes[:, [4, 3]])
    return torch.cat((boxes[:, :2], size.where(from_axis.isfinite(), 0)), dim=1)


def _upright_iou(upright1: Tensor, upright2: Tensor) -> Tensor:
    x1, y1, dx1, dy1 = upright1.unbind(-1)
    x2, y2, dx2, dy2 = upright2.unbind(-1)
    overlap = _shared_length(x1, dx1, x2, dx2) * _shared_length(y1, dy1, y2, dy2)
    return _ratio(overlap, dx1 * dy1, dx2 * dy2)


def _shared_length(center1: Tensor, size1: Tensor, center2: Tensor, size2: Tensor) -> Tensor:
    """Length that two intervals share, the same in either order; 0 unless both sizes are positive and finite."""
    shared = torch.minimum((size1 + size2) / 2 - (center2 - center1).abs(), torch.minimum(size1, size2))
    are_sizes = (size1 > 0) & (size2 > 0) & size1.isfinite() & size2.isfinite()
    return torch.where(are_sizes, shared.clamp_(min=0), torch.zeros_like(shared))


def _ratio(overlap: Tensor, measure1: Tensor, measure2: Tensor, compat: bool = False) -> Tensor:
    """Intersection over union; 0 wherever nothing overlaps, boxes without a proper size included."""
    overlaps = overlap > 0
    union = torch.where(overlaps, measure1 + measure2 - overlap, torch.ones_like(overlap))
    ratio = overlap / (union.clamp(min=1e-8) if compat else union)
    return torch.where(overlaps, ratio, torch.zeros_like(overlap)).clamp_(max=torch.inf if compat else 1)
