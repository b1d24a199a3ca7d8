"""What an IoU branch of a dense head is asked for and taught."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cakdp_ext.center_maps import CenterCells
from cakdp_ext.refinement.loss import ALL, SAMPLES, iou_loss
from cakdp_ext.refinement.targets import anchor_iou_targets, center_cell_targets, decoded_iou_targets

PRIOR_PROBABILITY = 0.01
"""What a fresh branch says of every site, so that the many that see nothing do not drown the first steps."""


@dataclass(frozen=True)
class IoUHeadConfig:
    """Keys of DENSE_HEAD.IOU_HEAD of an anchor head.

    Attributes:
        label: ``anchor``: the IoU of each anchor with its best object; ``decoded_box``: that of the predicted box.
        weight: beta of Eq. 7.
        samples: which outputs are taught: ``all``, or those with ``positive`` labels alone, as before the paper.
    """

    LABELS: ClassVar[tuple[str, ...]] = ("anchor", "decoded_box")

    label: str = "anchor"
    weight: float = 1.0
    samples: str = ALL

    def __post_init__(self) -> None:
        if self.samples not in SAMPLES:
            raise ValueError(f"SAMPLES must be {' or '.join(SAMPLES)}, got {self.samples!r}")
        if self.label not in self.LABELS:
            raise ValueError(f"LABEL must be {' or '.join(self.LABELS)}, got {self.label!r}")


@dataclass(frozen=True)
class CenterIoUHeadConfig(IoUHeadConfig):
    """Keys of DENSE_HEAD.IOU_HEAD of a center head.

    Attributes:
        label: ``decoded_box``: the IoU of each cell's predicted box with its best object; ``center``: 1 at the cells
            of objects' centres (the released code).
        weight: beta of Eq. 7.
        samples: which outputs are taught: ``all``, or those with ``positive`` labels alone, as before the paper.
    """

    LABELS: ClassVar[tuple[str, ...]] = ("decoded_box", "center")

    label: str = "decoded_box"


def start_from_prior(conv: nn.Conv2d, prior: float = PRIOR_PROBABILITY) -> None:
    """Set a convolution's bias so that the sigmoid of its output starts near ``prior``.

    Source: Lin et al., Focal Loss for Dense Object Detection (2017), section 4.1.
    """
    nn.init.constant_(conv.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]


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
    return config.weight * iou_loss(iou_logits, targets, config.samples)


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


def center_branch_loss(
    config: CenterIoUHeadConfig,
    iou_logits: Tensor,
    cells: CenterCells,
    decode: Callable[[], Tensor],
    gt_boxes: Tensor,
    gt_labels: Tensor,
) -> Tensor:
    """Give Eq. 6 for a batch of a center head, already weighted with beta.

    Args:
        config: which label, what weight.
        iou_logits: ``(B, A, C)`` raw, with gradient.
        cells: of the head's map, in the order of its A predictions.
        decode: gives the predicted boxes, ``(B, A, 7)`` or, where classes have boxes of their own, ``(B, A, C, 7)``;
            called for ``decoded_box`` only.
        gt_boxes: ``(B, M, 7)``, zero-padded.
        gt_labels: ``(B, M)`` 0-based, -1 where padded.

    Returns:
        A scalar.
    """
    targets = center_branch_targets(config.label, cells, decode, gt_boxes, gt_labels, iou_logits.shape[2])
    return config.weight * iou_loss(iou_logits, targets, config.samples)


@torch.no_grad()
def center_branch_targets(
    label: str, cells: CenterCells, decode: Callable[[], Tensor], gt_boxes: Tensor, gt_labels: Tensor, num_classes: int
) -> Tensor:
    """Give the ``(B, A, C)`` IoU labels of a batch; arguments as :func:`center_branch_loss`."""
    objects = zip(gt_boxes, gt_labels, strict=True)
    if label == "center":
        return torch.stack([center_cell_targets(cells.centers, cells.size, *pair, num_classes) for pair in objects])
    frames = zip(decode(), objects, strict=True)
    return torch.stack([_decoded_targets(boxes, *pair, num_classes) for boxes, pair in frames])


def _decoded_targets(boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, num_classes: int) -> Tensor:
    """Label one frame's boxes, ``(A, 7)`` for all classes or ``(A, C, 7)`` for each, with ``(A, C)``."""
    if boxes.dim() == 2:
        return decoded_iou_targets(boxes, gt_boxes, gt_labels, num_classes)
    columns = []
    for index in range(num_classes):
        only_class = torch.where(gt_labels == index, 0, -1)
        columns.append(decoded_iou_targets(boxes[:, index], gt_boxes, only_class, 1))
    return torch.cat(columns, dim=1)
