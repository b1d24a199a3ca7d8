"""Costs counted from the channel graph, against networks that were really cut and run."""

from __future__ import annotations

import numpy as np
import pytest
from pruning_networks import SparseDense, SparseUNet, randomize, voxel_batch

from cakdp_ext.pruning import (
    ACTIVATIONS,
    EXACT,
    CutCounter,
    apply_plan,
    count_layers,
    count_parameters,
    plan_from_scores,
    trace_channels,
)
from cakdp_ext.types import FilterScores


def any_scores(graph, seed):
    random = np.random.default_rng(seed)
    values = {layer.name: random.random(layer.num_filters) for layer in graph.prunable}
    return FilterScores(values, "weights", "channel", "held_out", ("f0",), "0")


def frame_counts(model, batches):
    return [count_layers(lambda m, b=batch: m(b), model, (EXACT, ACTIVATIONS)) for batch in batches]


@pytest.mark.parametrize("network", [SparseDense, SparseUNet])
@pytest.mark.parametrize("ratio", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_counted_costs_are_those_of_the_network_after_surgery(network, ratio, seed):
    model, batches = randomize(network()), [voxel_batch(seed=i) for i in range(2)]
    graph = trace_channels(model, lambda m: m(batches[0]))
    plan = plan_from_scores(any_scores(graph, seed), graph, ratio, min_filters=1)
    got = CutCounter(model, graph, frame_counts(model, batches))(plan)
    cut = apply_plan(model, plan, graph)
    want = frame_counts(cut, batches)
    assert got.params == count_parameters(cut)
    assert got.macs == np.mean([counts[EXACT].total for counts in want])
    assert got.activations == np.mean([counts[ACTIVATIONS].total for counts in want])


def test_frozen_weights_do_not_count():
    model, batch = SparseDense(), voxel_batch()
    model.backbone_3d.requires_grad_(False)
    model.backbone_2d["stem"][2].bias.requires_grad_(False)
    graph = trace_channels(model, lambda m: m(batch))
    plan = plan_from_scores(any_scores(graph, 0), graph, 0.5, min_filters=1)
    got = CutCounter(model, graph, frame_counts(model, [batch]))(plan)
    assert got.params == count_parameters(apply_plan(model, plan, graph))


def test_nothing_is_counted_on_no_frame():
    model, batch = SparseDense(), voxel_batch()
    with pytest.raises(ValueError, match="counted on frames, got none"):
        CutCounter(model, trace_channels(model, lambda m: m(batch)), [])
