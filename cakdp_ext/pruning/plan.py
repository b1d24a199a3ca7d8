"""Which filters stay? The best of all layers together, as Eq. 5 of the paper asks, or what it is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cakdp_ext.pruning.artefacts import architecture_fingerprint
from cakdp_ext.pruning.criteria import CAPR, group_scores
from cakdp_ext.pruning.graph import ChannelGraph
from cakdp_ext.pruning.ladder import CutLadder, LayerRules, proportional_ladder, ranked_ladder
from cakdp_ext.types import FilterScores, PruningPlan


def require_ratio(keep_ratio: Any) -> None:
    """Refuse what is no share above 0.

    Raises:
        ValueError: naming KEEP_RATIO.
    """
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, int | float) or not 0 < keep_ratio <= 1:
        raise ValueError(f"KEEP_RATIO must be a number above 0 and at most 1, got {keep_ratio!r}")


def plan_from_scores(
    scores: FilterScores,
    graph: ChannelGraph,
    keep_ratio: float,
    *,
    criterion: str = CAPR,
    min_filters: int = 0,
    round_to: int = 1,
    protect: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
) -> PruningPlan:
    """Keep the ``int(keep_ratio * decisions)`` filters with the largest scores, whatever layer they are in.

    Filters that meet in a sum are one decision: their score is the sum of theirs, and they count once. Between equal
    scores the earlier layer, then the earlier filter stays.

    Args:
        scores: of every prunable filter of ``graph``.
        graph: of the network that is cut.
        keep_ratio: in (0, 1].
        criterion: ``CaPr``, or one that keeps the smallest scores in place of the largest: ``RV-CaPr`` of each layer as
            many as CaPr does, ``RV-CaPr-global`` of all layers together.
        min_filters: the first that many filters of each layer stay anyway (all of a layer that has fewer), and the rest
            of the number is filled up; 0 makes an emptied layer an error.
        round_to: of each layer a multiple of so many filters stays, or all, see :func:`ranked_ladder`; the number of
            decisions that stay is then at most as large as without.
        protect: layers that keep all filters, see :class:`LayerRules`; their filters count.
        source: what else reports shall say about the plan's origin; values must fit into JSON.

    Returns:
        The plan; layers in canonical order.

    Raises:
        ValueError: for a ratio outside (0, 1], another criterion, scores of other layers or with NaN, a pattern that
            fits no layer, a layer left with no filter, more guaranteed filters than the ratio keeps, or a cut that the
            race of the scores did not settle.

    Source: CaKDP (Zhang et al., CVPR 2024), Eq. 5 and section 5.2; number of filters as in the authors' released code.
    """
    require_ratio(keep_ratio)
    require_race_for(scores, keep_ratio, criterion)
    rules = LayerRules(min_filters, round_to, tuple(protect))
    ladder = ladder_from_scores(scores, graph, criterion, rules)
    origin = {"keep_ratio": float(keep_ratio), **scored_by(scores), **(source or {})}
    return plan_of(ladder, ladder.kept_by_ratio(keep_ratio), origin)


def proportional_plan(
    graph: ChannelGraph,
    keep_ratio: float,
    *,
    min_filters: int = 0,
    round_to: int = 1,
    protect: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
) -> PruningPlan:
    """Keep the first ``int(keep_ratio * filters)`` filters of every layer: the paper's ProPr.

    Layers that sums tie together keep the same filters.

    Args:
        graph: of the network that is cut.
        keep_ratio: in (0, 1].
        min_filters: every layer keeps so many at least; 0 makes an emptied layer an error.
        round_to: each number is rounded down to a multiple of this, but at least up to ``min_filters``.
        protect: layers that keep all filters, see :class:`LayerRules`.
        source: what else reports shall say about the plan's origin; values must fit into JSON.

    Returns:
        The plan; layers in canonical order.

    Raises:
        ValueError: for a ratio outside (0, 1], a pattern that fits no layer, or a layer left with no filter.

    Source: CaKDP (Zhang et al., CVPR 2024), ProPr of section 5.2; in Eq. 2 its metric is a constant, so that nothing
        tells one filter of a layer from another.
    """
    require_ratio(keep_ratio)
    ladder = proportional_ladder(graph, LayerRules(min_filters, round_to, tuple(protect)))
    origin = {"keep_ratio": float(keep_ratio), **(source or {})}
    return plan_of(ladder, ladder.kept_by_ratio(keep_ratio), origin)


def ladder_from_scores(scores: FilterScores, graph: ChannelGraph, criterion: str, rules: LayerRules) -> CutLadder:
    """Order the cuts of a network by its filters' scores.

    Raises:
        ValueError: as :func:`plan_from_scores`.
    """
    _require_scores(scores, graph)
    decided = None if scores.race is None else scores.race.decided
    return ranked_ladder(graph, group_scores(scores, graph), criterion, rules, decided)


def require_raceable(criterion: str) -> None:
    """Refuse a race for another cut than that between the largest scores and the others.

    Raises:
        ValueError: naming the criterion.
    """
    if criterion != CAPR:
        raise ValueError(
            f"a race settles which filters CRITERION {CAPR} keeps, not {criterion}; score exactly "
            "(tools/score_filters.py --mode exact)"
        )


def require_race_for(scores: FilterScores, keep_ratio: float | None, criterion: str) -> None:
    """Refuse the scores of a race that was about another cut.

    Raises:
        ValueError: naming the keep ratio that it was about, or the criterion.
    """
    if scores.race is None:
        return
    require_raceable(criterion)
    if scores.race.keep_ratio != keep_ratio:
        raise ValueError(
            f"these filters raced for KEEP_RATIO {scores.race.keep_ratio}, which tells nothing about another cut; "
            "score them exactly (tools/score_filters.py --mode exact), or race for this one"
        )


def scored_by(scores: FilterScores) -> dict[str, Any]:
    """Say in a plan's ``source`` where its scores came from."""
    names = ("confidence", "agreement", "seed", "num_frames")
    race = {} if scores.race is None else {name: getattr(scores.race, name) for name in names}
    return {
        **({"race": race} if race else {}),
        "removal": scores.removal,
        "split": scores.split,
        "num_frames": len(scores.frame_ids),
        "scored_model": scores.fingerprint,
    }


def _require_scores(scores: FilterScores, graph: ChannelGraph) -> None:
    expected = {layer.name: layer.num_filters for layer in graph.prunable}
    got = {name: len(values) for name, values in scores.values.items()}
    if got != expected:
        first = next(name for name in (*expected, *got) if got.get(name) != expected.get(name))
        raise ValueError(
            f"the scores do not fit the network: {first} has {expected.get(first, 'no')} prunable filters, but "
            f"{got.get(first, 'no')} scores; score this network"
        )
    if scores.race is None and scores.gaps is not None and (lacks := np.isnan(scores.gaps).any(axis=0)).any():
        raise ValueError(
            f"the scores are not whole: {int(lacks.sum())} of {len(graph.groups)} decisions "
            "were not measured on every frame; tools/score_filters.py fills in what is missing"
        )
    for name, values in scores.values.items():
        if np.isnan(values).any():
            raise ValueError(f"filter {int(np.isnan(values).argmax())} of {name} has the score NaN; score again")


def plan_of(ladder: CutLadder, kept: Iterable[int], source: Mapping[str, Any]) -> PruningPlan:
    """Write down which filters the kept groups are, and what was decided how often.

    Args:
        ladder: that the groups were chosen from; criterion and rules of the layers go into ``source``.
        kept: numbers of groups.
        source: what else reports shall say.

    Raises:
        ValueError: naming a layer that is left with no filter.
    """
    graph, kept = ladder.graph, sorted(kept)
    keep_indices: dict[str, list[int]] = {layer.name: [] for layer in graph.prunable}
    for number in kept:
        for layer, index in graph.groups[number]:
            keep_indices[layer].append(index)
    for name, indices in keep_indices.items():
        if not indices:
            ratio = source.get("keep_ratio")
            raise ValueError(f"KEEP_RATIO {ratio} leaves {name} with no filter; raise it or set MIN_FILTERS")
    return PruningPlan(
        keep_indices={name: tuple(sorted(indices)) for name, indices in keep_indices.items()},
        num_filters={layer.name: layer.num_filters for layer in graph.prunable},
        fingerprint=architecture_fingerprint(graph),
        source={
            "criterion": ladder.criterion,
            **ladder.rules.as_dict(),
            **source,
            "decisions": [len(kept), len(graph.groups)],
            "sums": _sums(graph, kept),
        },
    )


def _sums(graph: ChannelGraph, kept: Iterable[int]) -> list[dict[str, Any]]:
    """List the layers whose filters meet in sums: how many decisions they were, and how many of them stay."""
    layers = [tuple(dict.fromkeys(layer for layer, _ in group)) for group in graph.groups]
    is_sum = [len(group) > 1 for group in graph.groups]
    total = Counter(names for names, tied in zip(layers, is_sum, strict=True) if tied)
    stay = Counter(layers[number] for number in kept if is_sum[number])
    return [{"layers": list(names), "decisions": [stay[names], count]} for names, count in total.items()]
