"""Which rois are trained on, and what shall they predict?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.detectors.roi_heads.proposals import Proposals
from cakdp_ext.detectors.roi_heads.roi_config import RoiTargetConfig
from cakdp_ext.detectors.roi_heads.roi_frame import to_roi_frame

IGNORE = -1.0


@dataclass(frozen=True)
class RoiTargets:
    """Sampled rois of a batch, N a frame, and their targets; nothing carries gradient.

    Attributes:
        rois: ``(B, N, 7)`` in the LiDAR frame, zeros where a frame has no roi.
        labels: ``(B, N)`` int64 class of each roi.
        ious: ``(B, N)`` 3D IoU with the best object.
        boxes: ``(B, N, 7)`` that object in the frame of the roi.
        cls_targets: ``(B, N)`` in [0, 1], -1 where the class loss looks away.
        is_foreground: ``(B, N)`` bool, whether the box losses look at it.
    """

    rois: Tensor
    labels: Tensor
    ious: Tensor
    boxes: Tensor
    cls_targets: Tensor
    is_foreground: Tensor


@torch.no_grad()
def sample_targets(proposals: Proposals, gt_boxes: Tensor, gt_labels: Tensor, config: RoiTargetConfig) -> RoiTargets:
    """Sample rois of every frame and give them targets; draws from torch's global CPU generator.

    Args:
        proposals: of B frames.
        gt_boxes: ``(B, M, 7)`` zero-padded.
        gt_labels: ``(B, M)`` 0-based, -1 where padded.
        config: how many, and with which thresholds.

    Returns:
        Targets with ``roi_per_image`` rois a frame. In a frame without objects all are background; in a frame
        without rois all are zeros that every loss ignores.
    """
    frames = [
        _sample_frame(proposals, frame, gt_boxes[frame][real], gt_labels[frame][real], config)
        for frame, real in enumerate(gt_labels >= 0)
    ]
    return RoiTargets(*(torch.stack(parts) for parts in zip(*frames, strict=True)))


def _sample_frame(
    proposals: Proposals, frame: int, gt_boxes: Tensor, gt_labels: Tensor, config: RoiTargetConfig
) -> tuple[Tensor, ...]:
    has_rois = bool(proposals.is_valid[frame].any())
    rows = proposals.is_valid[frame] if has_rois else slice(1)
    rois, labels = proposals.rois[frame][rows], proposals.labels[frame][rows]
    rivals = gt_labels if config.sample_roi_by_each_class else None
    ious, assigned = best_objects(rois, labels, gt_boxes, rivals)
    chosen = subsample(ious, config)
    rois, labels, ious = rois[chosen], labels[chosen], ious[chosen]
    boxes = to_roi_frame(gt_boxes[assigned[chosen]], rois) if len(gt_boxes) else torch.zeros_like(rois)
    cls_targets = class_targets(ious, config) if has_rois else torch.full_like(ious, IGNORE)
    return rois, labels, ious, boxes, cls_targets, ious > config.reg_fg_thresh


def best_objects(
    rois: Tensor, labels: Tensor, gt_boxes: Tensor, gt_labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the object that each roi overlaps most.

    Args:
        rois: ``(R, 7)``.
        labels: ``(R,)`` classes of the rois.
        gt_boxes: ``(M, 7)`` objects.
        gt_labels: ``(M,)`` their classes when a roi shall only meet objects of its own class, else None.

    Returns:
        3D IoU ``(R,)`` and index of the object ``(R,)``; both zero where there is none.
    """
    if len(gt_boxes) == 0:
        return rois.new_zeros(len(rois)), labels.new_zeros(len(rois))
    ious = ops.iou_3d(rois, gt_boxes.to(rois))
    if gt_labels is not None:
        ious = ious * (labels[:, None] == gt_labels)
    best, assigned = ious.max(dim=1)
    return best, assigned


def subsample(ious: Tensor, config: RoiTargetConfig) -> Tensor:
    """Draw rois of one frame: foreground without replacement, hard and easy background with it.

    Args:
        ious: ``(R,)`` with R > 0, IoU of each roi with its best object; NaN counts as easy background.
        config: sizes, ratios and thresholds.

    Returns:
        ``(roi_per_image,)`` int64 indices, foreground first. Where there is no background all are foreground, drawn
        with replacement.
    """
    size = config.roi_per_image
    foreground = (ious >= config.fg_thresh).nonzero().squeeze(1)
    hard = ((ious < config.fg_thresh) & (ious >= config.cls_bg_thresh_lo)).nonzero().squeeze(1)
    easy = (~(ious >= config.cls_bg_thresh_lo)).nonzero().squeeze(1)
    if len(easy) + len(hard) == 0:
        return _draw(foreground, size)
    num_foreground = min(round(config.fg_ratio * size), len(foreground))
    shuffled = torch.randperm(len(foreground)).to(ious.device)
    num_background = size - num_foreground
    num_hard = _share_of_hard(len(hard), len(easy), num_background, config.hard_bg_ratio)
    return torch.cat(
        (foreground[shuffled[:num_foreground]], _draw(hard, num_hard), _draw(easy, num_background - num_hard))
    )


def _share_of_hard(num_hard: int, num_easy: int, wanted: int, ratio: float) -> int:
    if num_easy == 0:
        return wanted
    return min(int(wanted * ratio), num_hard)


def _draw(pool: Tensor, size: int) -> Tensor:
    """Draw with replacement; nothing from an empty pool."""
    if len(pool) == 0:
        return pool
    return pool[torch.randint(len(pool), (size,)).to(pool.device)]


def class_targets(ious: Tensor, config: RoiTargetConfig) -> Tensor:
    """Turn IoU into class targets.

    Args:
        ious: ``(N,)``.
        config: with ``roi_iou``, targets rise linearly from 0 at ``cls_bg_thresh`` to 1 at ``cls_fg_thresh``; with
            ``cls``, rois strictly between are ignored.

    Returns:
        ``(N,)`` in [0, 1], -1 where ignored.

    Source: Voxel R-CNN (Deng et al., AAAI 2021), Eq. 4.
    """
    low, high = config.cls_bg_thresh, config.cls_fg_thresh
    soft = ((ious - low) / (high - low)).clamp(0.0, 1.0)
    if config.cls_score_type == "roi_iou":
        return soft
    is_between = (ious > low) & (ious < high)
    return (ious >= high).to(ious).masked_fill(is_between, IGNORE)
