"""Which boxes of the first stage does the second stage look at?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.detectors.roi_heads.roi_config import ProposalConfig
from cakdp_ext.types import DensePredictions, Detections


@dataclass(frozen=True)
class Proposals:
    """Rois of a batch, best first, padded with zeros to K a frame.

    Attributes:
        rois: ``(B, K, 7)``, without gradient.
        scores: ``(B, K)`` best class score of the first stage, in [0, 1].
        labels: ``(B, K)`` int64, 0-based class of that score.
        is_valid: ``(B, K)`` bool, False where padded.
        indices: ``(B, K)`` int64, which of the first stage's predictions they are, 0 where padded; None where that is
            not on record.
    """

    rois: Tensor
    scores: Tensor
    labels: Tensor
    is_valid: Tensor
    indices: Tensor | None = None


@torch.no_grad()
def propose(predictions: DensePredictions, config: ProposalConfig) -> Proposals:
    """Choose rois by class-agnostic NMS over the first stage's boxes; no gradient flows back.

    Boxes are ranked by logits: the scores of clear cases are all 1 in float32.

    Args:
        predictions: of the first stage, B frames.
        config: thresholds and sizes; K is ``nms_post_maxsize``.

    Returns:
        The proposals; frames in which no box reaches the score threshold hold padding only.
    """
    size, boxes = config.nms_post_maxsize, predictions.boxes.float()
    logits, labels = predictions.cls_logits.float().max(dim=-1)
    padded = _padding(len(boxes), size, boxes)
    indices = torch.zeros_like(padded.labels)
    frames, rows, ranks = ops.nms_in_frames(
        boxes,
        logits,
        logits.sigmoid() >= config.score_thresh,
        config.nms_thresh,
        axis_aligned=config.is_axis_aligned,
        pre_max=config.nms_pre_maxsize,
        post_max=size,
    )
    padded.rois[frames, ranks] = boxes[frames, rows]
    padded.scores[frames, ranks] = logits[frames, rows].sigmoid()
    padded.labels[frames, ranks] = labels[frames, rows]
    padded.is_valid[frames, ranks] = True
    indices[frames, ranks] = rows
    return replace(padded, indices=indices)


@torch.no_grad()
def as_proposals(detections: Sequence[Detections]) -> Proposals:
    """Take what a first stage detected as rois.

    Args:
        detections: of B frames, best first.

    Returns:
        The proposals; K is the largest number of detections of a frame, at least 1.
    """
    size = max(1, *(len(found.scores) for found in detections))
    padded = _padding(len(detections), size, detections[0].boxes.float())
    for frame, found in enumerate(detections):
        rows = slice(len(found.scores))
        padded.rois[frame, rows] = found.boxes.float()
        padded.scores[frame, rows] = found.scores.float()
        padded.labels[frame, rows] = found.labels
        padded.is_valid[frame, rows] = True
    return padded


def _padding(num_frames: int, size: int, like: Tensor) -> Proposals:
    """Give ``size`` rows of padding a frame, on the device of ``like``."""
    return Proposals(
        rois=like.new_zeros(num_frames, size, 7),
        scores=like.new_zeros(num_frames, size),
        labels=like.new_zeros(num_frames, size, dtype=torch.int64),
        is_valid=like.new_zeros(num_frames, size, dtype=torch.bool),
    )
