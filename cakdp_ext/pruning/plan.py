"""Which filters stay? The best of all layers together, as Eq. 5 of the paper asks, or what it is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cakdp_ext.config import ModelSource
from cakdp_ext.pruning.artefacts import architecture_fingerprint
from cakdp_ext.pruning.criteria import (
    CAPR,
    PROPR,
    RV_CAPR,
    best_first,
    group_scores,
    least_of_each_layer,
    require_criterion,
    same_share_of_each_layer,
)
from cakdp_ext.pruning.graph import ChannelGraph
from cakdp_ext.pruning.score import REMOVALS
from cakdp_ext.types import FilterScores, PruningPlan

INITIAL_WEIGHTS = ("inherited", "random")


@dataclass(frozen=True)
class PruningConfig:
    """Keys of MODEL.PRUNING.

    Attributes:
        keep_ratio: share of all filters that stays, in (0, 1]; the paper's 1 - eta.
        student: the trained network that is scored and cut.
        min_filters: how many filters every layer keeps at least; 0 makes an emptied layer an error.
        criterion: ``CaPr``: the largest scores of all layers together stay; ``RV-CaPr``: as many of each layer, but its
            smallest; ``RV-CaPr-global``: the smallest of all layers together; ``ProPr``: the same share of each layer,
            whatever the scores.
        removal: what "without this filter" means while scoring: ``channel`` or ``zero_weight``.
        scores: score file to plan from; None stands for the run folder's own.
        plan: plan file to cut by; None stands for the run folder's own.
        initial_weights: ``inherited``: those of the filters that stay; ``random``: fresh ones in the same shape.
        split: data split that the filters are scored on.
        num_frames: how many frames of it, evenly spaced; 0 takes all.
    """

    keep_ratio: float
    student: ModelSource
    min_filters: int = 0
    criterion: str = CAPR
    removal: str = "channel"
    scores: str | None = None
    plan: str | None = None
    initial_weights: str = "inherited"
    split: str = "held_out"
    num_frames: int = 0

    def __post_init__(self) -> None:
        _require_ratio(self.keep_ratio)
        require_criterion(self.criterion)
        for name, known in (("removal", REMOVALS), ("initial_weights", INITIAL_WEIGHTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name.upper()} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("min_filters", "num_frames"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name.upper()} must be a whole number of at least 0, got {value!r}")


def criterion_of(plan: PruningPlan, config: PruningConfig | None = None) -> str:
    """Name what a plan was made by, as the paper does; with ``config``, the weights to start from count too."""
    name = str(plan.source.get("criterion", "a plan of one's own"))
    if config is None or config.initial_weights != "random":
        return name
    return "RD-CaPr" if name == CAPR else f"{name}, random weights"


def _require_ratio(keep_ratio: Any) -> None:
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, int | float) or not 0 < keep_ratio <= 1:
        raise ValueError(f"KEEP_RATIO must be a number above 0 and at most 1, got {keep_ratio!r}")


def plan_from_scores(
    scores: FilterScores,
    graph: ChannelGraph,
    keep_ratio: float,
    *,
    criterion: str = CAPR,
    min_filters: int = 0,
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
        source: what else reports shall say about the plan's origin; values must fit into JSON.

    Returns:
        The plan; layers in canonical order.

    Raises:
        ValueError: for a ratio outside (0, 1], another criterion, scores of other layers or with NaN, a layer left with
            no filter, or more guaranteed filters than the ratio keeps.

    Source: CaKDP (Zhang et al., CVPR 2024), Eq. 5 and section 5.2; number of filters as in the authors' released code.
    """
    _require_ratio(keep_ratio)
    _require_scores(scores, graph)
    values = group_scores(scores, graph)
    ranked = best_first(values, criterion)
    quota = int(keep_ratio * len(ranked))
    kept = _guaranteed(ranked, graph, min_filters)
    if len(kept) > quota:
        raise ValueError(
            f"KEEP_RATIO {keep_ratio} keeps {quota} filters, but MIN_FILTERS {min_filters} asks for {len(kept)}; "
            "raise the one or lower the other"
        )
    rest = [number for number in ranked if number not in kept]
    kept.update(rest[: quota - len(kept)])
    if criterion == RV_CAPR:
        kept = least_of_each_layer(values, graph, kept)
    return plan_of_groups(graph, kept, {
        "criterion": criterion,
        "keep_ratio": float(keep_ratio),
        "min_filters": min_filters,
        "removal": scores.removal,
        "split": scores.split,
        "num_frames": len(scores.frame_ids),
        "scored_model": scores.fingerprint,
        **(source or {}),
    })  # fmt: skip


def proportional_plan(
    graph: ChannelGraph, keep_ratio: float, *, min_filters: int = 0, source: Mapping[str, Any] | None = None
) -> PruningPlan:
    """Keep the first ``int(keep_ratio * filters)`` filters of every layer: the paper's ProPr.

    Layers that sums tie together keep the same filters.

    Args:
        graph: of the network that is cut.
        keep_ratio: in (0, 1].
        min_filters: every layer keeps so many at least; 0 makes an emptied layer an error.
        source: what else reports shall say about the plan's origin; values must fit into JSON.

    Returns:
        The plan; layers in canonical order.

    Raises:
        ValueError: for a ratio outside (0, 1], or a layer left with no filter.

    Source: CaKDP (Zhang et al., CVPR 2024), section 5.2.
    """
    _require_ratio(keep_ratio)
    kept = same_share_of_each_layer(graph, keep_ratio, min_filters)
    origin = {"criterion": PROPR, "keep_ratio": float(keep_ratio), "min_filters": min_filters}
    return plan_of_groups(graph, kept, {**origin, **(source or {})})


def _require_scores(scores: FilterScores, graph: ChannelGraph) -> None:
    expected = {layer.name: layer.num_filters for layer in graph.prunable}
    got = {name: len(values) for name, values in scores.values.items()}
    if got != expected:
        first = next(name for name in (*expected, *got) if got.get(name) != expected.get(name))
        raise ValueError(
            f"the scores do not fit the network: {first} has {expected.get(first, 'no')} prunable filters, but "
            f"{got.get(first, 'no')} scores; score this network"
        )
    for name, values in scores.values.items():
        if np.isnan(values).any():
            raise ValueError(f"filter {int(np.isnan(values).argmax())} of {name} has the score NaN; score again")


def _guaranteed(ranked: Sequence[int], graph: ChannelGraph, min_filters: int) -> set[int]:
    """Pick, as they are ranked, groups that a layer with fewer than ``min_filters`` filters so far has a filter in."""
    num_kept = {layer.name: 0 for layer in graph.prunable}
    kept = set()
    for number in ranked:
        group = graph.groups[number]
        if any(num_kept[layer] < min_filters for layer, _ in group):
            kept.add(number)
            for layer, _ in group:
                num_kept[layer] += 1
    return kept


def plan_of_groups(graph: ChannelGraph, kept: Iterable[int], source: Mapping[str, Any]) -> PruningPlan:
    """Write down which filters the kept groups are, and what was decided how often.

    Args:
        graph: of the network that is cut.
        kept: numbers of the groups that stay.
        source: what reports shall say about the plan's origin; ``keep_ratio`` is named in errors.

    Raises:
        ValueError: naming a layer that is left with no filter.
    """
    kept = sorted(kept)
    keep_indices: dict[str, list[int]] = {layer.name: [] for layer in graph.prunable}
    for number in kept:
        for layer, index in graph.groups[number]:
            keep_indices[layer].append(index)
    for name, indices in keep_indices.items():
        if not indices:
            ratio = source["keep_ratio"]
            raise ValueError(f"KEEP_RATIO {ratio} leaves {name} with no filter; raise it or set MIN_FILTERS")
    return PruningPlan(
        keep_indices={name: tuple(sorted(indices)) for name, indices in keep_indices.items()},
        num_filters={layer.name: layer.num_filters for layer in graph.prunable},
        fingerprint=architecture_fingerprint(graph),
        source={**source, "decisions": [len(kept), len(graph.groups)], "sums": _sums(graph, kept)},
    )


def _sums(graph: ChannelGraph, kept: Iterable[int]) -> list[dict[str, Any]]:
    """List the layers whose filters meet in sums: how many decisions they were, and how many of them stay."""
    layers = [tuple(dict.fromkeys(layer for layer, _ in group)) for group in graph.groups]
    is_sum = [len(group) > 1 for group in graph.groups]
    total = Counter(names for names, tied in zip(layers, is_sum, strict=True) if tied)
    stay = Counter(layers[number] for number in kept if is_sum[number])
    return [{"layers": list(names), "decisions": [stay[names], count]} for names, count in total.items()]
