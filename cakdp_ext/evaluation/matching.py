"""Which detection finds which ground truth: KITTI's greedy assignment, for all frames and all score thresholds at once.

The ground truths of a frame choose one after another among the detections that are still free; frames do not touch
each other, nor do thresholds. So the k-th ground truths of all frames choose together, at every threshold together:
the Python loop runs over k, not over frames, and the work grows with the pairs that overlap enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """Pairs that may be matched, those of one ground truth side by side, its preferred detection first.

    Attributes:
        ground_truth: ``(P,)`` int64.
        detection: ``(P,)`` int64.
        turn: ``(P,)`` int64: how many ground truths of its frame choose before this pair's one.
    """

    ground_truth: np.ndarray
    detection: np.ndarray
    turn: np.ndarray


def order_candidates(
    ground_truth: np.ndarray, detection: np.ndarray, frames: np.ndarray, preference: np.ndarray
) -> Candidates:
    """Bring pairs into the order in which they are tried.

    Args:
        ground_truth: ``(P,)`` index of each pair's ground truth; those of one frame are neighbours.
        detection: ``(P,)`` index of each pair's detection.
        frames: ``(P,)`` frame of each pair.
        preference: ``(P,)`` which of its pairs a ground truth likes best, greater is better; of equals it takes
            the detection with the lower index.

    Returns:
        The same pairs, by turn, ground truth and preference.
    """
    chooser, first = np.unique(ground_truth, return_index=True)
    frame_of_chooser = frames[first]
    place = np.arange(len(chooser))
    opens_frame = np.diff(frame_of_chooser, prepend=-1) != 0
    turn_of_chooser = place - np.maximum.accumulate(np.where(opens_frame, place, 0))
    turn = turn_of_chooser[np.searchsorted(chooser, ground_truth)]
    order = np.lexsort((detection, -preference, ground_truth, turn))
    return Candidates(ground_truth[order], detection[order], turn[order])


def match(candidates: Candidates, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Let every ground truth take its preferred free detection, at each threshold anew.

    Args:
        candidates: P pairs in order.
        scores: ``(D,)`` of all detections.
        thresholds: ``(T,)``; detections with a lower score take no part.

    Returns:
        ``(P, T)`` bool: the pairs that are matched; a detection is in at most one, and so is a ground truth.
    """
    used, detection = np.unique(candidates.detection, return_inverse=True)
    taken = scores[used][:, None] < thresholds
    matched = np.zeros((len(detection), len(thresholds)), dtype=bool)
    edges = np.flatnonzero(np.diff(candidates.turn)) + 1
    for rows in np.split(np.arange(len(detection)), edges):
        if len(rows):
            chosen = _first_free(~taken[detection[rows]], candidates.ground_truth[rows])
            taken[detection[rows]] |= chosen
            matched[rows] = chosen
    return matched


def _first_free(free: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """Keep of the free pairs ``(P, T)`` the first one of each ground truth; those of one lie side by side."""
    starts = np.flatnonzero(np.diff(ground_truth, prepend=-1))
    place = np.where(free, np.arange(len(free))[:, None], len(free))
    first = np.minimum.reduceat(place, starts, axis=0)
    lengths = np.diff(starts, append=len(free))
    return free & (place == np.repeat(first, lengths, axis=0))
