"""Which of the student's predictions are taught: the paper's representative samples (RS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.distillation.config import SkdConfig
from cakdp_ext.types import DensePredictions

STUDENT_ADVICE = "lower the learning rate, or look for a bad frame or batch norm"


@dataclass(frozen=True)
class Representatives:
    """The samples of a batch that are taught, best first in each frame, padded to the K of the fullest frame.

    Attributes:
        indices: ``(B, K)`` int64, which of the A predictions; 0 where padded.
        labels: ``(B, K)`` int64, the best class of each; 0 where padded.
        valid: ``(B, K)`` bool, False where padded.
    """

    indices: Tensor
    labels: Tensor
    valid: Tensor


@torch.no_grad()
def select_representatives(predictions: DensePredictions, config: SkdConfig) -> Representatives:
    """Select in every frame what rotated, class-agnostic NMS leaves of the predictions above the score threshold.

    A sample's score is the sigmoid of its best class logit. No gradient flows.

    Args:
        predictions: of the student; ``boxes (B, A, 7)`` metres, radians, LiDAR frame.
        config: thresholds and sizes.

    Returns:
        The representatives; K = 0 where no frame has one.

    Raises:
        FloatingPointError: for class logits that are not finite; they would drop out of the selection unseen.

    Source:
        CaKDP, Section 3.2, Fig. 3(b).
    """
    logits = predictions.cls_logits.detach()
    check_finite(logits, "the student's class logits", STUDENT_ADVICE)
    best = logits.max(dim=2)
    scores = best.values.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
    frames, rows, ranks = ops.nms_in_frames(
        predictions.boxes.detach(),
        scores,
        scores > config.score_thresh,
        config.nms_thresh,
        pre_max=config.nms_pre_maxsize,
        post_max=config.nms_post_maxsize,
    )
    most = int(ranks.max()) + 1 if len(ranks) else 0
    indices = best.indices.new_zeros(len(scores), most)
    labels, valid = torch.zeros_like(indices), torch.zeros_like(indices, dtype=torch.bool)
    indices[frames, ranks], labels[frames, ranks], valid[frames, ranks] = rows, best.indices[frames, rows], True
    return Representatives(indices, labels, valid)


def check_finite(values: Tensor, name: str, advice: str) -> None:
    """Refuse values that are not finite.

    Raises:
        FloatingPointError: saying how many there are and what to do.
    """
    num_bad = int((~values.isfinite()).sum())
    if num_bad:
        raise FloatingPointError(f"{num_bad} of {values.numel()} of {name} are NaN or infinite; {advice}")
