"""Greedy non-maximum suppression, a block of boxes at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.ops.reference.overlap import boxes_overlap_bev

BLOCK = 256


def nms_sorted(boxes: Tensor, iou_threshold: float, axis_aligned: bool, post_max: int) -> Tensor:
    """Keep every box, best first, whose IoU with each box kept before is at most the threshold.

    Args:
        boxes: ``(N, 7)``, best first.
        iou_threshold: in the bird's-eye view.
        axis_aligned: ignore headings.
        post_max: stop after so many; negative for no limit.

    Returns:
        ``(K,)`` int64 ascending positions.
    """
    if axis_aligned:
        boxes = torch.cat((boxes[:, :6], torch.zeros_like(boxes[:, 6:])), dim=1)
    limit = len(boxes) if post_max < 0 else min(post_max, len(boxes))
    waiting = torch.arange(len(boxes), device=boxes.device)
    kept: list[Tensor] = []
    num_kept = 0
    while len(waiting) and num_kept < limit:
        block, waiting = waiting[:BLOCK], waiting[BLOCK:]
        chosen = block[_greedy(_exceeds(boxes[block], boxes[block], iou_threshold))][: limit - num_kept]
        kept.append(chosen)
        num_kept += len(chosen)
        if num_kept < limit and len(waiting):
            waiting = waiting[~_exceeds(boxes[chosen], boxes[waiting], iou_threshold).any(0)]
    return torch.cat(kept) if kept else waiting.new_zeros(0)


def _exceeds(boxes1: Tensor, boxes2: Tensor, iou_threshold: float) -> Tensor:
    overlap = boxes_overlap_bev(boxes1, boxes2)
    area1, area2 = boxes1[:, 3] * boxes1[:, 4], boxes2[:, 3] * boxes2[:, 4]
    return (overlap > 0) & (overlap > iou_threshold * (area1[:, None] + area2 - overlap))


def _greedy(suppresses: Tensor) -> Tensor:
    """Return ``(n,)`` bool, which of n boxes stay, from the ``(n, n)`` relation "i removes j"."""
    relation = suppresses.cpu().numpy()
    stays = torch.ones(len(relation), dtype=torch.bool).numpy()
    for i in range(len(relation)):
        if stays[i]:
            stays[i + 1 :] &= ~relation[i, i + 1 :]
    return torch.from_numpy(stays).to(suppresses.device)
