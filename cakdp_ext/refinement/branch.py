"""What an IoU branch of an anchor head is asked for and taught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext.refinement.loss import iou_loss
from cakdp_ext.refinement.targets import anchor_iou_targets, decoded_iou_targets


@dataclass(frozen=True)
class IoUHeadConfig:
    """Keys of DENSE_HEAD.IOU_HEAD.

    Attributes:
        label: ``anchor``: the IoU of each anchor with its best object; ``decoded_box``: that of the predicted box.
        weight: beta of Eq. 7.
    """

    label: str = "anchor"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.label not in ("anchor", "decoded_box"):
            raise ValueError(f"LABEL must be anchor or decoded_box, got {self.label!r}")


def anchor_branch_loss(
    config: IoUHeadConfig,
    iou_logits: Tensor,
    anchors: Tensor,
    decode: Callable[[], Tensor],
    gt_boxes: Tensor,
    gt_labels: Tensor,
) -> Tensor:
    """Give Eq. 6 for a batch of an anchor head, already weighted with beta.

    Args:
        config: which label, what weight.
        iou_logits: ``(B, A, C)`` raw, with gradient.
        anchors: ``(A, 7)``.
        decode: gives the predicted boxes ``(B, A, 7)``; called for ``decoded_box`` only.
        gt_boxes: ``(B, M, 7)``, zero-padded.
        gt_labels: ``(B, M)`` 0-based, -1 where padded.

    Returns:
        A scalar.
    """
    targets = anchor_branch_targets(config.label, anchors, decode, gt_boxes, gt_labels, iou_logits.shape[2])
    return config.weight * iou_loss(iou_logits, targets)


@torch.no_grad()
def anchor_branch_targets(
    label: str, anchors: Tensor, decode: Callable[[], Tensor], gt_boxes: Tensor, gt_labels: Tensor, num_classes: int
) -> Tensor:
    """Give the ``(B, A, C)`` IoU labels of a batch; arguments as :func:`anchor_branch_loss`."""
    objects = zip(gt_boxes, gt_labels, strict=True)
    if label == "anchor":
        return torch.stack([anchor_iou_targets(anchors, *pair, num_classes) for pair in objects])
    frames = zip(decode(), objects, strict=True)
    return torch.stack([decoded_iou_targets(boxes, *pair, num_classes) for boxes, pair in frames])
