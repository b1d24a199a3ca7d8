"""Few positions, better labels and a better start: SparseKD."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.config import ConfigError
from cakdp_ext.distillation.classes import class_order, to_student
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
from cakdp_ext.distillation.pivots import best_positions, confident_positions, positions_around
from cakdp_ext.distillation.representatives import check_finite
from cakdp_ext.taps import Taps
from cakdp_ext.types import Batch, PredictionSites, Role

PIVOTS = ("confidence", "rank", "gaussian", "none")
TEACHER_WEIGHTS = ("largest", "first", "none")
MOST_LABELS = 500


@dataclass(frozen=True)
class SparseKdConfig:
    """Keys of SparseKD; each of its three parts can be left out.

    Attributes:
        pivot: which positions the logits are compared at: ``confidence``: where the teacher scores above PIVOT_THRESH;
            ``rank``: the PIVOT_COUNT where it scores highest; ``gaussian``: around the objects' centres, weighted;
            ``none``: no logits are compared.
        pivot_thresh: for ``confidence``.
        pivot_count: for ``rank``, of each frame.
        class_weight: weight of the categories' term.
        box_weight: weight of the boxes' term; 0 leaves it out.
        labels: whether the teacher's confident detections join the objects that the student is to find.
        label_thresh: they score above it.
        label_nms_thresh: bird's-eye-view IoU of the rotated, class-agnostic NMS among them.
        teacher_weights: what the student's first weights are: those of the teacher's filters with the ``largest``
            weights, of its ``first`` filters, or with ``none`` its own.
    """

    pivot: str = "confidence"
    pivot_thresh: float = 0.1
    pivot_count: int = 500
    class_weight: float = 10.0
    box_weight: float = 0.2
    labels: bool = True
    label_thresh: float = 0.6
    label_nms_thresh: float = 0.1
    teacher_weights: str = "largest"

    def __post_init__(self) -> None:
        for name, known in (("pivot", PIVOTS), ("teacher_weights", TEACHER_WEIGHTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name.upper()} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if type(self.labels) is not bool:
            raise ValueError(f"LABELS must be True or False, got {self.labels!r}")
        if type(self.pivot_count) is not int or self.pivot_count < 1:
            raise ValueError(f"PIVOT_COUNT must be a whole number of at least 1, got {self.pivot_count!r}")
        for name in ("pivot_thresh", "label_thresh", "label_nms_thresh"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name.upper()} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("class_weight", "box_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name.upper()} must be a finite number not below 0, got {getattr(self, name)}")
        if self.pivot == "none" and not self.labels and self.teacher_weights == "none":
            raise ValueError("PIVOT none, LABELS False and TEACHER_WEIGHTS none leave nothing of SparseKD; keep a part")


@register_method("SparseKD")
class SparseKD(DistillMethod):
    """Compare logits at pivotal positions, let the teacher add labels, and start from the teacher's weights.

    The heads are homogeneous, as for VanillaKD, unless ``PIVOT: none``. The student is usually a narrow one
    (MODEL.WIDTH). The paper's parts:

    * Pivotal position logit KD: the scores of all classes are compared where the teacher says that there is something.
      The paper tells three kinds of such positions, which are ``PIVOT``; what it recommends are those that the
      teacher's own classification tells.
    * Label assignment distillation: detections of the teacher that score above ``LABEL_THRESH`` join the ground truth
      before the student's targets are assigned. They are what NMS leaves of its first stage; a detection of an object
      of the ground truth stands beside it, and each anchor or peak learns the one that fits it better.
    * Teacher guided initialisation: each layer of both backbones starts from as many filters of the teacher's layer of
      the same name as it has; the head too, where it is the same head. Which filters: the ``first``, or those with the
      ``largest`` sum of absolute weights. Layers that sums tie together keep the same ones, by their common sum. A
      student that has trained weights already, inherited by MODEL.PRUNING or from ``--pretrained_model``, keeps those.

    What the paper leaves open, or does for center heads alone, is decided so:

    * Categories: squared differences of the scores, weight 10, as the authors' configurations have it for heat maps,
      for anchors too. The boxes' term is smooth L1 of what the heads regress, an anchor's heading by the sine of the
      difference, weight 0.2. The terms of a frame are divided by the sum of its positions' weights (at least 1), and
      averaged over the frames.
    * The boxes of a head with several parts are compared where a class of that part makes the position pivotal.
    * The Gaussian is that of the object's own box, turned with it, as anchor heads know no radius of peaks. Objects are
      the ground truth and, with ``LABELS``, the teacher's.
    * ``PIVOT_THRESH`` is OpenPCDet's threshold of detections, ``PIVOT_COUNT`` the most of them that it gives
      of a frame.
    * Its distillation of features is a hint of its own and not part of these three; give another method beside this one
      to have it.

    Source: Yang et al., Towards Efficient 3D Object Detection with Knowledge Distillation (NeurIPS 2022).
    """

    Config = SparseKdConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.compares_boxes = config.pivot != "none" and config.box_weight > 0
        self.taps = frozenset({Role.DENSE, Role.BOXES}) if self.compares_boxes else frozenset({Role.DENSE})
        self.inherits = None if config.teacher_weights == "none" else config.teacher_weights

    def check(self, student: PredictionSites, teacher: PredictionSites) -> None:
        """Refuse other classes and, where logits are compared, heads that are not homogeneous."""
        if self.config.labels and not (student.class_names and teacher.class_names):
            raise ConfigError("LABELS: True needs heads that tell the classes apart; set CLASS_AGNOSTIC: False")
        if self.config.pivot == "none":
            class_order(student, teacher)
        else:
            require_homogeneous("SparseKD", student, teacher, with_boxes=self.compares_boxes)

    @torch.no_grad()
    def targets(self, batch: Batch, teacher: Taps, student: PredictionSites) -> Batch:
        """Add the teacher's confident detections to the objects of a batch, behind those that are there.

        Raises:
            FloatingPointError: for a teacher that is not finite.
        """
        if not self.config.labels:
            return batch
        predictions = teacher.dense
        check_finite(predictions.cls_logits, "the teacher's class logits", TEACHER_ADVICE)
        best = predictions.cls_logits.float().sigmoid().max(dim=2)
        found = best.values > self.config.label_thresh
        frames, rows, ranks = ops.nms_in_frames(
            predictions.boxes, best.values, found, self.config.label_nms_thresh, post_max=MOST_LABELS
        )
        most = int(ranks.max()) + 1 if len(ranks) else 0
        boxes = batch.gt_boxes.new_zeros(len(best.values), most, 7)
        labels = batch.gt_labels.new_full((len(best.values), most), -1)
        boxes[frames, ranks] = predictions.boxes[frames, rows].to(boxes)
        labels[frames, ranks] = to_student(best.indices[frames, rows], class_order(student, teacher.sites))
        return _joined(batch, boxes, labels)

    def forward(self, lesson: Lesson) -> DistillOutput:
        """Compare the logits of student and teacher at the pivotal positions of one batch.

        Args:
            lesson: gradient flows to the student's class logits and, with BOX_WEIGHT, to what it regresses.

        Returns:
            The loss, connected to the student, and how many positions of each frame are pivotal, if they are counted.

        Raises:
            ConfigError: for heads that are not homogeneous.
            FloatingPointError: for a teacher that is not finite.
        """
        student, teacher, config = lesson.student, lesson.teacher, self.config
        logits = student.dense.cls_logits
        if config.pivot == "none":
            return DistillOutput(logits.flatten()[:0].float().sum())
        check_finite(teacher.dense.cls_logits, "the teacher's class logits", TEACHER_ADVICE)
        targets = matched_logits(student.sites, teacher).float().sigmoid()
        weights = self._weights(lesson, targets)
        positions = weights.amax(dim=2)
        divisor = positions.sum(dim=1).clamp(min=1)
        gaps = (logits.float().sigmoid() - targets).square().sum(dim=2)
        loss = config.class_weight * ((positions * gaps).sum(dim=1) / divisor).mean()
        if self.compares_boxes:
            terms = self._boxes(student, teacher, weights).sum(dim=(1, 2))
            loss = loss + config.box_weight * (terms / divisor).mean()
        return DistillOutput(loss, None if config.pivot == "gaussian" else (positions > 0).sum(dim=1))

    def _weights(self, lesson: Lesson, scores: Tensor) -> Tensor:
        """Weigh the places and classes ``(B, A, C)`` at which the teacher's scores are ``scores``."""
        if self.config.pivot == "confidence":
            return confident_positions(scores, self.config.pivot_thresh)
        if self.config.pivot == "rank":
            return best_positions(scores, self.config.pivot_count)
        sites = lesson.student.sites
        return positions_around(self.targets(lesson.batch, lesson.teacher, sites), sites)

    def _boxes(self, student: Taps, teacher: Taps, weights: Tensor) -> Tensor:
        """Give the weighted terms ``(B, A, P)`` of the boxes of every part."""
        order = part_order(student.boxes, teacher.boxes)
        codes = matched_rows(student.sites, teacher.sites, teacher.boxes.values)[:, :, order]
        terms = box_terms(student.boxes.values, codes, is_residual=student.sites.anchors is not None)
        return weights_of_parts(weights, student.boxes, student.sites) * terms


def _joined(batch: Batch, boxes: Tensor, labels: Tensor) -> Batch:
    """Put objects ``(B, K, 7)`` behind those of a batch, and all padding behind both."""
    boxes, labels = torch.cat([batch.gt_boxes, boxes], dim=1), torch.cat([batch.gt_labels, labels], dim=1)
    is_object = labels >= 0
    order = (~is_object).int().argsort(dim=1, stable=True)[:, : int(is_object.sum(dim=1).max())]
    return dataclasses.replace(
        batch,
        gt_boxes=torch.take_along_dim(boxes, order[..., None], dim=1),
        gt_labels=labels.gather(1, order),
    )
