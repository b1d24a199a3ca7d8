"""How far is the student from what the teacher's second stage says? Eq. 1 at chosen samples, whoever chose them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cakdp_ext.distillation.category import category_loss
from cakdp_ext.distillation.representatives import check_finite
from cakdp_ext.distillation.teacher import SecondStage
from cakdp_ext.types import DensePredictions

TEACHER_ADVICE = "check the teacher's checkpoint, or train without --use_amp"


@dataclass(frozen=True)
class Samples:
    """Where student and teacher are compared, padded to K a frame.

    Attributes:
        indices: ``(B, K)`` int64, which of the student's predictions.
        labels: ``(B, K)`` int64, which of the student's classes.
        teacher_labels: ``(B, K)`` int64, the teacher's label of the same class.
        rois: ``(B, K, 7)``, what the teacher's second stage is asked about, padding included.
        valid: ``(B, K)`` bool, False for what is not compared.
    """

    indices: Tensor
    labels: Tensor
    teacher_labels: Tensor
    rois: Tensor
    valid: Tensor


def compare(samples: Samples, predictions: DensePredictions, second_stage: SecondStage, space: str) -> Tensor:
    """Give Eq. 1 between the student's logits at the samples and the teacher's second stage on their RoIs.

    Args:
        samples: where.
        predictions: of the student; gradient flows to its class logits only.
        second_stage: of the teacher on the same batch; asked once, unless no frame has a sample.
        space: see :func:`category_loss`.

    Returns:
        A scalar; a finite zero, connected to the student, where there is no sample.

    Raises:
        FloatingPointError: for RoIs or answers of the teacher that are not finite.
        ValueError: for a second stage that gives neither one logit a RoI nor one a class.
    """
    logits = predictions.cls_logits
    student = logits.flatten(1).gather(1, samples.indices * logits.shape[2] + samples.labels)
    judged = student.detach()
    if samples.valid.any():
        check_finite(samples.rois[samples.valid], "the coordinates of the teacher's RoIs", TEACHER_ADVICE)
        answer = second_stage.refine(samples.rois).detach()
        judged = _pick_class(answer, samples.teacher_labels, logits.shape[2])
        check_finite(judged[samples.valid], "the teacher's second-stage logits", TEACHER_ADVICE)
    return category_loss(student, judged, samples.valid, space)


def _pick_class(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    if logits.dim() != 3 or logits.shape[:2] != labels.shape or logits.shape[2] not in (1, num_classes):
        raise ValueError(
            f"expected second-stage class logits of shape {(*labels.shape, 1)} or {(*labels.shape, num_classes)}, "
            f"got {tuple(logits.shape)}; the teacher must know the student's classes"
        )
    return logits[:, :, 0] if logits.shape[2] == 1 else logits.gather(2, labels[:, :, None]).squeeze(2)
