"""What student and teacher disagree on most, by features, relations and responses: GID."""

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
)
from cakdp_ext.distillation.instances import Instances, owners, sample_boxes, select_instances
from cakdp_ext.distillation.methods import DistillMethod, DistillOutput, Lesson, register_method
from cakdp_ext.distillation.projector import RowProjector
from cakdp_ext.distillation.representatives import STUDENT_ADVICE, check_finite
from cakdp_ext.distillation.vanilla import soft_target_loss
from cakdp_ext.taps import BoxCodes, Taps
from cakdp_ext.types import PredictionSites, Role


@dataclass(frozen=True)
class GidConfig:
    """Keys of GID.

    Attributes:
        num_instances: so many general instances of a frame are compared.
        instance_nms_thresh: bird's-eye-view IoU above which the one of smaller difference is redundant.
        instance_pre_maxsize: so many places of a frame go into that NMS.
        instance_iou: an anchor belongs to an instance that it overlaps by as much.
        roi_grid: points along either edge of a box at which the maps are read.
        feature_weight: weight of the features' term; 0 leaves it out.
        relation_weight: weight of the relations' term; 0 leaves it out.
        response_weight: weight of the responses' term; 0 leaves it out.
        box_weight: within that term, weight of the boxes against the categories; 0 leaves them out.
    """

    num_instances: int = 10
    instance_nms_thresh: float = 0.3
    instance_pre_maxsize: int = 1000
    instance_iou: float = 0.6
    roi_grid: int = 7
    feature_weight: float = 5e-4
    relation_weight: float = 1.0
    response_weight: float = 1.0
    box_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_instances", "instance_pre_maxsize", "roi_grid"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name.upper()} must be a whole number of at least 1, got {value!r}")
        for name in ("instance_nms_thresh", "instance_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name.upper()} must lie in [0, 1], got {getattr(self, name)}")
        weights = ("feature_weight", "relation_weight", "response_weight", "box_weight")
        for name in weights:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name.upper()} must be a finite number not below 0, got {getattr(self, name)}")
        if not any(getattr(self, name) for name in weights[:3]):
            raise ValueError("FEATURE_WEIGHT, RELATION_WEIGHT and RESPONSE_WEIGHT are all 0; give one a weight")


@register_method("GID")
class GeneralInstanceKD(DistillMethod):
    """Compare student and teacher where their scores differ most, whatever the ground truth says there.

    The heads are homogeneous, as for VanillaKD. The teacher's second stage, if it has one, is not asked: of a two-stage
    detector the paper takes the first stage too. In each frame the general instances are selected as the paper says
    (Eq. 1-3), with rotated boxes in the bird's-eye view for its boxes in the picture. The three terms of a frame:

    * feature (Eq. 4): the mean over the instances of the distance of the student's features from the teacher's, all
      numbers of an instance together. Both are read off the map in front of the dense head, the only level that these
      detectors have, at ``ROI_GRID`` x ``ROI_GRID`` points of the rotated box.
    * relation (Eq. 5, 6): smooth L1 between the distances of each two instances from one another, each side's divided
      by their mean.
    * response: at the places that belong to an instance, the categories and ``BOX_WEIGHT`` times the boxes, divided by
      the number of these places.

    What the paper leaves open, or what is another thing with points, is decided so:

    * How the maps are read: one bilinear sample in the middle of each of 7 x 7 equal parts of a box, the usual size of
      RoIAlign. Most boxes of pedestrians span fewer cells than that.
    * The linear adaption is one of channels, the same at every point, and is not there where student and teacher have
      the same channels: then nothing stands between a student that agrees and a loss of 0. Its output goes into both
      the feature and the relation term.
    * The relations' term is the mean over the pairs, not their sum, so that its weight means the same for few instances
      as for many.
    * Which places belong to an instance: the paper asks the detector's own assignment. Its thresholds are each class's
      own and an instance has no class that all agree on, so anchors are held to one, ``INSTANCE_IOU``. A center head
      assigns peaks; here the paper's rule for FCOS stands, the cells within the box. The place where an instance was
      found always belongs to it.
    * Categories: a soft target of one sigmoid a class asks for the divergence, as in VanillaKD at temperature 1. The
      focal loss that heads use against imbalance has nothing to balance among so few places.
    * Boxes: smooth L1 of what the heads regress, an anchor's heading by the sine of the difference; of a head of
      several parts the one of the instance's class.
    * ``NUM_INSTANCES``, ``INSTANCE_NMS_THRESH`` and ``FEATURE_WEIGHT`` are the paper's. Its other weights belong to
      sums that are means here; those here make features and relations equally large at the start of a training on the
      generated scenes (0.14 and 0.15, beside 2.8 for the responses and 3.1 for the task).
    * All terms are averaged over the frames of a batch.

    Source: Dai et al., General Instance Distillation for Object Detection (CVPR 2021).
    """

    Config = GidConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        roles = {Role.DENSE}
        self.reads_maps = config.feature_weight > 0 or config.relation_weight > 0
        self.compares_boxes = config.response_weight > 0 and config.box_weight > 0
        if self.reads_maps:
            roles.add(Role.BEV)
        if self.compares_boxes:
            roles.add(Role.BOXES)
        self.taps = frozenset(roles)
        self.adaption: RowProjector | None = None

    def check(self, student: PredictionSites, teacher: PredictionSites) -> None:
        """Refuse heads that are not homogeneous."""
        require_homogeneous("GID", student, teacher, with_boxes=self.compares_boxes)

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """Make the linear adaption, where the maps have other channels."""
        if self.reads_maps:
            rows = (taps.bev.features.flatten(2)[0].T for taps in (student, teacher))
            self.adaption = RowProjector(*rows)

    def forward(self, lesson: Lesson) -> DistillOutput:
        """Compare student and teacher on one batch.

        Args:
            lesson: gradient flows to the student's last map, its class logits and what it regresses.

        Returns:
            The loss, connected to the student, and the number of instances of each frame.

        Raises:
            ConfigError: for heads that are not homogeneous.
            FloatingPointError: for class logits that are not finite.
        """
        student, teacher, config = lesson.student, lesson.teacher, self.config
        check_finite(student.dense.cls_logits, "the student's class logits", STUDENT_ADVICE)
        check_finite(teacher.dense.cls_logits, "the teacher's class logits", TEACHER_ADVICE)
        targets = matched_logits(student.sites, teacher)
        instances = select_instances(
            student,
            teacher,
            targets,
            most=config.num_instances,
            pre_max=config.instance_pre_maxsize,
            nms_thresh=config.instance_nms_thresh,
        )
        loss = student.dense.cls_logits.new_zeros(())
        if self.reads_maps:
            ours, theirs = self._features(student, teacher, instances)
            loss = loss + config.feature_weight * feature_loss(ours, theirs, instances.valid)
            loss = loss + config.relation_weight * relation_loss(ours, theirs, instances.valid)
        if config.response_weight > 0:
            loss = loss + config.response_weight * self._response(student, teacher, targets, instances)
        return DistillOutput(loss, instances.valid.sum(dim=1))

    def _features(self, student: Taps, teacher: Taps, instances: Instances) -> tuple[Tensor, Tensor]:
        """Give the features ``(B, K, D)`` of the instances, the student's adapted."""
        size = self.config.roi_grid
        ours = sample_boxes(student.bev.features, student.sites, instances.boxes, size)
        theirs = sample_boxes(teacher.bev.features.detach(), teacher.sites, instances.boxes, size)
        if self.adaption is None:
            raise RuntimeError("GID has not seen its detectors; call Distiller.prepare before the first step")
        return self.adaption(ours).float().flatten(2), theirs.flatten(2)

    def _response(self, student: Taps, teacher: Taps, targets: Tensor, instances: Instances) -> Tensor:
        owner = owners(instances, student.sites, self.config.instance_iou)
        frames, places = (owner >= 0).nonzero(as_tuple=True)
        logits = student.dense.cls_logits[frames, places]
        terms = soft_target_loss(logits, targets[frames, places], 1.0).sum(dim=1)
        if self.compares_boxes:
            parts = _part_of_labels(student.boxes, student.sites)
            part = parts.to(owner)[instances.labels.gather(1, owner.clamp(min=0))][frames, places]
            order = part_order(student.boxes, teacher.boxes)
            codes = matched_rows(student.sites, teacher.sites, teacher.boxes.values)[:, :, order]
            ours, theirs = (values[frames, places, part] for values in (student.boxes.values, codes))
            is_residual = student.sites.anchors is not None
            terms = terms + self.config.box_weight * box_terms(ours, theirs, is_residual=is_residual)
        return (terms / (owner >= 0).sum(dim=1)[frames]).sum() / len(owner)


def feature_loss(ours: Tensor, theirs: Tensor, valid: Tensor) -> Tensor:
    """Give the mean distance of the student's features from the teacher's, of each frame and then of all.

    Args:
        ours: ``(B, K, D)`` with gradient.
        theirs: ``(B, K, D)``.
        valid: ``(B, K)`` bool, which count.

    Source:
        Dai et al. (2021), Eq. 4.
    """
    distances = torch.linalg.vector_norm(theirs - ours, dim=2) * valid
    return (distances.sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()


def relation_loss(ours: Tensor, theirs: Tensor, valid: Tensor) -> Tensor:
    """Compare how far from one another the instances of a frame are, each side measured by its own mean.

    Args:
        ours: ``(B, K, D)`` with gradient.
        theirs: ``(B, K, D)``.
        valid: ``(B, K)`` bool, which count.

    Returns:
        The mean over the pairs of a frame, then over the frames; a frame of fewer than two instances counts 0.

    Source:
        Dai et al. (2021), Eq. 5 and 6.
    """
    is_pair = (valid[:, :, None] & valid[:, None]) & ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    num_pairs = is_pair.sum(dim=(1, 2)).clamp(min=1)
    terms = F.smooth_l1_loss(
        _relative_distances(ours, is_pair, num_pairs),
        _relative_distances(theirs, is_pair, num_pairs),
        reduction="none",
    )
    return ((terms * is_pair).sum(dim=(1, 2)) / num_pairs).mean()


def _relative_distances(features: Tensor, is_pair: Tensor, num_pairs: Tensor) -> Tensor:
    """Give the distances ``(B, K, K)`` of each two rows, over the mean distance of a frame's pairs."""
    with torch.autocast(features.device.type, enabled=False):
        distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    mean = (distances * is_pair).sum(dim=(1, 2)) / num_pairs
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)[:, None, None]


def _part_of_labels(boxes: BoxCodes, sites: PredictionSites) -> Tensor:
    """Give, for each class of the student, which part of its head regresses its boxes."""
    if len(boxes.parts) == 1:
        return torch.zeros(sites.num_classes, dtype=torch.int64)
    parts = [next(i for i, names in enumerate(boxes.parts) if name in names) for name in sites.class_names]
    return torch.tensor(parts)
