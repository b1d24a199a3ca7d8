"""Filter scores against cutting each filter out for real."""

from __future__ import annotations

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from pruning_networks import (
    SparseDense,
    SparseUNet,
    class_logits,
    predict,
    randomize,
    second_batch,
    small_second,
    voxel_batch,
)
from spconv.pytorch import ops as spconv_ops
from torch import nn

from cakdp_ext.pruning import (
    FrameGaps,
    apply_plan,
    architecture_fingerprint,
    model_fingerprint,
    score_filters,
    trace_channels,
)
from cakdp_ext.pruning.replay import Absence, SuffixReplay
from cakdp_ext.types import PruningPlan


@pytest.fixture(scope="module")
def toy():
    model, batch = randomize(SparseDense()), voxel_batch()
    return model, trace_channels(model, lambda network: network(batch))


@torch.no_grad()
def gap(model, cut, batch, forward=predict):
    """Eq. 4 for each frame, as it is written."""
    p, without = forward(model, batch).sigmoid(), forward(cut.eval(), batch).sigmoid()
    return [
        sum(abs(float(a) - float(b)) for a, b in zip(before.flatten(), after.flatten(), strict=True)) / len(before)
        for before, after in zip(p, without, strict=True)
    ]


def cut_out(model, graph, group):
    totals = {layer.name: layer.num_filters for layer in graph.prunable}
    keeps = {name: tuple(i for i in range(n) if (name, i) not in group) for name, n in totals.items()}
    return apply_plan(model, PruningPlan(keeps, totals, architecture_fingerprint(graph)), graph)


def zeroed(model, graph, group):
    model = copy.deepcopy(model)
    for layer, channel in group:
        module = model.get_submodule(layer)
        axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
        module.weight.data.select(axis, channel).zero_()
        if module.bias is not None:
            module.bias.data[channel] = 0
    return model


def naive(model, graph, batches, without, forward=predict):
    values = {layer.name: np.zeros(layer.num_filters) for layer in graph.prunable}
    for group in graph.groups:
        cut = without(model, graph, group)
        score = np.mean([value for batch in batches for value in gap(model, cut, batch, forward)])
        for layer, channel in group:
            values[layer][channel] = score / len(group)
    return values


def assert_scores(got, want, tolerance=1e-5):
    assert list(got.values) == list(want)
    for name, values in want.items():
        np.testing.assert_allclose(got.values[name], values, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("removal", "without"), [("channel", cut_out), ("zero_weight", zeroed)])
def test_scores_are_those_of_networks_with_each_filter_really_gone(toy, removal, without):
    model, graph = toy
    batches = [voxel_batch(1), voxel_batch(2, batch_size=2)]
    want = naive(model, graph, batches, without)
    got = score_filters(model, batches, predict, graph, removal=removal)
    assert_scores(got, want)
    assert max(values.max() for values in want.values()) > 1e-2, "differences must not drown in the tolerance"
    assert got.frame_ids == ("frame1_0", "frame2_0", "frame2_1")


def test_the_two_removal_rules_differ_where_a_norm_turns_zero_into_a_constant(toy):
    model, graph = toy
    scores = [score_filters(model, [voxel_batch(1)], predict, graph, removal=r) for r in ("channel", "zero_weight")]
    first = [s.values["backbone_3d.fine.0"] for s in scores]
    assert np.abs(first[0] - first[1]).max() > 1e-3
    last = [s.values["backbone_2d.up"] for s in scores]
    np.testing.assert_allclose(last[0], last[1], atol=1e-6)


def test_in_place_sums_do_not_spoil_what_is_replayed(toy):
    model, graph = toy
    careless = SparseDense(adds_in_place=True).eval()
    careless.load_state_dict(model.state_dict())
    want = score_filters(model, [voxel_batch(1)], predict, graph)
    got = score_filters(careless, [voxel_batch(1)], predict, graph)
    assert_scores(got, want.values, tolerance=1e-7)


@pytest.mark.parametrize("method", ["exact", "plain"])
def test_a_caller_may_be_in_inference_mode(toy, method):
    model, graph = toy
    want = FrameGaps(model, predict, graph, method=method).measure(voxel_batch(1))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="filters are scored by repeating")
        got = FrameGaps(model, predict, graph, method=method).measure(voxel_batch(1))
    np.testing.assert_array_equal(got, want)


def test_inverse_convolution_network():
    model, batch = randomize(SparseUNet()), voxel_batch(4)
    graph = trace_channels(model, lambda network: network(batch))
    assert_scores(score_filters(model, [batch], predict, graph), naive(model, graph, [batch], cut_out))


def test_second_scores_are_those_of_second_with_each_filter_really_gone():
    model, geometry = small_second()
    batch = second_batch(geometry)
    graph = trace_channels(
        model, lambda network: class_logits(network, batch), scope=("backbone_3d.conv_input", "backbone_2d.deblocks")
    )
    assert graph.num_filters == 16 + 6 + 10
    got = score_filters(model, [batch], class_logits, graph)
    assert_scores(got, naive(model, graph, [batch], cut_out, class_logits))


def recorded_calls(model):
    """Count how often every layer really runs."""
    counts = {}

    def counting(name, forward):
        def run(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return forward(*args, **kwargs)

        return run

    for name, module in model.named_modules():
        if not list(module.children()):
            vars(module)["forward"] = counting(name, module.forward)
    return counts


@pytest.mark.parametrize("adds_in_place", [False, True])
def test_replay_computes_only_what_lies_behind_and_gives_the_same_each_time(adds_in_place):
    model, batch = randomize(SparseDense(adds_in_place)), voxel_batch(3)
    counts, channels = recorded_calls(model), torch.tensor([2, 5])
    replay = SuffixReplay(model, lambda: predict(model, batch))
    with replay.opened() as baseline:
        counts.clear()
        got = [replay.without(Absence(inputs={"backbone_2d.up": channels})) for _ in range(3)]
    assert counts == {"backbone_2d.up": 3, "backbone_2d.side": 3, "dense_head": 3}
    hook = model.backbone_2d["up"].register_forward_pre_hook(lambda _, args: args[0].index_fill(1, channels, 0))
    with torch.no_grad():
        for logits in got:
            torch.testing.assert_close(logits, predict(model, batch), atol=0, rtol=0)
        hook.remove()
        torch.testing.assert_close(baseline, predict(model, batch), atol=0, rtol=0)


def test_rulebooks_are_searched_for_once_a_frame(toy, monkeypatch):
    model, graph = toy
    searches, find = itertools.count(), spconv_ops.get_indice_pairs

    def searching(*args, **kwargs):
        next(searches)
        return find(*args, **kwargs)

    monkeypatch.setattr(spconv_ops, "get_indice_pairs", searching)
    gaps = FrameGaps(model, predict, graph)
    gaps.measure(voxel_batch(1))  # whole forwards that check it share them
    before = next(searches)
    gaps.measure(voxel_batch(2))
    assert next(searches) - before == 1 + 2
    assert spconv_ops.get_indice_pairs is searching


def test_network_is_left_as_it_was(toy):
    model, graph = copy.deepcopy(toy[0]), toy[1]
    model.train()
    model.backbone_3d.eval()
    before, modes = model_fingerprint(model), [m.training for m in model.modules()]
    score_filters(model, [voxel_batch(1)], predict, graph)
    assert model_fingerprint(model) == before
    assert [m.training for m in model.modules()] == modes
    assert model.backbone_2d["stem"][3].inplace
    assert not [m for m in model.modules() if "forward" in vars(m)]


def test_no_frame_counts_twice(toy):
    model, graph = toy
    a, b = voxel_batch(1), voxel_batch(2)
    once = score_filters(model, [a, b], predict, graph)
    twice = score_filters(model, [a, b, a, b], predict, graph)
    again = score_filters(model, [b, a], predict, graph, previous=once)
    for other in (twice, again):
        assert other.frame_ids == once.frame_ids == ("frame1_0", "frame2_0")
        assert all(np.array_equal(other.values[n], v) for n, v in once.values.items())


def test_an_interrupted_run_goes_on_to_the_same_bits(toy):
    model, graph = toy
    batches = [voxel_batch(seed) for seed in range(4)]
    whole = score_filters(model, batches, predict, graph)
    kept = []
    with pytest.raises(KeyboardInterrupt):
        score_filters(model, [*batches[:2], interrupting()], predict, graph, on_frame=kept.append)
    resumed = score_filters(model, batches, predict, graph, previous=kept[-1])
    assert len(kept) == 2
    assert resumed.frame_ids == whole.frame_ids
    assert all(np.array_equal(resumed.values[n], v) for n, v in whole.values.items())


class interrupting:  # noqa: N801
    """Stands for a batch whose first use is interrupted."""

    @property
    def frame_ids(self):
        raise KeyboardInterrupt


def test_only_new_frames_of_a_mixed_batch_count(toy):
    model, graph = toy
    pair = voxel_batch(5, batch_size=2)
    both = score_filters(model, [pair], predict, graph)
    first = score_filters(model, [pair], predict, graph, on_frame=(seen := []).append)
    resumed = score_filters(model, [pair], predict, graph, previous=seen[0])
    assert [s.frame_ids for s in seen] == [("frame5_0",), ("frame5_0", "frame5_1")]
    for name, values in both.values.items():
        assert np.array_equal(first.values[name], values)
        assert np.array_equal(resumed.values[name], values)


def test_progress_sums_to_the_number_of_filters(toy):
    model, graph = toy
    steps = []
    score_filters(model, [voxel_batch(1)], predict, graph, progress=steps.append)
    assert sum(steps) == graph.num_filters == 32


def test_previous_scores_of_something_else_are_refused(toy):
    model, graph = toy
    scores = score_filters(model, [voxel_batch(1)], predict, graph, split="held_out")
    other = randomize(SparseDense(), seed=7)
    with pytest.raises(ValueError, match="another model"):
        score_filters(other, [voxel_batch(2)], predict, graph, split="held_out", previous=scores)
    with pytest.raises(ValueError, match="another split: 'held_out', now 'val'"):
        score_filters(model, [voxel_batch(2)], predict, graph, split="val", previous=scores)
    with pytest.raises(ValueError, match="another removal"):
        score_filters(model, [], predict, graph, split="held_out", removal="zero_weight", previous=scores)
    narrow = trace_channels(model, lambda network: network(voxel_batch()), scope=("backbone_3d",))
    with pytest.raises(ValueError, match="score with the same scope"):
        score_filters(model, [], predict, narrow, split="held_out", previous=scores)


def test_nan_names_the_frame(toy):
    model, graph = toy
    pair = voxel_batch(6, batch_size=2)
    pair.voxels[pair.voxel_coords[:, 0] == 1] = torch.nan
    with pytest.raises(ValueError, match=r"complete network gives NaN class logits for frame frame6_1"):
        score_filters(model, [pair], predict, graph)


def test_no_frame_at_all_is_refused(toy):
    with pytest.raises(ValueError, match="scored on no frame"):
        score_filters(toy[0], [], predict, toy[1])


def test_logits_of_another_shape_are_refused(toy):
    with pytest.raises(ValueError, match=r"must give class logits \(B, A, C\).*got \(1, 16\)"):
        score_filters(toy[0], [voxel_batch(1)], lambda m, b: m(b)[..., 0], toy[1])


def test_unknown_rule_is_refused(toy):
    with pytest.raises(ValueError, match="channel, zero_weight, got 'magic'"):
        score_filters(toy[0], [voxel_batch(1)], predict, toy[1], removal="magic")


def test_a_forward_that_branches_on_values_is_refused(toy):
    model, graph = toy
    calls = itertools.count()

    def fickle(network, batch):
        logits = network(batch)
        return logits if next(calls) % 2 else logits + network.dense_head(torch.zeros(7)).sum()

    with pytest.warns(UserWarning, match="slower"), pytest.raises(ValueError, match="does not branch on values"):
        score_filters(model, [voxel_batch(1)], fickle, graph)
