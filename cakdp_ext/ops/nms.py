"""Greedy non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_float, as_index, check_same_device
from cakdp_ext.ops.reference import nms as reference


@torch.no_grad()
def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    groups: Tensor | None = None,
    axis_aligned: bool = False,
    pre_max: int | None = None,
    post_max: int | None = None,
    compat: bool = False,
) -> Tensor:
    """Keep every box, best first, whose bird's-eye-view IoU with each box kept before is at most the threshold.

    Args:
        boxes: ``(N, 7)``, metres and radians. One of no size or with a NaN overlaps nothing, and stays.
        scores: ``(N,)``, same device; NaN counts as the lowest.
        iou_threshold: in [0, 1].
        groups: ``(N,)`` int32 or int64, same device: a box only meets those of its own group, such as a frame, a
            class, or a class in a frame. None puts all into one.
        axis_aligned: ignore headings.
        pre_max: look at so many best boxes of each group only.
        post_max: keep at most so many of each group.
        compat: rotated overlaps by OpenPCDet's rule with a margin of 1 cm, see :func:`boxes_overlap_bev`; without
            effect where headings are ignored.

    Returns:
        ``(K,)`` int64 indices by descending score, equal scores in the given order; ``(0,)`` for no boxes.

    Raises:
        ValueError: for another shape, inputs that differ in number or device, or a limit below 0.
    """
    boxes = as_float(boxes, "boxes", (None, 7))
    scores = as_float(scores, "scores", (len(boxes),))
    check_same_device(boxes, scores, ("boxes", "scores"))
    _check_settings(iou_threshold, pre_max, post_max)
    order = scores.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    run = native.implementation("nms_sorted", boxes.device) or reference.nms_sorted
    rule = (float(iou_threshold), axis_aligned, compat)
    limits = tuple(-1 if limit is None else limit for limit in (pre_max, post_max))
    if groups is None:
        order = order[:pre_max]
        return order[run(boxes[order], None, *rule, *limits)]
    groups = as_index(groups, "groups", (len(boxes),))
    check_same_device(boxes, groups, ("boxes", "groups"))
    by_group = groups[order].argsort(stable=True)
    rows = order[by_group]
    kept = by_group[run(boxes[rows], groups[rows], *rule, *limits)]
    return order[kept.sort().values]


@torch.no_grad()
def nms_in_frames(
    boxes: Tensor,
    scores: Tensor,
    candidates: Tensor,
    iou_threshold: float,
    *,
    axis_aligned: bool = False,
    pre_max: int | None = None,
    post_max: int | None = None,
    compat: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run :func:`nms` within each frame of a batch, all frames at once.

    Args:
        boxes: ``(B, A, 7)``, metres and radians.
        scores: ``(B, A)``, same device.
        candidates: ``(B, A)`` bool, the boxes that take part.
        iou_threshold: in [0, 1].
        axis_aligned: as there.
        pre_max: as there, of each frame.
        post_max: as there, of each frame.
        compat: as there.

    Returns:
        Frame, row and rank of every box that stays, each ``(K,)`` int64: frame by frame, within one by descending
        score, ranks counting from 0; ``(0,)`` where nothing stays.

    Raises:
        ValueError: as there.
    """
    frames, rows = candidates.nonzero(as_tuple=True)
    keep = nms(
        boxes[frames, rows],
        scores[frames, rows],
        iou_threshold,
        groups=frames,
        axis_aligned=axis_aligned,
        pre_max=pre_max,
        post_max=post_max,
        compat=compat,
    )
    keep = keep[frames[keep].argsort(stable=True)]
    frames = frames[keep]
    ranks = torch.arange(len(keep), device=keep.device) - torch.searchsorted(frames, frames)
    return frames, rows[keep], ranks


def _check_settings(iou_threshold: float, pre_max: int | None, post_max: int | None) -> None:
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}")
    for name, limit in (("pre_max", pre_max), ("post_max", post_max)):
        if limit is not None and limit < 0:
            raise ValueError(f"{name} must be at least 0, got {limit}; for no limit give None")
