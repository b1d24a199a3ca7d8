"""How far the student's category predictions are from the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.distillation.config import SPACES


def category_loss(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor, space: str = "logits") -> Tensor:
    """Give the squared gap of the category predictions, averaged over each frame's samples, then over the frames.

    A frame without samples contributes 0. A NaN at a valid place makes the loss NaN, elsewhere it is ignored.
    Computed in at least float32, also under autocast.

    Args:
        student_logits: ``(B, K)`` one class logit a sample, with gradient.
        teacher_logits: ``(B, K)`` what it should have been; no gradient flows to it.
        valid: ``(B, K)`` bool, False where padded.
        space: compare ``logits``, or ``probability``, their sigmoids.

    Returns:
        A scalar; 0, connected to the student, where there is no sample at all.

    Raises:
        ValueError: where the shapes differ, or for an unknown space.

    Source:
        CaKDP, Eq. 1, with the mean over the frames of a batch instead of the sum over the data set.
    """
    if not student_logits.shape == teacher_logits.shape == valid.shape or student_logits.dim() != 2:
        shapes = ", ".join(str(tuple(item.shape)) for item in (student_logits, teacher_logits, valid))
        raise ValueError(f"expected student_logits, teacher_logits and valid of one shape (B, K), got {shapes}")
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}; valid spaces: {', '.join(SPACES)}")
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student = student_logits.to(dtype).masked_fill(~valid, 0)
    teacher = teacher_logits.detach().to(dtype).masked_fill(~valid, 0)
    if space == "probability":
        student, teacher = student.sigmoid(), teacher.sigmoid()
    per_frame = (student - teacher).square().sum(dim=1) / valid.sum(dim=1).clamp(min=1)
    return per_frame.sum() / max(len(per_frame), 1)
