"""Where the teacher looks for what the student says: from a student's prediction to the teacher's RoI."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.types import PredictionSites

ANCHOR_TOLERANCE = 1e-3


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
