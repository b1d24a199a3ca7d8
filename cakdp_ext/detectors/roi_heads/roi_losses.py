"""How wrong is the second stage?"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.detectors.losses import smooth_l1


def roi_class_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy over the rois that are not ignored.

    Args:
        logits: ``(N,)`` raw.
        targets: ``(N,)`` in [0, 1], negative where ignored.

    Returns:
        A scalar; 0 (with a gradient of 0) when every roi is ignored.

    Source: Voxel R-CNN (Deng et al., AAAI 2021), Eq. 5.
    """
    counts = targets >= 0
    each = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0.0), reduction="none")
    return (each * counts).sum() / counts.sum().clamp(min=1)


def roi_residual_loss(deltas: Tensor, targets: Tensor, code_weights: Tensor, beta: float = 1 / 9) -> Tensor:
    """Smooth L1 of the encoded residuals, summed over codes, averaged over foreground rois.

    Args:
        deltas: ``(F, 7)`` predicted for the foreground rois.
        targets: ``(F, 7)``.
        code_weights: ``(7,)`` factors of the differences.
        beta: where the loss turns from square to linear.

    Returns:
        A scalar; 0 (with a gradient of 0) without foreground.
    """
    return smooth_l1((deltas - targets) * code_weights, beta).sum() / max(len(deltas), 1)


def corner_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Mean Huber loss of the distances between corners, blind to a half turn of the target.

    Args:
        boxes: ``(F, 7)`` predicted.
        targets: ``(F, 7)`` in the same frame.

    Returns:
        A scalar; 0 (with a gradient of 0) without foreground.

    Source: Frustum PointNets (Qi et al., CVPR 2018), Eq. 2, in the form that PV-RCNN and Voxel R-CNN use.
    """
    turned = torch.cat((targets[:, :6], targets[:, 6:] + math.pi), dim=1)
    corners = ops.box_corners(boxes)
    distances = [torch.linalg.vector_norm(corners - ops.box_corners(other), dim=2) for other in (targets, turned)]
    nearest = torch.minimum(*distances)
    return smooth_l1(nearest, 1.0).sum() / max(nearest.numel(), 1)
