"""The teacher says where: teacher-motivated category-aware distillation (TKD), and both ways together (TSKD)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation.cells import sites_by_cell
from cakdp_ext.distillation.classes import class_order, to_student
from cakdp_ext.distillation.comparison import TEACHER_ADVICE, Samples, compare
from cakdp_ext.distillation.config import DistillConfig
from cakdp_ext.distillation.matching import match_sites
from cakdp_ext.distillation.methods import DistillOutput, register_method
from cakdp_ext.distillation.representatives import check_finite
from cakdp_ext.distillation.student_motivated import StudentMotivatedKD
from cakdp_ext.types import DensePredictions, EncodedScene, PredictionSites, ProposingTeacher, TeacherRois


@register_method("TKD")
class TeacherMotivatedKD(nn.Module):
    """Pull the student's logit where the teacher's own RoIs are towards what its second stage says of them.

    The class compared is the one that the teacher's first stage gave the RoI. It has no parameters and keeps nothing
    between calls; of the config only ALPHA and SPACE are asked.

    Source: CaKDP (Zhang et al., CVPR 2024), section 3.2 and Fig. 3(a).
    """

    def __init__(self, config: DistillConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        student_predictions: DensePredictions,
        student_sites: PredictionSites,
        teacher: ProposingTeacher,
        encoded: EncodedScene,
    ) -> DistillOutput:
        """Compare student and teacher on one batch.

        Args:
            student_predictions: of the student in training; gradient flows to its class logits only.
            student_sites: where they sit.
            teacher: asked for its RoIs, and once for what it makes of them.
            encoded: ``teacher.encode`` of the same batch.

        Returns:
            alpha times Eq. 1 over the RoIs that lie on the student's map; a finite zero, connected to the student,
            where there is none.

        Raises:
            ConfigError: where the predictions of student and teacher cannot be matched, or for a teacher that proposes
                nothing.
            FloatingPointError: where student or teacher is not finite.
            ValueError: where the teacher's second stage gives neither one logit a RoI nor one a class.
        """
        advice = "lower the learning rate, or look for a bad frame or batch norm"
        check_finite(student_predictions.cls_logits.detach(), "the student's class logits", advice)
        found = teacher.propose(encoded)
        check_finite(found.rois[found.is_valid], "the coordinates of the teacher's RoIs", TEACHER_ADVICE)
        order = class_order(student_sites, teacher.sites)
        labels = to_student(found.labels.where(found.is_valid, 0), order)
        indices, valid = sites_of_rois(found, labels, student_sites, teacher.sites, student_predictions.cls_logits)
        samples = Samples(indices, labels, found.labels.where(found.is_valid, 0), found.rois, valid)
        loss = compare(samples, student_predictions, teacher, encoded, self.config.space)
        return DistillOutput(self.config.alpha * loss, valid.sum(dim=1))


@register_method("TSKD")
class JointKD(nn.Module):
    """Add SKD and TKD, each averaged over its own samples.

    The second stage is asked for each by itself: some teachers look at all RoIs of a frame together.

    Source: CaKDP (Zhang et al., CVPR 2024), section 5.1, "TKD-SKD joint mode".
    """

    def __init__(self, config: DistillConfig) -> None:
        super().__init__()
        self.ways = nn.ModuleList([StudentMotivatedKD(config), TeacherMotivatedKD(config)])

    def forward(
        self,
        student_predictions: DensePredictions,
        student_sites: PredictionSites,
        teacher: ProposingTeacher,
        encoded: EncodedScene,
    ) -> DistillOutput:
        """Compare student and teacher on one batch; arguments and errors as of the two."""
        outputs = [way(student_predictions, student_sites, teacher, encoded) for way in self.ways]
        counts = torch.stack([output.num_representatives for output in outputs])
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
