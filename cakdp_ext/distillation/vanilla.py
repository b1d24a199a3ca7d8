"""The teacher's category predictions as soft targets: VanillaKD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cakdp_ext.distillation.comparison import TEACHER_ADVICE
from cakdp_ext.distillation.homogeneous import (
    box_terms,
    matched_logits,
    matched_rows,
    part_order,
    require_homogeneous,
    weights_of_parts,
)
from cakdp_ext.distillation.methods import DistillMethod, DistillOutput, Lesson, register_method
from cakdp_ext.distillation.representatives import check_finite
from cakdp_ext.taps import Taps
from cakdp_ext.types import PredictionSites, Role


@dataclass(frozen=True)
class VanillaConfig:
    """Keys of VanillaKD.

    Attributes:
        temperature: what the logits are divided by.
        box_weight: weight of the boxes' term against that of the categories; 0 leaves it out.
        positive_thresh: the teacher has found something where its best class scores above it; OpenPCDet's own score
            threshold by default.
    """

    temperature: float = 2.0
    box_weight: float = 0.0
    positive_thresh: float = 0.1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"TEMPERATURE must be a finite number above 0, got {self.temperature}")
        if not (math.isfinite(self.box_weight) and self.box_weight >= 0):
            raise ValueError(f"BOX_WEIGHT must be a finite number not below 0, got {self.box_weight}")
        if not 0 <= self.positive_thresh < 1:
            raise ValueError(f"POSITIVE_THRESH must lie in [0, 1), got {self.positive_thresh}")


@register_method("VanillaKD")
class VanillaKD(DistillMethod):
    """Pull every class prediction of the student towards the teacher's at the same place.

    The heads are homogeneous: anchor heads with the same anchors (in any order within a cell), or center heads of the
    same range; classes meet by name. The teacher's second stage, if it has one, is not asked.

    What the paper, which knows one softmax a picture, leaves open is decided so:

    * A class of these heads is a sigmoid of its own, so that a soft target is one probability a class, and the
      cross-entropy is that of two outcomes. The teacher's own entropy is taken off, which no gradient sees: the loss is
      the divergence, and 0 where student and teacher agree. As in the paper the square of the temperature multiplies
      it.
    * The terms of all places and classes of a batch are added and divided by the number of places where the teacher has
      found something (at least 1): a mean over all places, of which a few in a hundred thousand hold an object, would
      be next to nothing. Frames are not divided one by one: one in which nothing is found would outweigh all others.
    * Center heads of other strides: the target of a cell and class is the highest logit among the teacher's cells in
      it, as the peak of an object must not be lost; a coarser teacher's cell is the target of all cells in it.
    * Boxes, where asked for: smooth L1 of the regressed values at the places where the teacher has found something,
      weighted with its best score there, over the same divisor. An anchor's heading is compared by the sine of the
      difference, as the direction is a classification of its own, which is left to the task's loss.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2.
    """

    Config = VanillaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.taps = frozenset({Role.DENSE, Role.BOXES}) if config.box_weight > 0 else frozenset({Role.DENSE})

    def check(self, student: PredictionSites, teacher: PredictionSites) -> None:
        """Refuse heads that are not homogeneous."""
        require_homogeneous("VanillaKD", student, teacher, with_boxes=self.config.box_weight > 0)

    def forward(self, lesson: Lesson) -> DistillOutput:
        """Compare student and teacher on one batch.

        Args:
            lesson: gradient flows to the student's class logits and, with BOX_WEIGHT, to what it regresses.

        Returns:
            The loss, connected to the student.

        Raises:
            ConfigError: for heads that are not homogeneous.
            FloatingPointError: for a teacher that is not finite.
        """
        student, teacher = lesson.student, lesson.teacher
        check_finite(teacher.dense.cls_logits, "the teacher's class logits", TEACHER_ADVICE)
        targets = matched_logits(student.sites, teacher)
        found = targets.amax(dim=2).sigmoid() > self.config.positive_thresh
        loss = soft_target_loss(student.dense.cls_logits, targets, self.config.temperature).sum()
        if self.config.box_weight > 0:
            loss = loss + self.config.box_weight * self._boxes(student, teacher, targets).sum()
        return DistillOutput(loss / found.sum().clamp(min=1))

    def _boxes(self, student: Taps, teacher: Taps, targets: Tensor) -> Tensor:
        """Give the weighted terms ``(B, A, P)`` of the boxes of every part."""
        order = part_order(student.boxes, teacher.boxes)
        codes = matched_rows(student.sites, teacher.sites, teacher.boxes.values)[:, :, order]
        score = weights_of_parts(targets.sigmoid(), student.boxes, student.sites)
        weight = score.where(score > self.config.positive_thresh, 0)
        return weight * box_terms(student.boxes.values, codes, is_residual=student.sites.anchors is not None)


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Give the divergence of the student's softened sigmoids from the teacher's, times the squared temperature.

    Computed in at least float32; no gradient flows to the teacher.

    Args:
        student_logits: any shape, raw.
        teacher_logits: the same shape.
        temperature: what both are divided by.

    Returns:
        One term an entry, 0 where they agree.

    Source:
        Hinton et al. (2015), Eq. 1 and section 2.1, for two outcomes, minus the entropy of the target.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student = student_logits.to(dtype) / temperature
    teacher = teacher_logits.detach().to(dtype) / temperature
    target = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return temperature**2 * (cross - entropy)
