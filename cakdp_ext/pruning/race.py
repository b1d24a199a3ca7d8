"""Which filters stay, told from as few frames as it takes? Those that are clear of the cut leave the race."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cakdp_ext.pruning.ladder import Forced
from cakdp_ext.types import RaceResult

_PRIOR = 2.0
"""Frames' worth of trust in the spread that all filters share, against each one's own (Smyth, 2004)."""
_FLOOR = 1e-3
"""Filters worth less than this share of those at the cut count as worth this share."""
_TINY = 1e-200
"""Stands for zero where something is divided by it."""
_NOTHING_FORCED = Forced()


@dataclass(frozen=True)
class RaceRules:
    """When a filter leaves the race.

    Attributes:
        keep_ratio: share of the groups that stay.
        confidence: a group leaves when its chance to be on the other side of the cut is below 1 - this.
        agreement: the race is over when this share of what stays is expected to be what all frames would keep.
        first: frames before the first decision.
        seed: of the order in which frames are looked at.
    """

    keep_ratio: float
    confidence: float = 0.99
    agreement: float = 0.995
    first: int = 2
    seed: int = 0

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
        decided: ``(groups,)`` int8: 1 stays, 2 stays by the rules of the layers, -1 goes, 0 is still open.
        doubt: ``(groups,)`` chance of each to be on the other side of the cut.
        agreement: share of what would stay now that all frames are expected to keep.
    """

    decided: np.ndarray
    doubt: np.ndarray
    agreement: float

    @classmethod
    def start(cls, num_groups: int, forced: Forced = _NOTHING_FORCED) -> Standing:
        """Nobody has left but those that stay whatever they are worth: they need not be measured."""
        decided, doubt = np.zeros(num_groups, np.int8), np.full(num_groups, 0.5)
        decided[list(forced.always)], doubt[list(forced.always)] = 2, 0.0
        return cls(decided, doubt, 0.0)

    @property
    def open(self) -> np.ndarray:
        """Numbers of the groups that are still measured."""
        return np.flatnonzero(self.decided == 0)

    def result(self, rules: RaceRules, num_frames: int) -> RaceResult:
        """Write down how a race over ``num_frames`` frames at most ended."""
        return RaceResult(rules.keep_ratio, rules.confidence, self.agreement, self.decided, rules.seed, num_frames)


def decide(
    before: Standing, gaps: np.ndarray, num_frames: int, rules: RaceRules, forced: Forced = _NOTHING_FORCED
) -> Standing:
    """Let groups leave that are clear of the cut.

    The gap of a group is compared with that of the groups next to the cut on the same frames, because frames differ
    more than filters do: by the ratio of the sums over frames, busy frames counting more, as they do in the mean that
    decides in the end. Its standard error comes from the group's own spread and that of all groups (Smyth 2004,
    moderated), less what is known of the frames already measured, as there are ``num_frames`` in all.

    What the rules of the layers force to stay takes its place from the others. Where they ask for the best of a layer,
    its groups are compared with those next to that border likewise, and a group stays that is on the good side of
    either.

    Args:
        before: where the race stood.
        gaps: ``(frames so far, groups)``; NaN where a group had left.
        num_frames: how many there will be at most.
        rules: when a group leaves.
        forced: by the rules of the layers.

    Returns:
        Where it stands now; who is in the race to the last frame is then in no doubt.
    """
    racing = before.open
    mine, stays, limit = gaps[:, racing], before.decided > 0, 1 - rules.confidence
    by_layer, layer_chance = _best_of_layers(before, mine, num_frames, forced)
    room, rest = int(rules.keep_ratio * gaps.shape[1]) - int(stays.sum() + by_layer.sum()), (~by_layer).sum()
    by_rank, rank_chance = _best_of_all(mine, by_layer, room, before.doubt[racing], num_frames)
    wins = by_layer | by_rank
    chance = np.where(wins, np.maximum(rank_chance, layer_chance), np.minimum(rank_chance + layer_chance, 1.0))
    doubt, decided = before.doubt.copy(), before.decided.copy()
    doubt[racing] = np.where(wins, 1 - chance, chance)
    clear = (doubt[racing] < limit) | (room >= rest)  # no more are left than may stay
    clear |= (room <= 0) & ~by_layer & (layer_chance < limit)
    by_rules = by_layer & (rank_chance <= rules.confidence)
    decided[racing[clear]] = np.where(wins, np.where(by_rules, 2, 1), -1)[clear]
    stays[racing[wins]] = True
    return Standing(decided, doubt, 1.0 - float(doubt[stays].sum()) / max(int(stays.sum()), 1))


def _best_of_all(
    gaps: np.ndarray, by_layer: np.ndarray, room: int, doubt: np.ndarray, num_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the groups above the cut, and the chance of each to be there.

    Args:
        gaps: ``(frames, groups in the race)``.
        by_layer: which of them stay anyway, so that they take no room.
        room: how many of the others stay.
        doubt: of each so far: where the rest falls on one side, nothing new is learnt of it.
        num_frames: how many there will be at most.
    """
    rest = [number for number in _ranked(gaps) if not by_layer[number]]
    if 0 < room < len(rest):
        above = by_layer & (gaps.mean(axis=0) >= gaps[:, rest[room - 1]].mean())
        above[rest[:room]] = True
        doubt = _doubt(gaps, _next_to(rest, room), num_frames)
    else:
        above = ~by_layer & (room > 0)
    return above, np.where(above, 1 - doubt, doubt)


def _best_of_layers(
    before: Standing, gaps: np.ndarray, num_frames: int, forced: Forced
) -> tuple[np.ndarray, np.ndarray]:
    """Find the groups that stay as the best of their layer, and the chance of each to be one."""
    stays, chance = np.zeros(gaps.shape[1], bool), np.zeros(gaps.shape[1])
    for numbers, count in forced.best:
        inside = np.flatnonzero(np.isin(before.open, numbers))
        count = min(count - int((before.decided[numbers] > 0).sum()), len(inside))
        if count <= 0:
            continue
        mine, is_best = gaps[:, inside], np.zeros(len(inside), bool)
        ranked = _ranked(mine)
        is_best[ranked[:count]] = True
        doubt = _doubt(mine, _next_to(ranked, count), num_frames) * (count < len(inside))
        chance[inside] = np.maximum(chance[inside], np.where(is_best, 1 - doubt, doubt))
        stays[inside] |= is_best
    return stays, chance


def _ranked(gaps: np.ndarray) -> np.ndarray:
    """Sort the groups by their mean, the largest first."""
    return np.argsort(-gaps.mean(axis=0), kind="stable")


def _next_to(ranked: Sequence[int] | np.ndarray, keep: int) -> np.ndarray:
    """Pick the groups on both sides of a border behind the first ``keep``."""
    width = max(2, len(ranked) // 100)
    return np.asarray(ranked)[max(keep - width, 0) : keep + width]


def _doubt(gaps: np.ndarray, near: np.ndarray, num_frames: int) -> np.ndarray:
    """Give the chance of each group to end on the other side of a border.

    Args:
        gaps: ``(frames, groups)``.
        near: numbers of the groups next to the border.
        num_frames: how many frames there are in all; on all of them there is no doubt.
    """
    seen = len(gaps)
    if seen >= num_frames:
        return np.zeros(gaps.shape[1])
    at_cut = np.maximum(gaps[:, near].mean(axis=1, keepdims=True), _TINY)
    weights = at_cut / at_cut.sum()
    ratios = gaps / at_cut
    ratio = np.maximum((weights * ratios).sum(axis=0), _FLOOR)
    free = seen - 1
    own = (weights * (ratios / ratio - 1) ** 2).sum(axis=0) * seen / free
    shared = np.median(own) / _chi_square_median(free)
    spread = (_PRIOR * shared + free * own) / (_PRIOR + free)
    error = np.sqrt(spread * (weights**2).sum() * (1 - seen / num_frames))
    distance = np.abs(np.log(ratio)) / np.maximum(error, _TINY)
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
