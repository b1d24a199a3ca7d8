"""Which filters stay, told from as few frames as it takes? Those that are clear of the cut leave the race."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cakdp_ext.types import RaceResult

_PRIOR = 2.0
"""Frames' worth of trust in the spread that all filters share, against each one's own (Smyth, 2004)."""
_FLOOR = 1e-3
"""Filters worth less than this share of those at the cut count as worth this share."""


@dataclass(frozen=True)
class RaceRules:
    """When a filter leaves the race.

    Attributes:
        keep_ratio: share of the groups that stay.
        confidence: a group leaves when its chance to be on the other side of the cut is below 1 - this.
        agreement: the race is over when this share of what stays is expected to be what all frames would keep.
        first: frames before the first decision.
    """

    keep_ratio: float
    confidence: float = 0.99
    agreement: float = 0.995
    first: int = 2

    def __post_init__(self) -> None:
        for name in ("keep_ratio", "confidence", "agreement"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name.upper()} of a race must lie between 0 and 1, got {getattr(self, name)!r}")
        if self.first < 2:
            raise ValueError(f"a race needs 2 frames at least before it decides, got {self.first}")

    def stages(self, num_frames: int) -> Iterator[range]:
        """Part the frames: after each part it is decided who leaves. Each is half as long as all before it."""
        start, end = 0, min(self.first, num_frames)
        while start < num_frames:
            yield range(start, end)
            start, end = end, min(max(end + 1, end + end // 2), num_frames)


@dataclass(frozen=True)
class Standing:
    """Where a race stands.

    Attributes:
        decided: ``(groups,)`` int8: 1 stays, -1 goes, 0 is still open.
        doubt: ``(groups,)`` chance of each to be on the other side of the cut.
        agreement: share of what would stay now that all frames are expected to keep.
    """

    decided: np.ndarray
    doubt: np.ndarray
    agreement: float

    @classmethod
    def start(cls, num_groups: int) -> Standing:
        """Nobody has left."""
        return cls(np.zeros(num_groups, np.int8), np.full(num_groups, 0.5), 0.0)

    @property
    def open(self) -> np.ndarray:
        """Numbers of the groups that are still measured."""
        return np.flatnonzero(self.decided == 0)

    def result(self, rules: RaceRules) -> RaceResult:
        """Write down how the race ended."""
        return RaceResult(rules.keep_ratio, rules.confidence, self.agreement, self.decided)


def decide(before: Standing, gaps: np.ndarray, num_frames: int, rules: RaceRules) -> Standing:
    """Let groups leave that are clear of the cut.

    The gap of a group is compared with that of the groups next to the cut on the same frames, because frames differ
    more than filters do: by the ratio of the sums over frames, busy frames counting more, as they do in the mean that
    decides in the end. Its standard error comes from the group's own spread and that of all groups (Smyth 2004,
    moderated), less what is known of the frames already measured, as there are ``num_frames`` in all.

    Args:
        before: where the race stood.
        gaps: ``(frames so far, groups)``; NaN where a group had left.
        num_frames: how many there will be at most.
        rules: when a group leaves.

    Returns:
        Where it stands now; who is in the race to the last frame is then in no doubt.
    """
    racing, seen = before.open, len(gaps)
    keep = int(rules.keep_ratio * gaps.shape[1]) - int((before.decided == 1).sum())
    decided, doubt = before.decided.copy(), before.doubt.copy()
    if not 0 < keep < len(racing):  # everything open falls on one side
        decided[racing] = 1 if keep > 0 else -1
        return Standing(decided, doubt, _agreement(decided, doubt, decided == 1))
    mine = gaps[:, racing]
    ranked = np.argsort(-mine.mean(axis=0), kind="stable")
    stays = np.zeros(len(racing), bool)
    stays[ranked[:keep]] = True
    doubt[racing] = _doubt(mine, ranked, keep, num_frames) if seen < num_frames else 0.0
    clear = doubt[racing] < 1 - rules.confidence
    decided[racing[clear]] = np.where(stays[clear], 1, -1)
    kept = before.decided == 1
    kept[racing[stays]] = True
    return Standing(decided, doubt, _agreement(decided, doubt, kept))


def _agreement(decided: np.ndarray, doubt: np.ndarray, kept: np.ndarray) -> float:
    return 1.0 - float(doubt[kept].sum()) / max(int(kept.sum()), 1)


def _doubt(gaps: np.ndarray, ranked: np.ndarray, keep: int, num_frames: int) -> np.ndarray:
    """Give the chance of each group to end on the other side of the cut.

    Args:
        gaps: ``(frames, groups in the race)``.
        ranked: groups by their mean, the largest first.
        keep: how many of them stay.
        num_frames: how many frames there are in all.
    """
    seen, width, tiny = len(gaps), max(2, len(ranked) // 100), np.finfo(float).tiny
    at_cut = np.maximum(gaps[:, ranked[max(keep - width, 0) : keep + width]].mean(axis=1, keepdims=True), tiny)
    weights = at_cut / at_cut.sum()
    ratios = gaps / at_cut
    ratio = np.maximum((weights * ratios).sum(axis=0), _FLOOR)
    free = seen - 1
    own = (weights * (ratios / ratio - 1) ** 2).sum(axis=0) * seen / free
    shared = np.median(own) / _chi_square_median(free)
    spread = (_PRIOR * shared + free * own) / (_PRIOR + free)
    error = np.sqrt(spread * (weights**2).sum() * (1 - seen / num_frames))
    distance = np.abs(np.log(ratio)) / np.maximum(error, tiny)
    return np.array([_tail(value, _PRIOR + free) for value in distance])


def _chi_square_median(freedom: int) -> float:
    """Median of a spread estimated with so many degrees of freedom, over the true one (Wilson and Hilferty 1931)."""
    return (1 - 2 / (9 * freedom)) ** 3


def _tail(value: float, freedom: float) -> float:
    """Chance of Student's t beyond ``value``, by the normal distribution (Wallace 1959, error below 0.002)."""
    value = min(value, 1e6)
    shrink = (8 * freedom + 1) / (8 * freedom + 3)
    normal = shrink * math.sqrt(freedom * math.log1p(value * value / freedom))
    return 0.5 * math.erfc(normal / math.sqrt(2))
