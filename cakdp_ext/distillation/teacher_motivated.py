"""The teacher says where: teacher-motivated category-aware distillation (TKD), and both ways together (TSKD)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import TeacherRois
from cakdp_ext.distillation.cells import sites_by_cell
from cakdp_ext.distillation.classes import class_order, to_student
from cakdp_ext.distillation.comparison import TEACHER_ADVICE, Samples, compare
from cakdp_ext.distillation.config import SkdConfig
from cakdp_ext.distillation.matching import match_sites
from cakdp_ext.distillation.methods import DistillMethod, DistillOutput, Lesson, register_method
from cakdp_ext.distillation.representatives import check_finite
from cakdp_ext.distillation.student_motivated import StudentMotivatedKD
from cakdp_ext.types import PredictionSites, Role


@register_method("TKD")
class TeacherMotivatedKD(DistillMethod):
    """Pull the student's logit where the teacher's own RoIs are towards what its second stage says of them.

    The class compared is the one that the teacher's first stage gave the RoI. It has no parameters and keeps nothing
    between calls; of the keys only SPACE is asked.

    Source: CaKDP (Zhang et al., CVPR 2024), section 3.2 and Fig. 3(a).
    """

    Config = SkdConfig
    taps = frozenset({Role.DENSE, Role.SECOND_STAGE})

    def check(self, student: PredictionSites, teacher: PredictionSites) -> None:
        """Refuse predictions that cannot be matched."""
        match_sites(student, teacher)

    def forward(self, lesson: Lesson) -> DistillOutput:
        """Compare student and teacher on one batch.

        Args:
            lesson: gradient flows to the class logits of its student only; the second stage is asked for its RoIs, and
                once for what it makes of them.

        Returns:
            Eq. 1 over the RoIs that lie on the student's map; a finite zero, connected to the student, where there is
            none.

        Raises:
            ConfigError: where the predictions of student and teacher cannot be matched, or for a teacher that proposes
                nothing.
            FloatingPointError: where student or teacher is not finite.
            ValueError: where the teacher's second stage gives neither one logit a RoI nor one a class.
        """
        predictions, sites, theirs = lesson.student.dense, lesson.student.sites, lesson.teacher.sites
        advice = "lower the learning rate, or look for a bad frame or batch norm"
        check_finite(predictions.cls_logits.detach(), "the student's class logits", advice)
        found = lesson.second_stage.propose()
        check_finite(found.rois[found.is_valid], "the coordinates of the teacher's RoIs", TEACHER_ADVICE)
        labels = to_student(found.labels.where(found.is_valid, 0), class_order(sites, theirs))
        indices, valid = sites_of_rois(found, labels, sites, theirs, predictions.cls_logits)
        samples = Samples(indices, labels, found.labels.where(found.is_valid, 0), found.rois, valid)
        loss = compare(samples, predictions, lesson.second_stage, self.config.space)
        return DistillOutput(loss, valid.sum(dim=1))


@register_method("TSKD")
class JointKD(DistillMethod):
    """Add SKD and TKD, each averaged over its own samples.

    The second stage is asked for each by itself: some teachers look at all RoIs of a frame together.

    Source: CaKDP (Zhang et al., CVPR 2024), section 5.1, "TKD-SKD joint mode".
    """

    Config = SkdConfig
    taps = frozenset({Role.DENSE, Role.SECOND_STAGE})

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ways = nn.ModuleList([StudentMotivatedKD(config), TeacherMotivatedKD(config)])

    def check(self, student: PredictionSites, teacher: PredictionSites) -> None:
        """Refuse predictions that cannot be matched."""
        match_sites(student, teacher)

    def forward(self, lesson: Lesson) -> DistillOutput:
        """Compare student and teacher on one batch; errors as of the two."""
        outputs: list[DistillOutput] = [way(lesson) for way in self.ways]
        counts = torch.stack(
            [output.num_representatives for output in outputs if output.num_representatives is not None]
        )
        return DistillOutput(torch.stack([output.loss for output in outputs]).sum(), counts.sum(dim=0))


@torch.no_grad()
def sites_of_rois(
    found: TeacherRois,
    labels: Tensor,
    student_sites: PredictionSites,
    teacher_sites: PredictionSites,
    student_logits: Tensor,
) -> tuple[Tensor, Tensor]:
    """Find the student's prediction for every RoI of the teacher.

    Between two anchor heads it is the one at the RoI's own anchor. Where either is a center head it lies in the cell of
    the student's map that holds the RoI's centre; of several there, the one that is surest of the RoI's class, and the
    first among equals.

    Args:
        found: the RoIs.
        labels: ``(B, K)`` int64, their classes as the student counts them.
        student_sites: where its predictions sit.
        teacher_sites: where those of the teacher's first stage sit.
        student_logits: ``(B, A, C)``.

    Returns:
        ``indices (B, K)`` int64, which of the A, and ``valid (B, K)`` bool, False for padding and for what lies beyond
        the student's map.

    Raises:
        ConfigError: for anchors that differ, or for RoIs that nobody knows the anchors of.
    """
    if student_sites.anchors is None or teacher_sites.anchors is None:
        return _by_position(found, labels, student_sites.centers, student_logits)
    if found.indices is None:
        raise ConfigError("the teacher has anchors, but its propose does not say which of them its RoIs come from")
    match = match_sites(teacher_sites, student_sites)
    indices = match.teacher_indices(found.indices.where(found.is_valid, 0), student_logits)
    return indices, found.is_valid


def _by_position(found: TeacherRois, labels: Tensor, centers: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    rows, is_there = sites_by_cell(centers).at(found.rois[..., :2].flatten(0, 1))
    rows = rows.view(*labels.shape, -1)
    frames = torch.arange(len(labels), device=labels.device)[:, None, None]
    surest = logits.detach()[frames, rows, labels[:, :, None]].argmax(dim=2, keepdim=True)
    return rows.gather(2, surest).squeeze(2), found.is_valid & is_there.view(labels.shape)
