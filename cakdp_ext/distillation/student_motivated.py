"""The student asks, the teacher answers: student-motivated category-aware distillation (SKD)."""

from __future__ import annotations

from torch import Tensor, nn

from cakdp_ext.distillation.category import category_loss
from cakdp_ext.distillation.config import DistillConfig
from cakdp_ext.distillation.matching import SiteMatch, match_sites, rois_at
from cakdp_ext.distillation.methods import DistillOutput, register_method
from cakdp_ext.distillation.representatives import Representatives, check_finite, select_representatives
from cakdp_ext.types import DensePredictions, EncodedScene, PredictionSites, TwoStageTeacher

TEACHER_ADVICE = "check the teacher's checkpoint, or train without --use_amp"


@register_method("SKD")
class StudentMotivatedKD(nn.Module):
    """Pull the student's best class logit at its representatives towards the teacher's second stage (Eq. 1).

    It has no parameters and keeps nothing between calls. The teacher's own proposals are never used.
    """

    def __init__(self, config: DistillConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        student_predictions: DensePredictions,
        student_sites: PredictionSites,
        teacher: TwoStageTeacher,
        encoded: EncodedScene,
    ) -> DistillOutput:
        """Compare student and teacher on one batch.

        Args:
            student_predictions: of the student in training; gradient flows to its class logits only.
            student_sites: where they sit.
            teacher: asked for its second stage, unless no frame has a representative.
            encoded: ``teacher.encode`` of the same batch.

        Returns:
            alpha times Eq. 1; a finite zero, connected to the student, where there is no representative.

        Raises:
            ConfigError: where the predictions of student and teacher cannot be matched.
            FloatingPointError: where student or teacher is not finite.
            ValueError: where the teacher's predictions are not those of its sites, or where its second stage gives
                neither one logit a RoI nor one a class.
        """
        match = match_sites(student_sites, teacher.sites)
        chosen = select_representatives(student_predictions, self.config)
        student_logits = student_predictions.cls_logits.flatten(1).gather(
            1, chosen.indices * student_predictions.cls_logits.shape[2] + chosen.labels
        )
        teacher_logits = student_logits.detach()
        if chosen.valid.any():
            teacher_logits = _ask_teacher(teacher, encoded, chosen, match, student_sites.num_classes)
        loss = category_loss(student_logits, teacher_logits, chosen.valid, self.config.space)
        return DistillOutput(self.config.alpha * loss, chosen.valid.sum(dim=1))


def _ask_teacher(
    teacher: TwoStageTeacher, encoded: EncodedScene, chosen: Representatives, match: SiteMatch, num_classes: int
) -> Tensor:
    """Give the second stage's logit ``(B, K)`` for each representative.

    Frames of fewer than K are filled up with their first one: some teachers look for points around all RoIs of a frame,
    so that a box of nowhere would change what they say of the others.
    """
    first_stage = encoded.predictions
    indices = chosen.indices.where(chosen.valid, chosen.indices[:, :1])
    rois = rois_at(first_stage.boxes, match.teacher_indices(indices, first_stage.cls_logits))
    check_finite(rois[chosen.valid], "the coordinates of the teacher's RoIs", TEACHER_ADVICE)
    logits = _pick_class(teacher.refine(encoded, rois).detach(), chosen.labels, num_classes)
    check_finite(logits[chosen.valid], "the teacher's second-stage logits", TEACHER_ADVICE)
    return logits


def _pick_class(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    if logits.dim() != 3 or logits.shape[:2] != labels.shape or logits.shape[2] not in (1, num_classes):
        raise ValueError(
            f"expected second-stage class logits of shape {(*labels.shape, 1)} or {(*labels.shape, num_classes)}, "
            f"got {tuple(logits.shape)}; the teacher must know the student's classes"
        )
    return logits[:, :, 0] if logits.shape[2] == 1 else logits.gather(2, labels[:, :, None]).squeeze(2)
