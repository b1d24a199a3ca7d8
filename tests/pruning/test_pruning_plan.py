"""Which filters a plan keeps, against ranking them by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_networks import SparseDense, voxel_batch

from cakdp_ext.config import ConfigError, ModelSource, from_node
from cakdp_ext.pruning import (
    ChannelGraph,
    Filter,
    ProducerLayer,
    PruningConfig,
    Slot,
    apply_plan,
    architecture_fingerprint,
    criterion_of,
    plan_from_scores,
    proportional_plan,
    trace_channels,
)
from cakdp_ext.types import FilterScores


def graph_of(**widths):
    """Layers without sums; every filter feeds one channel of a head."""
    layers = {
        name: ProducerLayer(name, (n, 1), tuple((Slot("head", i),) for i in range(n)), ((),) * n)
        for name, n in widths.items()
    }
    groups = tuple((Filter(name, i),) for name, n in widths.items() for i in range(n))
    return ChannelGraph(layers, tuple(layers.values()), groups, {})


def scores_of(**values):
    arrays = {name: np.array(v, np.float64) for name, v in values.items()}
    return FilterScores(arrays, "weights", "channel", "held_out", ("f0", "f1"), "0")


def test_the_largest_scores_stay_whatever_their_layer():
    plan = plan_from_scores(scores_of(a=[0.1, 0.9, 0.3], b=[0.8, 0.2]), graph_of(a=3, b=2), 0.6)
    assert plan.keep_indices == {"a": (1, 2), "b": (0,)}
    assert plan.num_filters == {"a": 3, "b": 2}
    assert plan.keep_ratio == pytest.approx(0.6)


@pytest.mark.parametrize(("ratio", "number"), [(0.5, 5), (0.39, 3), (0.29, 2), (1.0, 10), (1, 10)])
def test_number_of_filters_is_rounded_down_as_in_the_released_code(ratio, number):
    plan = plan_from_scores(scores_of(a=np.arange(10.0)), graph_of(a=10), ratio)
    assert plan.keep_indices["a"] == tuple(range(10 - number, 10))


def test_ties_go_to_the_earlier_layer_and_the_earlier_filter():
    plan = plan_from_scores(scores_of(b=[1.0, 1.0, 1.0], a=[1.0, 1.0, 1.0]), graph_of(b=3, a=3), 4 / 6)
    assert plan.keep_indices == {"b": (0, 1, 2), "a": (0,)}
    many = plan_from_scores(scores_of(b=[1.0] * 50, a=[1.0] * 50), graph_of(b=50, a=50), 0.6)
    assert many.keep_indices == {"b": tuple(range(50)), "a": tuple(range(10))}


def test_an_emptied_layer_is_an_error_that_says_what_to_do():
    scores, graph = scores_of(a=[5.0, 6.0], b=[1.0, 2.0]), graph_of(a=2, b=2)
    with pytest.raises(ValueError, match="KEEP_RATIO 0.5 leaves b with no filter; raise it or set MIN_FILTERS"):
        plan_from_scores(scores, graph, 0.5)


def test_min_filters_keeps_the_best_of_each_layer_first_and_the_ratio_holds():
    scores, graph = scores_of(a=[5.0, 6.0, 7.0, 8.0], b=[1.0, 2.0]), graph_of(a=4, b=2)
    assert plan_from_scores(scores, graph, 0.5, min_filters=1).keep_indices == {"a": (2, 3), "b": (1,)}
    assert plan_from_scores(scores, graph, 4 / 6, min_filters=2).keep_indices == {"a": (2, 3), "b": (0, 1)}
    assert plan_from_scores(scores, graph, 5 / 6, min_filters=3).keep_indices == {"a": (1, 2, 3), "b": (0, 1)}


def test_more_guaranteed_filters_than_the_ratio_keeps_is_an_error():
    with pytest.raises(ValueError, match=r"KEEP_RATIO 0.5 keeps 3 filters, but MIN_FILTERS 2 asks for 4"):
        plan_from_scores(scores_of(a=[5.0, 6.0, 7.0, 8.0], b=[1.0, 2.0]), graph_of(a=4, b=2), 0.5, min_filters=2)


@settings(max_examples=50, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    ratio=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
    min_filters=st.integers(0, 3),
)
def test_no_removed_filter_beats_a_kept_one_that_no_guarantee_saved(widths, ratio, seed, min_filters):
    names = {f"layer{i}": n for i, n in enumerate(widths)}
    rng = np.random.default_rng(seed)
    scores = scores_of(**{name: rng.integers(0, 5, n) for name, n in names.items()})
    quota, graph = int(ratio * sum(widths)), graph_of(**names)
    best = sorted(((-v, rank, name) for rank, name in enumerate(names) for v in scores.values[name]))[:quota]
    error = None
    if sum(min(min_filters, n) for n in widths) > quota:
        error = "MIN_FILTERS"
    elif min_filters == 0 and {name for _, _, name in best} != set(names):
        error = "with no filter"
    if error:
        with pytest.raises(ValueError, match=error):
            plan_from_scores(scores, graph, ratio, min_filters=min_filters)
        return
    plan = plan_from_scores(scores, graph, ratio, min_filters=min_filters)
    kept = {name: [scores.values[name][i] for i in keep] for name, keep in plan.keep_indices.items()}
    gone = [v for name, values in scores.values.items() for v in np.delete(values, plan.keep_indices[name])]
    assert sum(map(len, kept.values())) == quota
    free = [v for name, values in kept.items() for v in sorted(values)[: max(len(values) - min_filters, 0)]]
    assert not gone or not free or min(free) >= max(gone)
    assert all(len(kept[name]) >= min(min_filters, n) for name, n in names.items())


def test_filters_that_meet_in_a_sum_count_once_and_stay_together():
    batch = voxel_batch()
    model = SparseDense()
    graph = trace_channels(model, lambda network: network(batch))
    values = {layer.name: np.full(layer.num_filters, 1.0) for layer in graph.prunable}
    values["backbone_2d.residual.0"][[2, 5]] = 9.0
    scores = replace(scores_of(), values=values)
    plan = plan_from_scores(scores, graph, 0.5, min_filters=1)
    assert {2, 5} <= set(plan.keep_indices["backbone_2d.residual.0"])
    assert plan.keep_indices["backbone_2d.residual.0"] == plan.keep_indices["backbone_2d.stem.1"]
    assert sum(len(keep) for name, keep in plan.keep_indices.items() if name != "backbone_2d.stem.1") == int(0.5 * 25)
    apply_plan(model, plan, graph)(batch)


def tied(**widths):
    """Layers whose filters of one number meet in a sum."""
    count = min(widths.values())
    return replace(graph_of(**widths), groups=tuple(tuple(Filter(name, i) for name in widths) for i in range(count)))


def both(first, second):
    """Two networks side by side."""
    layers = {**first.layers, **second.layers}
    return ChannelGraph(layers, first.prunable + second.prunable, first.groups + second.groups, {})


def test_a_groups_score_is_the_sum_over_it_and_counts_once():
    graph = both(tied(a=3, b=3), graph_of(c=3))
    scores = scores_of(a=[3.0, 0.0, 2.0], b=[0.0, 4.0, 1.0], c=[3.5, 2.9, 2.0])
    plan = plan_from_scores(scores, graph, 0.5)  # sums 3, 4, 3 beside 3.5, 2.9, 2: the best three
    assert plan.keep_indices == {"a": (0, 1), "b": (0, 1), "c": (0,)}
    assert plan.source["decisions"] == [3, 6]
    assert plan.source["sums"] == [{"layers": ["a", "b"], "decisions": [2, 3]}]
    assert plan_from_scores(scores, graph, 0.34).keep_indices == {"a": (1,), "b": (1,), "c": (0,)}


def test_the_global_reverse_keeps_the_smallest_scores():
    scores, graph = scores_of(a=[0.1, 0.9, 0.3], b=[0.8, 0.2, 0.3]), graph_of(a=3, b=3)
    plan = plan_from_scores(scores, graph, 0.5, criterion="RV-CaPr-global")
    assert plan.keep_indices == {"a": (0, 2), "b": (1,)}  # among equals the earlier layer
    assert plan.source["criterion"] == "RV-CaPr-global"
    kept = plan_from_scores(scores, graph, 4 / 6, criterion="RV-CaPr-global", min_filters=2).keep_indices
    assert kept == {"a": (0, 2), "b": (1, 2)}


def test_the_reverse_has_the_papers_widths_and_the_wrong_filters():
    graph = both(graph_of(a=3, b=4), tied(c=2, d=2))
    scores = scores_of(a=[0.1, 0.9, 0.3], b=[0.8, 0.2, 0.2, 0.7], c=[0.4, 0.1], d=[0.4, 0.0])
    assert plan_from_scores(scores, graph, 0.5).keep_indices == {"a": (1,), "b": (0, 3), "c": (0,), "d": (0,)}
    plan = plan_from_scores(scores, graph, 0.5, criterion="RV-CaPr")
    assert plan.keep_indices == {"a": (0,), "b": (1, 2), "c": (1,), "d": (1,)}
    assert plan.source["criterion"] == "RV-CaPr"


def numbered(widths, seed):
    """Layers of different scores, each with one below and one above all others, so that none is emptied."""
    names, total = {f"layer{i}": n for i, n in enumerate(widths)}, sum(widths)
    shuffled = iter(np.random.default_rng(seed).permutation(total).tolist())
    scores = scores_of(**{name: [*[next(shuffled) for _ in range(n)], -1, total] for name, n in names.items()})
    return scores, graph_of(**{name: n + 2 for name, n in names.items()})


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(2, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_global_reverse_keeps_just_what_the_criterion_removes(widths, seed):
    scores, graph = numbered(widths, seed)
    total, kept = graph.num_filters, []
    for criterion, number in (("CaPr", total // 2), ("RV-CaPr-global", total - total // 2)):
        plan = plan_from_scores(scores, graph, (number + 0.5) / total, criterion=criterion)
        kept.append({(name, i) for name, keep in plan.keep_indices.items() for i in keep})
    assert not kept[0] & kept[1]
    assert len(kept[0] | kept[1]) == total


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(2, 9), min_size=1, max_size=4), seed=st.integers(0, 99), ratio=st.floats(0.5, 1.0))
def test_the_reverse_removes_the_largest_of_each_layer(widths, seed, ratio):
    scores, graph = numbered(widths, seed)
    plans = [plan_from_scores(scores, graph, ratio, criterion=criterion) for criterion in ("CaPr", "RV-CaPr")]
    for name, values in scores.values.items():
        best, least = (plan.keep_indices[name] for plan in plans)
        assert len(best) == len(least)
        assert list(least) == sorted(np.argsort(values, kind="stable")[: len(best)].tolist())


def test_a_share_of_each_layer_needs_no_scores():
    plan = proportional_plan(both(graph_of(a=10, b=5), tied(c=8, d=8)), 0.62)
    assert plan.keep_indices == {"a": tuple(range(6)), "b": (0, 1, 2), "c": tuple(range(4)), "d": tuple(range(4))}
    assert plan.source["criterion"] == "ProPr"
    assert plan.source["decisions"] == [13, 23]
    assert plan.source["sums"] == [{"layers": ["c", "d"], "decisions": [4, 8]}]


def test_a_share_that_empties_a_layer_is_an_error_or_filled_up():
    with pytest.raises(ValueError, match=r"KEEP_RATIO 0.3 leaves b with no filter"):
        proportional_plan(graph_of(a=10, b=3), 0.3)
    assert proportional_plan(graph_of(a=10, b=3), 0.3, min_filters=4).keep_indices == {
        "a": (0, 1, 2, 3),
        "b": (0, 1, 2),
    }
    with pytest.raises(ValueError, match="KEEP_RATIO must be a number above 0"):
        proportional_plan(graph_of(a=10), 0)


def test_layers_that_a_sum_ties_keep_the_same_filters():
    batch = voxel_batch()
    model = SparseDense()
    plan = proportional_plan(trace_channels(model, lambda network: network(batch)), 0.5)
    halves = {name: tuple(range(total // 2)) for name, total in plan.num_filters.items()}
    assert plan.keep_indices == halves
    (tie,) = plan.source["sums"]
    assert tie == {"layers": ["backbone_2d.stem.1", "backbone_2d.residual.0"], "decisions": [3, 7]}
    apply_plan(model, plan, trace_channels(model, lambda network: network(batch)))(batch)


def test_only_criteria_that_rank_can_plan_from_scores():
    with pytest.raises(ValueError, match="CRITERION must be one of CaPr, RV-CaPr, RV-CaPr-global, got 'ProPr'"):
        plan_from_scores(scores_of(a=[1.0, 2.0]), graph_of(a=2), 0.5, criterion="ProPr")


def test_a_plan_is_named_as_in_the_paper():
    plan = plan_from_scores(scores_of(a=[1.0, 2.0]), graph_of(a=2), 0.5)
    config = PruningConfig(ModelSource("a.yaml", "a.pth"), 0.5)
    assert criterion_of(plan) == criterion_of(plan, config) == "CaPr"
    assert criterion_of(plan, replace(config, initial_weights="random")) == "RD-CaPr"
    share = proportional_plan(graph_of(a=2), 0.5)
    assert criterion_of(share, replace(config, initial_weights="random")) == "ProPr, random weights"
    assert criterion_of(replace(plan, source={})) == "a plan of one's own"


def test_the_plan_says_where_it_came_from():
    graph = graph_of(a=2)
    plan = plan_from_scores(scores_of(a=[1.0, 2.0]), graph, 0.5, source={"scores": "scores.npz"})
    assert plan.fingerprint == architecture_fingerprint(graph)
    assert plan.source["scores"] == "scores.npz"
    assert (plan.source["scored_model"], plan.source["num_frames"], plan.source["keep_ratio"]) == ("weights", 2, 0.5)


def test_scores_of_other_layers_are_refused():
    with pytest.raises(ValueError, match="b has 3 prunable filters, but 2 scores"):
        plan_from_scores(scores_of(a=[1.0], b=[1.0, 2.0]), graph_of(a=1, b=3), 0.5)
    with pytest.raises(ValueError, match="b has no prunable filters, but 1 scores"):
        plan_from_scores(scores_of(a=[1.0], b=[1.0]), graph_of(a=1), 0.5)


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="filter 1 of a has the score NaN"):
        plan_from_scores(scores_of(a=[1.0, np.nan]), graph_of(a=2), 0.5)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.5, float("nan"), True, "half"])
def test_ratio_outside_of_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match="KEEP_RATIO must be a number above 0 and at most 1"):
        plan_from_scores(scores_of(a=[1.0]), graph_of(a=1), ratio)


def test_config_reads_a_pruning_section():
    node = {"KEEP_RATIO": 0.5, "STUDENT": {"CFG": "a.yaml", "CKPT": "a.pth"}, "NUM_FRAMES": 8}
    config = from_node(PruningConfig, node, "MODEL.PRUNING")
    assert config.student == ModelSource("a.yaml", "a.pth")
    assert (config.keep_ratio, config.num_frames, config.removal, config.min_filters) == (0.5, 8, "channel", 0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("KEEP_RATIO", 50, "KEEP_RATIO must be a number above 0 and at most 1, got 50"),
        (
            "CRITERION",
            "RD-CaPr",
            "one of CaPr, RV-CaPr, RV-CaPr-global, ProPr, got 'RD-CaPr'; .* is CaPr with INITIAL_WEIGHTS: random",
        ),
        ("CRITERION", None, "CRITERION must be one of CaPr, RV-CaPr, RV-CaPr-global, ProPr, got None"),
        ("REMOVAL", "weights", "REMOVAL must be one of channel, zero_weight"),
        ("INITIAL_WEIGHTS", "zero", "INITIAL_WEIGHTS must be one of inherited, random"),
        ("MIN_FILTERS", -1, "MIN_FILTERS must be a whole number of at least 0"),
        ("NUM_FRAMES", 2.5, "NUM_FRAMES must be a whole number"),
        ("PRUNING_RATE", 0.5, "unknown key PRUNING_RATE"),
    ],
)
def test_config_refuses_what_makes_no_sense(key, value, message):
    node = {"KEEP_RATIO": 0.5, "STUDENT": {"CFG": "a.yaml", "CKPT": "a.pth"}, key: value}
    with pytest.raises(ConfigError, match=message):
        from_node(PruningConfig, node, "MODEL.PRUNING")
