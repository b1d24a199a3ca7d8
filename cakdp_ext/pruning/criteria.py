"""By what are filters ranked? The paper's criterion and the two that it compares itself with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cakdp_ext.pruning.graph import ChannelGraph
from cakdp_ext.types import FilterScores

CAPR, RV_CAPR, PROPR = "CaPr", "RV-CaPr", "ProPr"
CRITERIA = (CAPR, RV_CAPR, PROPR)
RANKED = (CAPR, RV_CAPR)
"""Those that ask for scores."""


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
    """Give ``(groups,)`` float64: the sum of the scores of each group's filters."""
    return np.array([sum(float(scores.values[layer][index]) for layer, index in group) for group in graph.groups])


def best_first(scores: FilterScores, graph: ChannelGraph, criterion: str) -> list[int]:
    """Sort the numbers of the groups: those that shall stay come first.

    Groups are in canonical order, so that among equals the earlier layer, then the earlier filter comes first.

    Args:
        scores: of every filter.
        graph: of the network.
        criterion: ``CaPr``: the largest score first; ``RV-CaPr``: the smallest.

    Raises:
        ValueError: for a criterion that ranks nothing.

    Source: CaKDP (Zhang et al., CVPR 2024), Eq. 5 and section 5.2.
    """
    require_criterion(criterion, RANKED)
    values = group_scores(scores, graph)
    return np.argsort(values if criterion == RV_CAPR else -values, kind="stable").tolist()


def same_share_of_each_layer(graph: ChannelGraph, keep_ratio: float, min_filters: int) -> set[int]:
    """Pick the first ``int(keep_ratio * n)`` groups of each layer, and of each set of layers that sums tie together.

    Args:
        graph: of the network.
        keep_ratio: share that stays.
        min_filters: so many stay at least, where there are so many.

    Returns:
        Numbers of groups.

    Source: CaKDP (Zhang et al., CVPR 2024), ProPr of section 5.2; in Eq. 2 its metric is a constant, so that nothing
        tells one filter of a layer from another.
    """
    alike: dict[frozenset[str], list[int]] = defaultdict(list)
    for number, group in enumerate(graph.groups):
        alike[frozenset(layer for layer, _ in group)].append(number)
    kept: set[int] = set()
    for numbers in alike.values():
        kept.update(numbers[: max(int(keep_ratio * len(numbers)), min(min_filters, len(numbers)))])
    return kept
