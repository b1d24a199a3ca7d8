"""Which cuts are there to choose from? Those of one criterion, from the smallest network to the whole one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np

from cakdp_ext.pruning.criteria import PROPR, RV_CAPR, RV_CAPR_GLOBAL, alike, best_first, least_of_each_layer
from cakdp_ext.pruning.graph import ChannelGraph

Unit = tuple[int, ...]
"""Numbers of groups that stay or go at once."""


@dataclass(frozen=True)
class LayerRules:
    """What holds for each layer, whatever the budget.

    Attributes:
        min_filters: so many filters stay at least (all of a layer that has fewer).
        round_to: the number that stays is a multiple of this, or all. Layers that sums tie together are rounded
            together.
        protect: layers that keep all filters: shell patterns (``*``, ``?``, ``[...]``) of their names, or of the names
            of modules that they lie in. What a sum ties to them keeps all, too.
    """

    min_filters: int = 0
    round_to: int = 1
    protect: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Give plain values, fit for JSON."""
        return {**asdict(self), "protect": list(self.protect)}

    def __str__(self) -> str:
        said = [(key, value) for key, value in self.as_dict().items() if value != LayerRules().as_dict()[key]]
        texts = (f"{key.upper()} {' '.join(value) if key == 'protect' else value}" for key, value in said)
        return " and ".join(texts) or "MIN_FILTERS 0"

    def room_beside(self, num_forced: int, keep_ratio: float, num_groups: int) -> int:
        """Count the groups that may stay beside those that the rules force to.

        Raises:
            ValueError: where these are more than ``int(keep_ratio * num_groups)``.
        """
        quota = int(keep_ratio * num_groups)
        if num_forced > quota:
            raise ValueError(
                f"KEEP_RATIO {keep_ratio} keeps {quota} filters, but {self} asks for {num_forced}; "
                "raise the one or lower the other"
            )
        return quota - num_forced

    def protected(self, graph: ChannelGraph) -> set[str]:
        """Find the layers that keep all their filters.

        Raises:
            ValueError: for a pattern that fits none, listing the layers.
        """
        found: set[str] = set()
        for pattern in self.protect:
            names = {name for name in graph.layers if any(fnmatchcase(part, pattern) for part in _parents(name))}
            if not names:
                layers = ", ".join(layer.name for layer in graph.prunable)
                raise ValueError(f"PROTECT {pattern!r} fits no layer; layers that can be cut: {layers}")
            found |= names
        return found


def _parents(name: str) -> Iterable[str]:
    """Give a module's name and the names of all modules that it lies in."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


@dataclass(frozen=True)
class Forced:
    """What the rules of the layers force to stay, as far as that is known before anything is scored.

    Attributes:
        always: numbers of groups that stay whatever their scores.
        best: of some groups (of a layer, those of ``always`` left out) so many stay, the best ones.
    """

    always: tuple[int, ...] = ()
    best: tuple[tuple[np.ndarray, int], ...] = ()


def forced_by(rules: LayerRules, graph: ChannelGraph) -> Forced:
    """Find out what rules force to stay.

    With ``ROUND_TO`` the numbers are those of whole blocks; which blocks these are is only known with the scores.

    Raises:
        ValueError: for a pattern of ``PROTECT`` that fits no layer.
    """
    protected, always = rules.protected(graph), set[int]()
    total = {layer.name: layer.num_filters for layer in graph.prunable}
    for numbers in alike(graph):
        layers = {layer for layer, _ in graph.groups[numbers[0]]}
        least = len(numbers) % rules.round_to or min(rules.round_to, len(numbers))  # filters of the smallest block
        if layers & protected or any(total[name] - least < rules.min_filters for name in layers):
            always.update(numbers)
    best = []
    for name in total:
        numbers = [n for n, group in enumerate(graph.groups) if any(layer == name for layer, _ in group)]
        free = [number for number in numbers if number not in always]
        count = -(-(rules.min_filters - len(numbers) + len(free)) // rules.round_to) * rules.round_to
        if free and count > 0:
            best.append((np.array(free), count))
    return Forced(tuple(sorted(always)), tuple(best))


class CutLadder:
    """Cuts of a network by one criterion; each rung keeps what the one below keeps, and some more.

    Args:
        graph: of the network.
        rules: of each layer.
        units: what is added from rung to rung, once all that the rules ask for stays; every group in exactly one.
        forced: what the rules ask for.
        criterion: what the rungs are ordered by.
        values: ``(groups,)`` scores; ProPr has none.
        decided: ``(groups,)`` of ``RaceResult``, where the scores are those of a race.

    Attributes:
        highest: the rung that keeps everything.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        rules: LayerRules,
        criterion: str,
        units: Sequence[Unit],
        forced: Iterable[int],
        values: np.ndarray | None = None,
        decided: np.ndarray | None = None,
    ) -> None:
        self.graph, self.rules, self.criterion = graph, rules, criterion
        self._forced, self._values, self._decided = frozenset(forced), values, decided
        self._units = [free for unit in units if (free := tuple(n for n in unit if n not in self._forced))]
        self.highest = len(self._units)

    @property
    def lowest(self) -> int:
        """The lowest rung that leaves no layer empty."""
        empty = {layer.name for layer in self.graph.prunable}
        for rung, unit in enumerate([tuple(self._forced), *self._units]):
            empty -= {layer for number in unit for layer, _ in self.graph.groups[number]}
            if not empty:
                return rung
        return self.highest

    def kept(self, rung: int) -> set[int]:
        """Give the numbers of the groups that stay on a rung."""
        return self._chosen(self._forced.union(*self._units[:rung]))

    def highest_within(self, cost: Callable[[int], float], budget: float) -> int | None:
        """Find the highest rung that leaves no layer empty and costs ``budget`` at most; None where none does.

        Args:
            cost: of a rung; must not fall from rung to rung. Called about log2 of the rungs times.
            budget: in the same unit.
        """
        rungs = range(self.lowest, self.highest + 1)
        count = bisect_right(rungs, budget, key=cost)
        return rungs[count - 1] if count else None

    def kept_by_ratio(self, keep_ratio: float) -> set[int]:
        """Give the numbers of the groups that stay where ``int(keep_ratio * groups)`` of them may.

        Raises:
            ValueError: where the rules alone ask for more, or the scores are of a race that did not settle this cut.
        """
        if self.criterion == PROPR:
            return self._share(keep_ratio)
        quota = self.rules.room_beside(len(self._forced), keep_ratio, len(self.graph.groups))
        sizes = np.cumsum([len(unit) for unit in self._units], dtype=int)
        kept = self.kept(int(np.searchsorted(sizes, quota, side="right")))
        self._require_settled(kept, keep_ratio)
        return kept

    def _require_settled(self, kept: set[int], keep_ratio: float) -> None:
        """Refuse to part groups that a race has seen on one side of the cut, except for those that the rules force."""
        sides = enumerate(() if self._decided is None else self._decided.tolist())
        free = [(number, side) for number, side in sides if number not in self._forced]
        wrong = [number for number, side in free if side > 1 or (side and (side > 0) != (number in kept))]
        if wrong:
            layer, index = self.graph.groups[wrong[0]][0]
            raise ValueError(
                f"the race for KEEP_RATIO {keep_ratio} did not settle this cut: with {self.rules}, {len(wrong)} "
                f"decisions (the first: filter {index} of {layer}) fall on the other side than it decided; "
                "score exactly (tools/score_filters.py --mode exact, which fills in what is missing), race again with "
                "these rules in the YAML, or take another KEEP_RATIO"
            )

    def _share(self, keep_ratio: float) -> set[int]:
        kept = set(self._forced)
        for numbers in alike(self.graph):
            count = int(keep_ratio * len(numbers))
            is_whole = count == len(numbers) or count % self.rules.round_to == 0
            kept.update(numbers[: count if is_whole else count - count % self.rules.round_to])
        return kept

    def _chosen(self, kept: Iterable[int]) -> set[int]:
        if self.criterion == RV_CAPR and self._values is not None:
            return least_of_each_layer(self._values, self.graph, set(kept))
        return set(kept)


def ranked_ladder(
    graph: ChannelGraph, values: np.ndarray, criterion: str, rules: LayerRules, decided: np.ndarray | None = None
) -> CutLadder:
    """Order cuts by scores.

    Without rounding the groups are added one by one, the best first. With ``round_to`` n the groups of each layer, best
    first, make up blocks of n, which stay or go whole; the blocks are added by their mean score, the best first, until
    the next one does not fit. A layer whose number of filters is no multiple of n ends with a smaller block.

    Args:
        graph: of the network.
        values: ``(groups,)`` of ``group_scores``.
        criterion: one that ranks.
        rules: of each layer; what they ask for stays on every rung.
        decided: by the race that the scores are of, see `CutLadder`.
    """
    ranked = best_first(values, criterion)
    signed = values if criterion == RV_CAPR_GLOBAL else -values
    place = {number: i for i, number in enumerate(ranked)}
    keyed: list[tuple[float, int, Unit]] = []
    for numbers in alike(graph):
        key = -np.inf
        for block in _blocks(sorted(numbers, key=place.__getitem__), rules.round_to):
            key = max(key, float(signed[list(block)].mean()))  # rounding must not put a block before a better one
            keyed.append((key, place[block[0]], block))
    units = [block for _, _, block in sorted(keyed)]
    return CutLadder(graph, rules, criterion, units, _forced(graph, units, rules), values, decided)


def proportional_ladder(graph: ChannelGraph, rules: LayerRules) -> CutLadder:
    """Order cuts by the share of its filters that each layer keeps, the first ones first: the paper's ProPr."""
    steps: dict[Fraction, list[int]] = {}
    blocks: list[Unit] = []
    for numbers in alike(graph):
        for block in _blocks(numbers, rules.round_to):
            end = numbers.index(block[-1]) + 1
            steps.setdefault(Fraction(end, len(numbers)), []).extend(block)
            blocks.append(block)
    units = [tuple(steps[share]) for share in sorted(steps)]
    return CutLadder(graph, rules, PROPR, units, _forced(graph, blocks, rules))


def _blocks(numbers: Sequence[int], size: int) -> Iterable[Unit]:
    return (tuple(numbers[start : start + size]) for start in range(0, len(numbers), size))


def _forced(graph: ChannelGraph, units: Sequence[Unit], rules: LayerRules) -> set[int]:
    """Pick the units of protected layers, then, as ranked, those that a layer with too few filters has a filter in."""
    protected, num_kept = rules.protected(graph), {layer.name: 0 for layer in graph.prunable}

    def layers_of(unit: Unit) -> Iterable[str]:
        return (layer for number in unit for layer, _ in graph.groups[number])

    chosen = [unit for unit in units if not protected.isdisjoint(layers_of(unit))]
    for layer in chain.from_iterable(map(layers_of, chosen)):
        num_kept[layer] += 1
    taken = set(chosen)
    for unit in units:
        if unit not in taken and any(num_kept[layer] < rules.min_filters for layer in layers_of(unit)):
            chosen.append(unit)
            for layer in layers_of(unit):
                num_kept[layer] += 1
    return set(chain.from_iterable(chosen))
