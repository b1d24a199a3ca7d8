"""What do student and teacher say at the same place, where their heads are of one kind?"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation.classes import class_order
from cakdp_ext.distillation.matching import match_sites
from cakdp_ext.taps import BoxCodes, Taps
from cakdp_ext.types import PredictionSites


def require_homogeneous(method: str, student: PredictionSites, teacher: PredictionSites, *, with_boxes: bool) -> None:
    """Refuse heads that do not say the same kind of thing at places that can be matched.

    Args:
        method: named in errors.
        student: where the student's predictions sit.
        teacher: where the teacher's do.
        with_boxes: what the heads regress is compared too, which is told from the cell.

    Raises:
        ConfigError: for an anchor head and a center head, for places that do not match, or with boxes for other cells.
    """
    kinds = ["a center head" if sites.anchors is None else "an anchor head" for sites in (student, teacher)]
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"{method} compares heads of one kind, the student has {kinds[0]}, the teacher {kinds[1]}; give both "
            "the same DENSE_HEAD, or use METHOD SKD"
        )
    match_sites(student, teacher)
    if with_boxes and student.stride != teacher.stride:
        raise ConfigError(
            f"BOX_WEIGHT compares boxes cell by cell, the student's map has stride {student.stride}, the teacher's "
            f"{teacher.stride}; give both the same stride, or make BOX_WEIGHT 0"
        )


def box_terms(student_codes: Tensor, teacher_codes: Tensor, *, is_residual: bool) -> Tensor:
    """Give the smooth L1 of regressed values, summed over those of a box.

    Args:
        student_codes: ``(..., D)`` raw, with gradient.
        teacher_codes: ``(..., D)``.
        is_residual: they belong to anchors, and the seventh is a heading.

    Returns:
        ``(...)``.
    """
    gap = student_codes - teacher_codes.detach()
    if is_residual:
        gap = torch.cat([gap[..., :6], gap[..., 6:7].sin(), gap[..., 7:]], dim=-1)
    return F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none").sum(dim=-1)


def matched_logits(student: PredictionSites, teacher: Taps) -> Tensor:
    """Give what the teacher says of the student's places and classes.

    Args:
        student: where the student's A predictions sit.
        teacher: with its dense predictions.

    Returns:
        ``(B, A, C)`` raw, without gradient; of several places of the teacher in one of the student's, each class's
        highest.
    """
    order = list(class_order(student, teacher.sites))
    logits = teacher.dense.cls_logits.detach()[:, :, order]
    return matched_rows(student, teacher.sites, logits)


def matched_rows(student: PredictionSites, teacher: PredictionSites, values: Tensor) -> Tensor:
    """Bring the teacher's values ``(B, T, ...)`` to the student's places: ``(B, A, ...)``, the highest of several."""
    candidates = match_sites(student, teacher).candidates
    return values if candidates is None else values[:, candidates].amax(dim=2)


def part_order(student: BoxCodes, teacher: BoxCodes) -> list[int]:
    """Give, for each part of the student's head, the teacher's part of the same classes.

    Raises:
        ConfigError: for heads whose parts are made otherwise.
    """
    ours, theirs = ([frozenset(part) for part in codes.parts] for codes in (student, teacher))
    if sorted(map(sorted, ours)) != sorted(map(sorted, theirs)) or student.values.shape[3] != teacher.values.shape[3]:
        raise ConfigError(
            f"BOX_WEIGHT compares boxes part by part: the student's head has the parts {student.parts} of "
            f"{student.values.shape[3]} values, the teacher's {teacher.parts} of {teacher.values.shape[3]}; give both "
            "the same CLASS_NAMES_EACH_HEAD, or make BOX_WEIGHT 0"
        )
    return [theirs.index(part) for part in ours]


def weights_of_parts(scores: Tensor, boxes: BoxCodes, sites: PredictionSites) -> Tensor:
    """Give the highest ``(B, A, P)`` that ``scores (B, A, C)`` has among the classes of every part of a head."""
    if len(boxes.parts) == 1:
        return scores.amax(dim=2, keepdim=True)
    rows = [[sites.class_names.index(name) for name in part] for part in boxes.parts]
    return torch.stack([scores[:, :, row].amax(dim=2) for row in rows], dim=2)
