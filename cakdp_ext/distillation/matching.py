"""Where the teacher looks for what the student says: from a student's prediction to the teacher's RoI."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation.cells import sites_in_cells
from cakdp_ext.distillation.classes import class_order
from cakdp_ext.distillation.representatives import check_finite
from cakdp_ext.types import PredictionSites

ANCHOR_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SiteMatch:
    """Which predictions of the teacher's first stage answer for those of the student.

    Attributes:
        num_teacher_sites: predictions T of the teacher.
        candidates: ``(A, n)`` int64, for each prediction of the student those of the teacher in its cell; None where
            prediction i of the teacher answers for prediction i of the student.
    """

    num_teacher_sites: int
    candidates: Tensor | None = None

    @torch.no_grad()
    def teacher_indices(self, indices: Tensor, teacher_logits: Tensor) -> Tensor:
        """Choose, among the candidates of each representative, the one with the highest score of its best class.

        Among equals the first counts. No gradient flows.

        Args:
            indices: ``(B, K)`` int64, which predictions of the student.
            teacher_logits: ``(B, T, C)`` class logits of the teacher's first stage.

        Returns:
            ``(B, K)`` int64, which of the T; K = 0 gives none.

        Raises:
            ValueError: for logits of another number of predictions than the teacher's sites.
            FloatingPointError: for candidates whose best logit is not finite.
        """
        if teacher_logits.dim() != 3 or teacher_logits.shape[1] != self.num_teacher_sites:
            raise ValueError(
                f"expected teacher_logits of shape (B, {self.num_teacher_sites}, C), got "
                f"{tuple(teacher_logits.shape)}; the teacher's sites and its predictions must be of the same map"
            )
        if self.candidates is None:
            return indices
        rows = self.candidates[indices]
        frames = torch.arange(len(rows), device=rows.device)[:, None, None]
        scores = teacher_logits[frames, rows].amax(dim=3)
        check_finite(scores, "the teacher's first-stage class logits", "check the teacher's checkpoint")
        return rows.gather(2, scores.argmax(dim=2, keepdim=True)).squeeze(2)


def match_sites(student_sites: PredictionSites, teacher_sites: PredictionSites) -> SiteMatch:
    """Decide for every prediction of the student where the teacher's first stage is asked.

    Between two anchor heads prediction i answers for prediction i, see :func:`check_sites`, or, where the teacher lists
    the anchors of a cell in another order, the one with the very same anchor. Where either is a center
    head they meet by metric position: the teacher's predictions in the student's bird's-eye-view cell, whatever the two
    strides, see :func:`cakdp_ext.distillation.cells.sites_in_cells`. Such a match is computed once for a pair of
    ``centers`` tensors and kept for the next calls with the very same two; so a head should hand out the tensor that it
    keeps, and not change it in place.

    Raises:
        ConfigError: for other classes (their order is free), other anchors, or a prediction of the student that has no
            cell of the teacher's.
    """
    if student_sites.anchors is not None and teacher_sites.anchors is not None:
        match = _match_anchors(student_sites, teacher_sites)
        class_order(student_sites, teacher_sites)
        return match
    class_order(student_sites, teacher_sites)
    return _match_positions(student_sites.centers, teacher_sites.centers)


def _match_anchors(student_sites: PredictionSites, teacher_sites: PredictionSites) -> SiteMatch:
    student, teacher = student_sites.anchors, teacher_sites.anchors
    if student is not None and teacher is not None and student_sites.num_classes == teacher_sites.num_classes:
        order = _order_within_cells(student, teacher.to(student))
        if order is not None:
            cells = torch.arange(0, len(student), len(order), device=student.device)
            return SiteMatch(len(teacher), (cells[:, None] + order).reshape(-1, 1))
    check_sites(student_sites, teacher_sites)
    return SiteMatch(len(teacher_sites.centers))


def _order_within_cells(student: Tensor, teacher: Tensor) -> Tensor | None:
    """Find how the teacher orders the anchors of every cell, where it is another order than the student's.

    Args:
        student: ``(A, 7)`` anchors, cell after cell.
        teacher: ``(T, 7)``.

    Returns:
        ``(n,)`` int64, for each anchor of a student's cell the place of the same one in the teacher's; None where the
        anchors are the same in the same order, or are not the same.
    """
    if student.shape != teacher.shape or len(student) == 0:
        return None
    is_elsewhere = ((student[:, :2] - student[0, :2]).abs() > ANCHOR_TOLERANCE).any(dim=1)
    per_cell = int(is_elsewhere.int().argmax()) or len(student)
    if len(student) % per_cell:
        return None
    ours, theirs = student.view(-1, per_cell, 7), teacher.view(-1, per_cell, 7)
    order = (ours[0, :, None] - theirs[0]).abs().amax(dim=2).argmin(dim=1)
    places = torch.arange(per_cell, device=order.device)
    if torch.equal(order, places) or not torch.equal(order.sort().values, places):
        return None
    return order if bool(((ours - theirs[:, order]).abs() <= ANCHOR_TOLERANCE).all()) else None


@functools.lru_cache(maxsize=2)  # tensors are hashed by identity, and kept alive here
def _match_positions(student_centers: Tensor, teacher_centers: Tensor) -> SiteMatch:
    return SiteMatch(len(teacher_centers), sites_in_cells(student_centers, teacher_centers))


def check_sites(student_sites: PredictionSites, teacher_sites: PredictionSites) -> None:
    """Check that prediction i of the student and prediction i of the teacher's first stage share one anchor.

    Raises:
        ConfigError: naming everything that differs: number of classes, stride, number of anchors, first anchor that
            is another one by more than a millimetre (or milliradian); or where one of the two has no anchors.
    """
    student, teacher = student_sites.anchors, teacher_sites.anchors
    if student is None or teacher is None:
        without = " and ".join(name for name, it in (("student", student), ("teacher", teacher)) if it is None)
        raise ConfigError(
            f"distillation matches anchors by their index, but {without} has no anchors; use anchor heads"
        )
    differences = [
        f"{name} (student {ours}, teacher {theirs})"
        for name, ours, theirs in (
            ("number of classes", student_sites.num_classes, teacher_sites.num_classes),
            ("stride", student_sites.stride, teacher_sites.stride),
            ("number of anchors", len(student), len(teacher)),
        )
        if ours != theirs
    ]
    shared = min(len(student), len(teacher))
    differences += _first_difference(student[:shared], teacher[:shared].to(student))
    if differences:
        raise ConfigError(
            "the anchors of student and teacher must be the same, these differ: "
            + "; ".join(differences)
            + ". Give both the same POINT_CLOUD_RANGE, voxel size, CLASS_NAMES and ANCHOR_GENERATOR_CONFIG"
        )


def _first_difference(student: Tensor, teacher: Tensor) -> list[str]:
    is_same = ((student - teacher).abs() <= ANCHOR_TOLERANCE).all(dim=1)
    if bool(is_same.all()):
        return []
    first = int(is_same.int().argmin())
    ours, theirs = (tuple(round(value, 3) for value in anchors[first].tolist()) for anchors in (student, teacher))
    return [f"anchor {first} (student {ours}, teacher {theirs})"]


def rois_at(teacher_boxes: Tensor, indices: Tensor) -> Tensor:
    """Give the boxes that the teacher's first stage decodes at the student's representatives.

    Args:
        teacher_boxes: ``(B, A, 7)`` decoded by the first stage.
        indices: ``(B, K)`` int64, which of the A anchors.

    Returns:
        ``(B, K, 7)`` without gradient, the teacher's RoIs; K = 0 gives none.

    Source:
        CaKDP, Section 3.2: "find the anchors (from the first stage of teacher) as teacher's ROIs".
    """
    return torch.take_along_dim(teacher_boxes.detach(), indices[:, :, None], dim=1)
