"""Which detection finds which ground truth, at every score cutoff: Waymo's Hungarian matching.

At a cutoff the detections that reach it are matched with the ground truths for the greatest sum of IoUs. Pairs that do
not overlap enough weigh nothing, so the groups of objects that such pairs connect are matched one by one, and nearly
every group is a single ground truth with the detections around it: its best one is in force from the cutoff where it
comes in, as cutoffs fall, until a better one comes in. Only the others take the general algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cakdp_ext.evaluation.assignment import heaviest_pairs
from cakdp_ext.evaluation.waymo_boxes import OverlappingPairs


@dataclass(frozen=True)
class Matches:
    """Pairs, and at which cutoffs each is matched.

    Attributes:
        truths: ``(S,)`` int64.
        finds: ``(S,)`` int64.
        first: ``(S,)`` int64, the lowest cutoff at which the two are matched.
        stop: ``(S,)`` int64, the first cutoff above at which they are not.
    """

    truths: np.ndarray
    finds: np.ndarray
    first: np.ndarray
    stop: np.ndarray


def match_at_cutoffs(pairs: OverlappingPairs, num_reached: np.ndarray) -> Matches:
    """Match at every cutoff.

    Args:
        pairs: P pairs that overlap enough.
        num_reached: ``(D,)`` how many of the ascending cutoffs each detection reaches.

    Returns:
        One entry for each pair and each range of cutoffs in which it is matched.
    """
    if not len(pairs.truths):
        return Matches(*np.zeros((4, 0), dtype=np.int64))
    rivalled = np.bincount(pairs.finds) > 1
    entangled = np.zeros(pairs.truths.max() + 1, dtype=bool)
    entangled[pairs.truths[rivalled[pairs.finds]]] = True
    in_group = entangled[pairs.truths]
    lone = _match_lone_truths(_select(pairs, ~in_group), num_reached)
    groups = [row for group in _groups(_select(pairs, in_group)) for row in _match_group(group, num_reached)]
    return Matches(*np.concatenate((lone, np.array(groups, dtype=np.int64).reshape(-1, 4).T), axis=1))


def _select(pairs: OverlappingPairs, mask: np.ndarray) -> OverlappingPairs:
    return OverlappingPairs(pairs.truths[mask], pairs.finds[mask], pairs.steps[mask])


def _match_lone_truths(pairs: OverlappingPairs, num_reached: np.ndarray) -> np.ndarray:
    """Match ground truths whose detections overlap no other one; ``(4, S)`` truths, finds, first, stop."""
    order = np.lexsort((pairs.finds, -pairs.steps, pairs.truths))
    truths, finds = pairs.truths[order], pairs.finds[order]
    stop = num_reached[finds]
    if not len(stop):
        return np.zeros((4, 0), dtype=np.int64)
    opens = np.diff(truths, prepend=-1) != 0
    offset = np.cumsum(opens) * (stop.max() + 1)
    best_before = np.concatenate(([0], np.maximum.accumulate(stop + offset)[:-1])) - offset
    first = np.where(opens, 0, best_before)
    return np.stack((truths, finds, first, stop))[:, first < stop]


def _groups(pairs: OverlappingPairs) -> Iterator[OverlappingPairs]:
    """Split pairs into groups that share neither a ground truth nor a detection."""
    root = np.arange(len(pairs.truths))
    while True:  # each pair takes the lowest root among the pairs of its ground truth, then of its detection
        lower = root
        for side in (pairs.truths, pairs.finds):
            lowest = np.full(side.max(initial=-1) + 1, len(root))
            np.minimum.at(lowest, side, lower)
            lower = lowest[side]
        if np.array_equal(lower, root):
            break
        root = lower
    order = np.argsort(root, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(root[order])) + 1):
        if len(rows):
            yield _select(pairs, rows)


def _match_group(pairs: OverlappingPairs, num_reached: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    truths, row = np.unique(pairs.truths, return_inverse=True)
    finds, column = np.unique(pairs.finds, return_inverse=True)
    weights = np.zeros((len(truths), len(finds)), dtype=np.int64)
    weights[row, column] = pairs.steps
    levels = np.unique(num_reached[finds])
    for first, stop in zip((0, *levels[:-1]), levels, strict=True):
        present = np.flatnonzero(num_reached[finds] >= stop)
        for i, j in heaviest_pairs(weights[:, present]):
            yield int(truths[i]), int(finds[present[j]]), int(first), int(stop)
