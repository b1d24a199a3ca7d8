"""What the IoU head is trained with."""

from __future__ import annotations

import torch
from torch import Tensor

ALL, POSITIVE = "all", "positive"
SAMPLES = (ALL, POSITIVE)


def iou_loss(iou_logits: Tensor, targets: Tensor, samples: str = ALL) -> Tensor:
    """Give the squared error of the predicted IoU over outputs of the head, per output whose label is above 0.

    A frame with no such output is divided by 1. Computed in at least float32, also under autocast.

    Args:
        iou_logits: ``(B, A, C)`` raw output of the IoU head.
        targets: ``(B, A, C)`` IoU labels in [0, 1]; no gradient flows to them.
        samples: which outputs are taught: ``all``, the paper's, or those with ``positive`` labels, as before it.

    Returns:
        A scalar, the mean over the B frames; 0 (connected to the logits) for empty inputs.

    Raises:
        ValueError: where the two shapes differ or are not three-dimensional.

    Source:
        CaKDP, Eq. 6 and section 3.4; the sigmoid and the mean over frames follow the released code.
    """
    if iou_logits.shape != targets.shape or iou_logits.dim() != 3:
        raise ValueError(
            f"expected iou_logits and targets of one shape (B, A, C), got {tuple(iou_logits.shape)} and "
            f"{tuple(targets.shape)}; build the targets with the number of classes of the head"
        )
    dtype = torch.promote_types(iou_logits.dtype, torch.float32)
    labels = targets.detach().to(dtype)
    errors, is_positive = (iou_logits.to(dtype).sigmoid() - labels).square(), labels > 0
    if samples == POSITIVE:
        errors = errors.where(is_positive | errors.isnan(), 0)  # NaN is not hidden
    num_positive = is_positive.sum(dim=(1, 2)).clamp(min=1)
    return (errors.sum(dim=(1, 2)) / num_positive).sum() / max(iou_logits.shape[0], 1)
