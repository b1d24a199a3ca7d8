"""How wrong is a center head? The loss of its heat maps, and that of the boxes at the objects' centres."""

from __future__ import annotations

import torch
from torch import Tensor

CERTAINTY = 1e-4
"""Predicted scores count as being so far from 0 and 1, at least; nearer ones get no gradient, as published."""


def heatmap_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Give the focal loss of heat maps, weaker around the centres, per centre of the batch.

    Args:
        logits: ``(B, C, H, W)`` raw.
        heatmap: ``(B, C, H, W)`` targets, 1 at the centres.

    Returns:
        A scalar; without any centre the sum over the whole batch.

    Source: CenterNet (Zhou et al., Objects as Points, 2019), Eq. 1, with alpha 2 and beta 4.
    """
    scores = logits.sigmoid().clamp(CERTAINTY, 1 - CERTAINTY)
    is_center = heatmap == 1
    missed = (1 - scores) ** 2 * torch.log(scores)
    imagined = (1 - heatmap) ** 4 * scores**2 * torch.log(1 - scores)
    return -torch.where(is_center, missed, imagined).sum() / is_center.sum().clamp(min=1)


def regression_loss(codes: Tensor, targets: Tensor, code_weights: Tensor) -> Tensor:
    """Give the absolute error of the regressed values, per object of the batch.

    Args:
        codes: ``(N, 8)`` predicted at the objects' cells.
        targets: ``(N, 8)``.
        code_weights: ``(8,)`` factors.

    Returns:
        A scalar, the weighted sum over the eight values; 0, connected to ``codes``, without objects.

    Source: CenterPoint (Yin et al., CVPR 2021), section 4, L1 regression at the objects' centres.
    """
    return ((codes - targets).abs().sum(dim=0) / max(len(targets), 1) * code_weights).sum()
