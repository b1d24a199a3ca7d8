"""By what are filters chosen? The paper's criterion and those that it compares itself with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from cakdp_ext.pruning.graph import ChannelGraph
from cakdp_ext.types import FilterScores

CAPR, RV_CAPR, RV_CAPR_GLOBAL, PROPR = "CaPr", "RV-CaPr", "RV-CaPr-global", "ProPr"
RANKED = (CAPR, RV_CAPR, RV_CAPR_GLOBAL)
"""Those that ask for scores."""
CRITERIA = (*RANKED, PROPR)


def require_criterion(criterion: object, known: Sequence[str] = CRITERIA) -> None:
    """Refuse a name that is none of ``known``.

    Raises:
        ValueError: listing them.
    """
    if criterion not in known:
        raise ValueError(
            f"CRITERION must be one of {', '.join(known)}, got {criterion!r}; the paper's RD-CaPr is {CAPR} with "
            "INITIAL_WEIGHTS: random"
        )


def group_scores(scores: FilterScores, graph: ChannelGraph) -> np.ndarray:
    """Give ``(groups,)`` float64: the sum of the scores of each group's filters.

    After a race the numbers are places, the larger the better: those that the race decided to keep come before all
    others, those that it decided to drop behind, because they were not measured on the same frames.
    """
    values = np.array([sum(float(scores.values[layer][index]) for layer, index in group) for group in graph.groups])
    if scores.race is not None:
        places = np.arange(len(values))
        values[np.lexsort((-places, values, scores.race.decided))] = places  # among equals the earlier comes first
    return values


def best_first(values: np.ndarray, criterion: str) -> list[int]:
    """Sort the numbers of the groups: those that shall stay come first.

    Groups are in canonical order, so that among equals the earlier layer, then the earlier filter comes first.

    Args:
        values: of :func:`group_scores`.
        criterion: ``CaPr`` and ``RV-CaPr``: the largest score first; ``RV-CaPr-global``: the smallest.

    Raises:
        ValueError: for a criterion that ranks nothing.

    Source: CaKDP (Zhang et al., CVPR 2024), Eq. 5 and section 5.2.
    """
    require_criterion(criterion, RANKED)
    return np.argsort(values if criterion == RV_CAPR_GLOBAL else -values, kind="stable").tolist()


def least_of_each_layer(values: np.ndarray, graph: ChannelGraph, kept: Collection[int]) -> set[int]:
    """Keep as many groups of each layer as before, but those with the smallest scores; among equals the earlier.

    Args:
        values: of :func:`group_scores`.
        graph: of the network.
        kept: numbers of the groups that CaPr keeps.

    Returns:
        Numbers of groups.

    Source: CaKDP (Zhang et al., CVPR 2024), RV-CaPr of section 5.2 at the costs of Table 6, which are CaPr's.
    """
    chosen: set[int] = set()
    for numbers in alike(graph):
        count = sum(number in kept for number in numbers)
        chosen.update(sorted(numbers, key=lambda number: values[number])[:count])
    return chosen


def alike(graph: ChannelGraph) -> list[list[int]]:
    """Sort the groups by the layers that they are of: one list a layer, or a set of layers that sums tie together."""
    alike: dict[frozenset[str], list[int]] = defaultdict(list)
    for number, group in enumerate(graph.groups):
        alike[frozenset(layer for layer, _ in group)].append(number)
    return list(alike.values())
