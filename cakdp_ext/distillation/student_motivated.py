"""The student asks, the teacher answers: student-motivated category-aware distillation (SKD)."""

from __future__ import annotations

from torch import nn

from cakdp_ext.distillation.classes import class_order, to_teacher
from cakdp_ext.distillation.comparison import Samples, compare
from cakdp_ext.distillation.config import DistillConfig
from cakdp_ext.distillation.matching import match_sites, rois_at
from cakdp_ext.distillation.methods import DistillOutput, register_method
from cakdp_ext.distillation.representatives import select_representatives
from cakdp_ext.types import DensePredictions, EncodedScene, PredictionSites, TwoStageTeacher


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
        samples = self._samples(student_predictions, student_sites, teacher.sites, encoded.predictions)
        loss = compare(samples, student_predictions, teacher, encoded, self.config.space)
        return DistillOutput(self.config.alpha * loss, samples.valid.sum(dim=1))

    def _samples(
        self,
        student_predictions: DensePredictions,
        student_sites: PredictionSites,
        teacher_sites: PredictionSites,
        first_stage: DensePredictions,
    ) -> Samples:
        """Take the student's representatives, and the boxes that the teacher's first stage decodes there.

        Frames of fewer than K are filled up with their first one: some teachers look for points around all RoIs of a
        frame, so that a box of nowhere would change what they say of the others.
        """
        match = match_sites(student_sites, teacher_sites)
        chosen = select_representatives(student_predictions, self.config)
        indices = chosen.indices
        if indices.shape[1]:
            indices = indices.where(chosen.valid, indices[:, :1])
        rois = rois_at(first_stage.boxes, match.teacher_indices(indices, first_stage.cls_logits))
        theirs = to_teacher(chosen.labels, class_order(student_sites, teacher_sites))
        return Samples(chosen.indices, chosen.labels, theirs, rois, chosen.valid)
