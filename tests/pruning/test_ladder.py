"""Which cuts there are to choose from: rounded to multiples, with protected layers, each inside the next."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pruning_networks import SparseDense, voxel_batch
from test_pruning_plan import both, graph_of, scores_of, tied

from cakdp_ext.pruning import (
    LayerRules,
    apply_plan,
    ladder_from_scores,
    plan_from_scores,
    proportional_ladder,
    proportional_plan,
    trace_channels,
)
from cakdp_ext.types import FilterScores


def random_case(widths, seed, levels=9):
    """Layers without sums, and small numbers of eighths as scores: many are equal, and their sums are exact."""
    names = {f"layer{i}": n for i, n in enumerate(widths)}
    random = np.random.default_rng(seed)
    return scores_of(**{name: random.integers(0, levels, n) / 8 for name, n in names.items()}), graph_of(**names)


def blocks_by_hand(scores, size):
    """Block after block of the best filters of each layer, the best mean first, then the earlier layer and filter."""
    blocks = []
    for rank, (name, values) in enumerate(scores.values.items()):
        best = sorted(range(len(values)), key=lambda i, v=values: (-v[i], i))
        chunks = [best[i : i + size] for i in range(0, len(best), size)]
        means = [sum(round(8 * values[i]) for i in chunk) / len(chunk) for chunk in chunks]
        blocks += [(-mean, -values[c[0]], rank, c[0], name, c) for mean, c in zip(means, chunks, strict=True)]
    return [(name, chunk) for *_, name, chunk in sorted(blocks)]


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    ratio=st.floats(0.05, 1.0),
    seed=st.integers(0, 99),
    size=st.integers(1, 5),
)
@example(widths=[12, 9], ratio=0.875, seed=8, size=3)  # two blocks of one mean, which tenths would not sum to exactly
def test_blocks_are_added_by_their_mean_until_the_next_does_not_fit(widths, ratio, seed, size):
    scores, graph = random_case(widths, seed)
    quota, want = int(ratio * sum(widths)), defaultdict(set)
    for name, chunk in blocks_by_hand(scores, size):
        if sum(map(len, want.values())) + len(chunk) > quota:
            break
        want[name].update(chunk)
    if len(want) < len(widths):
        with pytest.raises(ValueError, match="with no filter"):
            plan_from_scores(scores, graph, ratio, round_to=size)
        return
    plan = plan_from_scores(scores, graph, ratio, round_to=size)
    assert {name: set(kept) for name, kept in plan.keep_indices.items()} == want


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    seed=st.integers(0, 99),
    size=st.integers(1, 6),
    least=st.integers(0, 7),
    criterion=st.sampled_from(["CaPr", "RV-CaPr", "RV-CaPr-global", "ProPr"]),
)
def test_every_rung_obeys_the_rules_and_keeps_what_the_one_below_keeps(widths, seed, size, least, criterion):
    scores, graph = random_case(widths, seed)
    rules = LayerRules(least, size, ("layer1",))
    if criterion == "ProPr":
        ladder = proportional_ladder(graph, rules)
    else:
        ladder = ladder_from_scores(scores, graph, criterion, rules)
    below = set()
    for rung in range(ladder.highest + 1):
        kept, counts = ladder.kept(rung), defaultdict(int)
        for number in kept:
            counts[graph.groups[number][0].layer] += 1
        assert counts["layer1"] == widths[1]
        for i, width in enumerate(widths):
            count = counts[f"layer{i}"]
            assert count % size == 0 or count == width
            assert count >= min(least, width)
        assert (rung >= ladder.lowest) == all(counts[f"layer{i}"] for i in range(len(widths)))
        assert criterion == "RV-CaPr" or below <= kept
        assert len(kept) > len(below) or rung == 0
        below = kept
    assert len(below) == sum(widths)


def test_equal_scores_leave_no_layer_with_its_remainder_alone():
    """Means of 8 and of 4 equal numbers need not be equal to the last bit."""
    graph = graph_of(a=20, b=20)
    for value in (0.1, 0.3, 0.7, 1 / 3):
        scores = scores_of(a=[value] * 20, b=[value] * 20)
        for ratio in np.linspace(0.4, 1.0, 13):
            plan = plan_from_scores(scores, graph, float(ratio), round_to=8, min_filters=1)
            assert {len(kept) for kept in plan.keep_indices.values()} <= {8, 16, 20}


def test_the_reverse_has_the_rounded_widths_of_the_criterion():
    scores, graph = random_case([9, 14, 8], 3, levels=1000)
    plans = [
        plan_from_scores(scores, graph, 0.6, criterion=criterion, round_to=4, min_filters=1, protect=["layer2"])
        for criterion in ("CaPr", "RV-CaPr")
    ]
    widths = [{name: len(kept) for name, kept in plan.keep_indices.items()} for plan in plans]
    assert widths[0] == widths[1]
    assert plans[0].keep_indices["layer1"] != plans[1].keep_indices["layer1"]


def test_tied_layers_are_rounded_and_protected_together():
    batch, model = voxel_batch(), SparseDense()
    graph = trace_channels(model, lambda network: network(batch))
    random = np.random.default_rng(0)
    values = {layer.name: random.random(layer.num_filters) for layer in graph.prunable}
    scores = FilterScores(values, "weights", "channel", "held_out", ("f0",), "0")
    rounded = plan_from_scores(scores, graph, 0.7, min_filters=1, round_to=2)
    assert rounded.keep_indices["backbone_2d.residual.0"] == rounded.keep_indices["backbone_2d.stem.1"]
    assert all(len(k) % 2 == 0 or len(k) == rounded.num_filters[name] for name, k in rounded.keep_indices.items())
    protected = plan_from_scores(scores, graph, 0.7, min_filters=1, protect=["backbone_2d.residual"])
    assert protected.keep_indices["backbone_2d.stem.1"] == tuple(range(7))
    assert len(protected.keep_indices["backbone_2d.side"]) < 4
    for plan in (rounded, protected):
        apply_plan(model, plan, graph)(batch)


@pytest.mark.parametrize(
    ("patterns", "whole"),
    [
        (["conv.*"], {"conv.0", "conv.1"}),
        (["conv"], {"conv.0", "conv.1"}),
        (["*.0", "top"], {"conv.0", "top"}),
        ([], {"top"}),
    ],
)
def test_patterns_name_layers_or_what_they_lie_in(patterns, whole):
    widths = {"conv.0": 4, "conv.1": 4, "top": 8}
    graph = graph_of(**widths)
    scores = scores_of(**{name: np.arange(n) + i / 10 for i, (name, n) in enumerate(widths.items())})
    plan = plan_from_scores(scores, graph, 14 / 16, protect=patterns, min_filters=1)
    assert {name for name, kept in plan.keep_indices.items() if len(kept) == widths[name]} == whole
    assert plan.source["decisions"] == [14, 16]
    assert plan.source["protect"] == patterns


def test_a_pattern_that_fits_nothing_lists_the_layers():
    with pytest.raises(ValueError, match=r"PROTECT 'conv3\*' fits no layer; layers that can be cut: a, b"):
        plan_from_scores(scores_of(a=[1.0], b=[2.0]), graph_of(a=1, b=1), 1.0, protect=["a", "conv3*"])


def test_more_protected_filters_than_the_ratio_keeps_is_an_error():
    scores, graph = scores_of(a=[1.0] * 4, b=[2.0] * 4), graph_of(a=4, b=4)
    message = r"KEEP_RATIO 0.5 keeps 4 filters, but MIN_FILTERS 1 and PROTECT a asks for 5"
    with pytest.raises(ValueError, match=message):
        plan_from_scores(scores, graph, 0.5, protect=["a"], min_filters=1)


def test_shares_are_rounded_down_layer_by_layer():
    graph = both(graph_of(a=20, b=6), tied(c=10, d=10))
    plan = proportional_plan(graph, 0.7, round_to=4)
    assert {name: len(kept) for name, kept in plan.keep_indices.items()} == {"a": 12, "b": 4, "c": 4, "d": 4}
    with pytest.raises(ValueError, match="leaves b with no filter"):
        proportional_plan(graph, 0.5, round_to=4)
    kept = proportional_plan(graph, 0.5, round_to=4, min_filters=5, protect=["c"]).keep_indices
    assert {name: len(indices) for name, indices in kept.items()} == {"a": 8, "b": 6, "c": 10, "d": 10}


@settings(max_examples=40, deadline=None)
@given(widths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99), share=st.floats(0, 1.2))
def test_the_highest_rung_within_a_budget_is_found_as_by_trying_all(widths, seed, share):
    scores, graph = random_case(widths, seed)
    ladder = ladder_from_scores(scores, graph, "CaPr", LayerRules(1))
    steps = np.random.default_rng(seed).integers(0, 5, ladder.highest + 1).cumsum() + 1

    def cost(rung):
        return float(steps[rung])

    rungs = [rung for rung in range(ladder.lowest, ladder.highest + 1) if cost(rung) <= share * steps[-1]]
    assert ladder.highest_within(cost, share * steps[-1]) == max(rungs, default=None)
