"""Waymo's AP and APH of one class at one level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cakdp_ext.evaluation.waymo_boxes import Finds, Truths, overlapping_pairs
from cakdp_ext.evaluation.waymo_matching import Matches, match_at_cutoffs

CUTOFFS = np.append(np.arange(100) * 0.01, 1.0).astype(np.float32)
"""Score cutoffs, ascending; a detection takes part where its score is not below."""
RECALL_STEP = 0.05
"""Where recall jumps by more, precision holds down to one step above the lower recall."""
LEVELS = (1, 2)


@dataclass(frozen=True)
class Counts:
    """Right and wrong detections of one class at each of the cutoffs; matching does not know levels.

    Attributes:
        right: ``(K,)`` matched detections, whatever the level of their ground truth.
        heading: ``(K,)`` the sum of their heading accuracies.
        wrong: ``(K,)`` the others.
        missed: level -> ``(K,)`` ground truths of that level or an easier one that nothing is matched with.
    """

    right: np.ndarray
    heading: np.ndarray
    wrong: np.ndarray
    missed: dict[int, np.ndarray]


@dataclass(frozen=True)
class LevelResult:
    """AP and APH in percent, and how many ground truths the level has."""

    ap: float
    aph: float
    num_truths: int


def measure_class(truths: Truths, finds: Finds, min_overlap: float) -> dict[int, LevelResult]:
    """Measure one class at both levels.

    Args:
        truths: of the class.
        finds: of the class.
        min_overlap: least 3D IoU of a match.

    Returns:
        Level -> result; AP is 0 without ground truths.
    """
    num_reached = np.searchsorted(CUTOFFS, finds.scores, side="right")
    matches = match_at_cutoffs(overlapping_pairs(truths, finds, min_overlap), num_reached)
    counts = _count(matches, truths, finds, num_reached)
    return {level: _result(counts, level, int((truths.levels <= level).sum())) for level in LEVELS}


def _count(matches: Matches, truths: Truths, finds: Finds, num_reached: np.ndarray) -> Counts:
    levels = truths.levels[matches.truths]
    accuracy = heading_accuracy(finds.boxes[matches.finds, 6], truths.boxes[matches.truths, 6])
    right = _sum_at_cutoffs(matches, np.ones(len(levels)))
    present = len(num_reached) - np.cumsum(np.bincount(num_reached, minlength=len(CUTOFFS) + 1))[: len(CUTOFFS)]
    missed = {
        level: (truths.levels <= level).sum() - _sum_at_cutoffs(matches, (levels <= level).astype(np.float64))
        for level in LEVELS
    }
    return Counts(right, _sum_at_cutoffs(matches, accuracy), present - right, missed)


def _sum_at_cutoffs(matches: Matches, values: np.ndarray) -> np.ndarray:
    steps = np.zeros(len(CUTOFFS) + 1)
    np.add.at(steps, matches.first, values)
    np.add.at(steps, matches.stop, -values)
    return np.cumsum(steps)[: len(CUTOFFS)]


def heading_accuracy(headings1: np.ndarray, headings2: np.ndarray) -> np.ndarray:
    """Say how well headings agree: 1 for equal ones, 0 for opposite ones, falling linearly with the angle between."""
    apart = np.abs((headings1 - headings2 + np.pi) % (2 * np.pi) - np.pi)
    return np.clip(1 - apart / np.pi, 0, 1)


def _result(counts: Counts, level: int, num_truths: int) -> LevelResult:
    found = counts.right + counts.missed[level]
    recalls = counts.right / np.maximum(found, 1)
    claimed = np.maximum(counts.right + counts.wrong, 1)
    ap, aph = (100 * area_under_curve(right / claimed, recalls) for right in (counts.right, counts.heading))
    return LevelResult(ap, aph, num_truths)


def area_under_curve(precisions: np.ndarray, recalls: np.ndarray) -> float:
    """Integrate precision over recall as Waymo does.

    From high recall to low, precision is the best one met so far. Two neighbouring recalls are joined by a straight
    line where they lie within ``RECALL_STEP``; across a wider gap the precision of the higher recall holds until one
    step above the lower one. Towards recall 0 the best precision holds.

    Args:
        precisions: ``(K,)``.
        recalls: ``(K,)`` in [0, 1].

    Returns:
        The area; 0 where nothing is recalled.
    """
    levels, place = np.unique(np.append(recalls, 0.0), return_inverse=True)
    best = np.zeros(len(levels))
    np.maximum.at(best, place, np.append(precisions, 0.0))
    if len(levels) == 1:
        return 0.0
    best[0] = 0.0  # nothing recalled: its precision says nothing
    best = np.maximum.accumulate(best[::-1])[::-1]
    area = 0.0
    for low, high, below, above in zip(levels[:-1], levels[1:], best[:-1], best[1:], strict=True):
        num_steps = max(int(np.ceil((high - low - _SAME_RECALL) / RECALL_STEP)) - 1, 0)
        held = num_steps * RECALL_STEP
        area += held * above + (high - low - held) * (above + below) / 2
    return float(area)


_SAME_RECALL = 1e-6
