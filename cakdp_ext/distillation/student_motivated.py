"""The student asks, the teacher answers: student-motivated category-aware distillation (SKD)."""

from __future__ import annotations

from cakdp_ext.distillation.classes import class_order, to_teacher
from cakdp_ext.distillation.comparison import Samples, compare
from cakdp_ext.distillation.config import SkdConfig
from cakdp_ext.distillation.matching import match_sites, rois_at
from cakdp_ext.distillation.methods import DistillMethod, DistillOutput, Lesson, register_method
from cakdp_ext.distillation.representatives import select_representatives
from cakdp_ext.types import DensePredictions, PredictionSites, Role


@register_method("SKD")
class StudentMotivatedKD(DistillMethod):
    """Pull the student's best class logit at its representatives towards the teacher's second stage (Eq. 1).

    It has no parameters and keeps nothing between calls. The teacher's own proposals are never used.
    """

    Config = SkdConfig
    taps = frozenset({Role.DENSE, Role.SECOND_STAGE})

    def check(self, student: PredictionSites, teacher: PredictionSites) -> None:
        """Refuse predictions that cannot be matched."""
        match_sites(student, teacher)

    def forward(self, lesson: Lesson) -> DistillOutput:
        """Compare student and teacher on one batch.

        Args:
            lesson: gradient flows to the class logits of its student only; the second stage is asked once, unless no
                frame has a representative.

        Returns:
            Eq. 1; a finite zero, connected to the student, where there is no representative.

        Raises:
            ConfigError: where the predictions of student and teacher cannot be matched.
            FloatingPointError: where student or teacher is not finite.
            ValueError: where the teacher's predictions are not those of its sites, or where its second stage gives
                neither one logit a RoI nor one a class.
        """
        samples = self._samples(lesson.student.dense, lesson.student.sites, lesson.teacher.sites, lesson.teacher.dense)
        loss = compare(samples, lesson.student.dense, lesson.second_stage, self.config.space)
        return DistillOutput(loss, samples.valid.sum(dim=1))

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
