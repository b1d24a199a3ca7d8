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
    plan_from_scores,
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
