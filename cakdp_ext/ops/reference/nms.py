"""Greedy non-maximum suppression, a block of boxes at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.ops.reference.overlap import boxes_overlap_bev

BLOCK = 256


def nms_sorted(
    boxes: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    axis_aligned: bool = False,
    compat: bool = False,
    pre_max: int = -1,
    post_max: int = -1,
) -> Tensor:
    """Keep every box, best first, whose IoU with each box of its group kept before is at most the threshold.

    Args:
        boxes: ``(N, 7)``, group after group, best first within each.
        groups: ``(N,)`` int64, which group each belongs to; None for a single one.
        iou_threshold: in the bird's-eye view.
        axis_aligned: ignore headings.
        compat: rotated overlaps by the rule with a margin.
        pre_max: look at so many boxes of a group; negative for all.
        post_max: keep so many of a group; negative for no limit.

    Returns:
        ``(K,)`` int64 ascending positions.
    """
    if axis_aligned:
        boxes = torch.cat((boxes[:, :6], torch.zeros_like(boxes[:, 6:])), dim=1)
    compat = compat and not axis_aligned
    counts = [len(boxes)] if groups is None else groups.unique_consecutive(return_counts=True)[1].tolist()
    kept, start = [boxes.new_zeros(0, dtype=torch.int64)], 0
    for count in counts:
        looked_at = count if pre_max < 0 else min(pre_max, count)
        limit = count if post_max < 0 else min(post_max, count)
        kept.append(start + _nms(boxes[start : start + looked_at], iou_threshold, compat, limit))
        start += count
    return torch.cat(kept)


def _nms(boxes: Tensor, iou_threshold: float, compat: bool, limit: int) -> Tensor:
    """Positions ``(K,)`` that stay of one group's boxes ``(N, 7)``, at most ``limit`` of them."""
    waiting = torch.arange(len(boxes), device=boxes.device)
    kept: list[Tensor] = []
    num_kept = 0
    while len(waiting) and num_kept < limit:
        block, waiting = waiting[:BLOCK], waiting[BLOCK:]
        chosen = block[_greedy(_exceeds(boxes[block], boxes[block], iou_threshold, compat))][: limit - num_kept]
        kept.append(chosen)
        num_kept += len(chosen)
        if num_kept < limit and len(waiting):
            waiting = waiting[~_exceeds(boxes[chosen], boxes[waiting], iou_threshold, compat).any(0)]
    return torch.cat(kept) if kept else waiting.new_zeros(0)


def _exceeds(boxes1: Tensor, boxes2: Tensor, iou_threshold: float, compat: bool) -> Tensor:
    overlap = boxes_overlap_bev(boxes1, boxes2, compat)
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
