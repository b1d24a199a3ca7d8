"""``pcdet.ops.iou3d_nms.iou3d_nms_cuda``: overlaps and NMS of rotated boxes.

Overlaps are exact. With ``CAKDP_COMPAT=1`` in the environment they bear the original's margin of a centimetre, for
numbers that are to be compared with published ones.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from cakdp_ext import ops

COMPAT = os.environ.get("CAKDP_COMPAT", "0") == "1"


def boxes_overlap_bev_gpu(boxes_a: Tensor, boxes_b: Tensor, overlap: Tensor) -> int:
    """Fill ``overlap (N, M)`` with the areas, square metres, that ``boxes_a (N, 7)`` and ``boxes_b (M, 7)`` share."""
    overlap.copy_(ops.boxes_overlap_bev(boxes_a, boxes_b, compat=COMPAT))
    return 1


def boxes_aligned_overlap_bev_gpu(boxes_a: Tensor, boxes_b: Tensor, overlap: Tensor) -> int:
    """Fill ``overlap (N, 1)`` with the areas that ``boxes_a[i]`` and ``boxes_b[i]``, both ``(N, 7)``, share."""
    overlap.copy_(ops.boxes_overlap_bev_aligned(boxes_a, boxes_b, compat=COMPAT).view_as(overlap))
    return 1


paired_boxes_overlap_bev_gpu = boxes_aligned_overlap_bev_gpu


def boxes_iou_bev_gpu(boxes_a: Tensor, boxes_b: Tensor, iou: Tensor) -> int:
    """Fill ``iou (N, M)`` with the bird's-eye-view IoU of ``boxes_a (N, 7)`` and ``boxes_b (M, 7)``."""
    iou.copy_(ops.iou_bev(boxes_a, boxes_b, compat=COMPAT))
    return 1


boxes_iou_bev_cpu = boxes_iou_bev_gpu


def boxes_aligned_iou_bev_cpu(boxes_a: Tensor, boxes_b: Tensor, iou: Tensor) -> int:
    """Fill ``iou (N, 1)`` with the bird's-eye-view IoU of ``boxes_a[i]`` and ``boxes_b[i]``, both ``(N, 7)``."""
    iou.copy_(ops.iou_bev_aligned(boxes_a, boxes_b, compat=COMPAT).view_as(iou))
    return 1


def nms_gpu(boxes: Tensor, keep: Tensor, nms_overlap_thresh: float) -> int:
    """Suppress rotated boxes.

    Args:
        boxes: ``(N, 7)``, best first.
        keep: ``(N,)`` int64 on the CPU; the first entries are filled with the positions that stay.
        nms_overlap_thresh: bird's-eye-view IoU above which the later box goes.

    Returns:
        How many stay.
    """
    return _nms(boxes, keep, nms_overlap_thresh, axis_aligned=False)


def nms_normal_gpu(boxes: Tensor, keep: Tensor, nms_overlap_thresh: float) -> int:
    """Suppress as :func:`nms_gpu` does, headings ignored."""
    return _nms(boxes, keep, nms_overlap_thresh, axis_aligned=True)


def _nms(boxes: Tensor, keep: Tensor, threshold: float, *, axis_aligned: bool) -> int:
    best_first = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=torch.float64)
    kept = ops.nms(boxes, best_first, threshold, axis_aligned=axis_aligned, compat=COMPAT)
    keep[: len(kept)].copy_(kept)
    return len(kept)
