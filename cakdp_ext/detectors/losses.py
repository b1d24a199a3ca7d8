"""How wrong is an anchor head? Losses over all anchors, or over the positive ones alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cakdp_ext import ops


def sigmoid_focal_loss(logits: Tensor, is_target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Weigh binary cross entropy down where the prediction is right already.

    Args:
        logits: any shape, raw.
        is_target: bool, same shape.
        alpha: weight of targets; the others get ``1 - alpha``.
        gamma: how strongly easy elements are weighed down.

    Returns:
        The loss of every element, same shape.

    Source: Lin et al., Focal Loss for Dense Object Detection (2017), Eq. 5.
    """
    wrongness = torch.where(is_target, -logits, logits)
    balance = torch.where(is_target, alpha, 1 - alpha)
    return balance * torch.sigmoid(wrongness) ** gamma * F.softplus(wrongness)


def classification_loss(cls_logits: Tensor, labels: Tensor, num_positives: Tensor) -> Tensor:
    """Sum the focal loss over the anchors that are not ignored, per positive of the frame, and average the frames.

    Args:
        cls_logits: ``(B, A, C)`` raw.
        labels: ``(B, A)`` class, -1 background, below -1 ignored.
        num_positives: ``(B,)``, at least 1.

    Returns:
        A scalar.
    """
    classes = torch.arange(cls_logits.shape[-1], device=labels.device)
    loss = sigmoid_focal_loss(cls_logits, labels.unsqueeze(-1) == classes).sum(dim=-1)
    return ((loss * (labels >= -1)).sum(dim=1) / num_positives).mean()


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    """Give ``d^2 / (2 beta)`` where ``|d| < beta`` and ``|d| - beta / 2`` elsewhere."""
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)


def localization_loss(deltas: Tensor, targets: Tensor, code_weights: Tensor, beta: float = 1 / 9) -> Tensor:
    """Smooth L1 of box residuals, the heading's difference taken by its sine so that half a turn costs nothing.

    Args:
        deltas: ``(P, 7)`` predicted.
        targets: ``(P, 7)``.
        code_weights: ``(7,)`` factors of the differences.
        beta: where the loss turns from square to linear.

    Returns:
        ``(P,)`` the sum over the seven residuals.

    Source: SECOND (Yan et al., Sensors 2018), section 3.3.1, sine-error loss.
    """
    difference = deltas - targets
    difference = torch.cat([difference[:, :6], torch.sin(difference[:, 6:])], dim=1)
    return smooth_l1(difference * code_weights, beta).sum(dim=1)


def direction_bins(headings: Tensor, offset: float, num_bins: int) -> Tensor:
    """Tell which share of a full turn, counted from ``offset``, a heading lies in.

    Args:
        headings: any shape, radians.
        offset: where the first bin begins, radians.
        num_bins: equal shares of a turn.

    Returns:
        int64, same shape, in ``[0, num_bins)``.
    """
    turned = ops.limit_period(headings - offset, offset=0.0, period=2 * math.pi)
    return (turned / (2 * math.pi / num_bins)).floor().long().clamp(0, num_bins - 1)


def heading_in_bin(headings: Tensor, bins: Tensor, offset: float, limit_offset: float, num_bins: int) -> Tensor:
    """Turn headings that are right up to a bin's width into the bin that a classifier chose.

    Args:
        headings: any shape, radians.
        bins: int64, same shape.
        offset: where the first bin begins, radians.
        limit_offset: share of a bin's width by which the kept part reaches below the bin.
        num_bins: equal shares of a turn.

    Returns:
        Headings in ``[offset - limit_offset * width, offset + (num_bins - limit_offset) * width)``.
    """
    width = 2 * math.pi / num_bins
    return ops.limit_period(headings - offset, offset=limit_offset, period=width) + offset + width * bins


def mean_over_frames(loss: Tensor, frames: Tensor, num_positives: Tensor) -> Tensor:
    """Average the positives' losses within each frame, then the frames.

    Args:
        loss: ``(P,)`` of the positives.
        frames: ``(P,)`` int64 frame of each.
        num_positives: ``(B,)``, at least 1.

    Returns:
        A scalar; a frame without positives counts as 0.
    """
    return (loss / num_positives[frames]).sum() / len(num_positives)
