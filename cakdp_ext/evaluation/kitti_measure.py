"""KITTI's average precision of every class, metric, difficulty and set of minimum overlaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cakdp_ext.evaluation.kitti_annotations import LabelledObjects, ScoredObjects
from cakdp_ext.evaluation.kitti_rules import (
    CLASS_RULES,
    DIFFICULTIES,
    METRICS,
    STRICTNESS,
    Difficulty,
    Role,
    detection_roles,
    ground_truth_roles,
)
from cakdp_ext.evaluation.matching import Candidates, match, order_candidates
from cakdp_ext.evaluation.overlaps import PairOverlaps, box_overlaps, dont_care_cover, image_overlaps
from cakdp_ext.evaluation.precision import AveragePrecision, average_precision, precision_at, recall_thresholds

NO_ALPHA = -10.0
"""Observation angle of a detection that has none."""


class Case(NamedTuple):
    """One cell of the result."""

    class_name: str
    metric: str
    difficulty: str
    strictness: str


@dataclass(frozen=True)
class Measured:
    """What one cell holds, and what is needed to say why it is zero.

    Attributes:
        ap: average precision.
        aos: average orientation similarity; None for other metrics than ``image`` and for detections without alpha.
        num_class_ground_truth: how many are of the class, at any difficulty.
        num_ground_truth: how many were to be found.
        num_class_detections: how many are of the class.
        num_detections: how many were tall enough to count.
        num_found: how many ground truths some detection found, whatever its score.
        best_overlap: greatest overlap between a ground truth to be found and a detection that counts.
        min_overlap: what it had to exceed.
    """

    ap: AveragePrecision
    aos: AveragePrecision | None
    num_class_ground_truth: int
    num_ground_truth: int
    num_class_detections: int
    num_detections: int
    num_found: int
    best_overlap: float
    min_overlap: float


@dataclass(frozen=True)
class Scene:
    """All objects and how they overlap; ``cover`` as :func:`dont_care_cover` gives it."""

    ground_truth: LabelledObjects
    detections: ScoredObjects
    overlaps: Mapping[str, PairOverlaps]
    cover: np.ndarray

    @property
    def has_alpha(self) -> bool:
        """Whether there are detections and each has an observation angle."""
        return len(self.detections.alpha) > 0 and not bool((self.detections.alpha == NO_ALPHA).any())


@dataclass(frozen=True)
class _Roles:
    """What all objects are to one class at one difficulty, and how many are of the class at all."""

    ground_truth: np.ndarray
    detections: np.ndarray
    num_class_ground_truth: int
    num_class_detections: int


def build_scene(ground_truth: LabelledObjects, detections: ScoredObjects) -> Scene:
    """Compute every overlap that the metrics need."""
    overlaps = {"image": image_overlaps(ground_truth, detections), **box_overlaps(ground_truth, detections)}
    return Scene(ground_truth, detections, overlaps, dont_care_cover(ground_truth, detections))


def measure(scene: Scene, class_names: Sequence[str]) -> dict[Case, Measured]:
    """Measure every cell.

    Args:
        scene: all objects and their overlaps.
        class_names: keys of CLASS_RULES.

    Returns:
        One entry for each class, metric, difficulty and strictness.
    """
    results: dict[Case, Measured] = {}
    for name in class_names:
        for difficulty in DIFFICULTIES:
            results.update(_measure_class(scene, name, difficulty))
    return results


def _measure_class(scene: Scene, name: str, difficulty: Difficulty) -> dict[Case, Measured]:
    roles = _Roles(
        ground_truth=ground_truth_roles(scene.ground_truth, name, difficulty),
        detections=detection_roles(scene.detections, name, difficulty),
        num_class_ground_truth=int(scene.ground_truth.is_class(name).sum()),
        num_class_detections=int(scene.detections.is_class(name).sum()),
    )
    results: dict[Case, Measured] = {}
    for metric in METRICS:
        known: dict[float, Measured] = {}
        for strictness in STRICTNESS:
            bound = CLASS_RULES[name].min_overlap(metric, strictness)
            if bound not in known:
                known[bound] = _measure_cell(scene, roles, metric, bound)
            results[Case(name, metric, difficulty.name, strictness)] = known[bound]
    return results


def _measure_cell(scene: Scene, roles: _Roles, metric: str, bound: float) -> Measured:
    to_find, to_judge = roles.ground_truth == Role.COUNTED, roles.detections == Role.COUNTED
    present = scene.overlaps[metric].between(roles.ground_truth != Role.ABSENT, roles.detections != Role.ABSENT)
    pairs = present.above(bound)
    found = _found_scores(scene, roles, pairs)
    thresholds = recall_thresholds(found, int(to_find.sum()))
    is_false = to_judge & (scene.cover <= bound) if metric == "image" else to_judge
    right, similar, claimed = _count(scene, roles, pairs, is_false, thresholds)
    with_aos = metric == "image" and scene.has_alpha
    return Measured(
        ap=average_precision(precision_at(right, claimed)),
        aos=average_precision(precision_at(similar, claimed)) if with_aos else None,
        num_class_ground_truth=roles.num_class_ground_truth,
        num_ground_truth=int(to_find.sum()),
        num_class_detections=roles.num_class_detections,
        num_detections=int(to_judge.sum()),
        num_found=len(found),
        best_overlap=float(present.between(to_find, to_judge).iou.max(initial=0.0)),
        min_overlap=bound,
    )


def _found_scores(scene: Scene, roles: _Roles, pairs: PairOverlaps) -> np.ndarray:
    """Scores of the detections that find a ground truth when each takes the best score: recall is sampled on them."""
    scores = scene.detections.scores
    candidates = _in_order(scene, pairs, scores[pairs.detection])
    matched = match(candidates, scores, np.array([-np.inf]))[:, 0]
    matched &= roles.ground_truth[candidates.ground_truth] == Role.COUNTED
    matched &= roles.detections[candidates.detection] == Role.COUNTED
    return scores[candidates.detection[matched]]


def _count(
    scene: Scene, roles: _Roles, pairs: PairOverlaps, is_false: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, at each threshold, when each ground truth takes the detection that overlaps it most.

    A detection that is ignored would be taken only where no other is left, and then changes no count: such pairs
    are left out.

    Args:
        scene: all objects.
        roles: what they are here.
        pairs: P pairs that overlap enough.
        is_false: ``(D,)`` bool: detections that are wrong unless they are matched.
        thresholds: ``(T,)``.

    Returns:
        Three ``(T,)`` float64: right detections, the sum of their orientation similarities, and right and wrong
        ones together.
    """
    scores = scene.detections.scores
    pairs = pairs.between(roles.ground_truth != Role.ABSENT, roles.detections == Role.COUNTED)
    candidates = _in_order(scene, pairs, pairs.iou)
    truth, found = candidates.ground_truth, candidates.detection
    is_right = roles.ground_truth[truth] == Role.COUNTED
    similarity = (1 + np.cos(scene.ground_truth.alpha[truth] - scene.detections.alpha[found])) / 2
    rows, columns = match(candidates, scores, thresholds).nonzero()
    right, similar, excused = (
        np.bincount(columns, weights=weights[rows], minlength=len(thresholds))
        for weights in (is_right, is_right * similarity, is_false[found])
    )
    wrong = _count_at_least(scores[is_false], thresholds) - excused
    return right, similar, right + wrong


def _in_order(scene: Scene, pairs: PairOverlaps, preference: np.ndarray) -> Candidates:
    frames = scene.ground_truth.frames[pairs.ground_truth]
    return order_candidates(pairs.ground_truth, pairs.detection, frames, preference)


def _count_at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")
