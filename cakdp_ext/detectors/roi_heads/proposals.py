"""Which boxes of the first stage does the second stage look at?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.detectors.roi_heads.roi_config import ProposalConfig
from cakdp_ext.types import DensePredictions


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
    num_frames, size = len(predictions.boxes), config.nms_post_maxsize
    boxes = predictions.boxes.float()
    logits, labels = predictions.cls_logits.float().max(dim=-1)
    indices = labels.new_zeros(num_frames, size)
    padded = Proposals(
        rois=boxes.new_zeros(num_frames, size, 7),
        scores=boxes.new_zeros(num_frames, size),
        labels=labels.new_zeros(num_frames, size),
        is_valid=torch.zeros(num_frames, size, dtype=torch.bool, device=boxes.device),
        indices=indices,
    )
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
    return padded
