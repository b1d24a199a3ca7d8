"""Surgery as an equation: the compact network computes what the full one does with the removed channels masked."""

from __future__ import annotations

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
from torch import nn

from cakdp_ext.detectors import sparse  # noqa: F401  (lets sparse convolutions with a bias run on CPU)
from cakdp_ext.pruning import (
    apply_plan,
    apply_plan_,
    architecture_fingerprint,
    count_parameters,
    masked,
    model_fingerprint,
    trace_channels,
)
from cakdp_ext.types import PruningPlan


def random_plan(graph, seed, keep=0.6):
    """Keep random filters, whole groups at a time, and at least one filter of each layer."""
    rng = np.random.default_rng(seed)
    kept = {layer.name: set() for layer in graph.prunable}
    for number in rng.permutation(len(graph.groups)):
        if rng.random() < keep or any(not kept[f.layer] for f in graph.groups[number]):
            for layer, channel in graph.groups[number]:
                kept[layer].add(channel)
    return plan_keeping(graph, kept)


def plan_keeping(graph, kept):
    totals = {layer.name: layer.num_filters for layer in graph.prunable}
    keeps = {name: tuple(sorted(kept.get(name, range(total)))) for name, total in totals.items()}
    return PruningPlan(keeps, totals, architecture_fingerprint(graph))


def traced(model, batch, forward=predict):
    return trace_channels(model, lambda network: forward(network, batch))


def assert_equation(model, graph, plan, batch, forward):
    compact = apply_plan(model, plan, graph)
    with torch.no_grad():
        full, got = forward(model, batch), forward(compact.eval(), batch)
        with masked(model, plan, graph) as as_if:
            want = forward(as_if, batch)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(forward(model, batch), full, atol=0, rtol=0)
    return full, got


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [SparseDense, SparseUNet])
def test_compact_toy_computes_what_the_masked_one_does(kind, seed):
    model, batch = randomize(kind(), seed), voxel_batch(seed, batch_size=2)
    graph = traced(model, batch)
    full, got = assert_equation(model, graph, random_plan(graph, seed), batch, predict)
    assert not torch.allclose(full, got, atol=1e-3), "a plan that changes nothing proves nothing"


@pytest.mark.parametrize("seed", range(2))
def test_compact_second_computes_what_the_masked_one_does(seed):
    model, geometry = small_second()
    batch = second_batch(geometry, batch_size=2)
    graph = traced(model, batch, class_logits)
    assert_equation(model, graph, random_plan(graph, seed), batch, lambda m, b: m.predict_dense(b).cls_logits)
    assert_equation(model, graph, random_plan(graph, seed + 9), batch, lambda m, b: m.predict_dense(b).boxes)


@pytest.mark.parametrize("num_slopes", [1, 6])
def test_slopes_of_a_prelu_are_cut_with_their_channels(num_slopes):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.PReLU(num_slopes), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))
    nn.init.uniform_(net[1].weight, -1, 1)
    image = torch.randn(2, 3, 8, 8)
    graph = trace_channels(net, lambda network: network(image), scope=("0", "2"))
    plan = plan_keeping(graph, {"0": {0, 2, 3, 5}, "2": {1, 4}})
    assert_equation(net, graph, plan, image, lambda network, batch: network(batch))
    assert apply_plan(net, plan, graph)[1].weight.numel() == (4 if num_slopes > 1 else 1)


def test_channels_that_stay_are_those_of_the_full_network_by_hand():
    model, batch = randomize(SparseDense()), voxel_batch()
    graph = traced(model, batch)
    stem, residual = "backbone_2d.stem.1", "backbone_2d.residual.0"
    kept = {"backbone_3d.down.0": {0, 3}, stem: {1, 2, 6}, residual: {1, 2, 6}, "backbone_2d.up": {2}}
    compact = apply_plan(model, plan_keeping(graph, kept), graph)
    old, new = model.state_dict(), compact.state_dict()
    slices = {
        "backbone_3d.down.0.weight": old["backbone_3d.down.0.weight"][[0, 3]],
        "backbone_3d.down.1.running_var": old["backbone_3d.down.1.running_var"][[0, 3]],
        "backbone_2d.stem.1.weight": old["backbone_2d.stem.1.weight"][[1, 2, 6]][:, [0, 1, 2, 3, 12, 13, 14, 15]],
        "backbone_2d.stem.2.bias": old["backbone_2d.stem.2.bias"][[1, 2, 6]],
        "backbone_2d.residual.0.weight": old["backbone_2d.residual.0.weight"][[1, 2, 6]][:, [1, 2, 6]],
        "backbone_2d.residual.0.bias": old["backbone_2d.residual.0.bias"][[1, 2, 6]],
        "backbone_2d.up.weight": old["backbone_2d.up.weight"][[1, 2, 6]][:, [2]],
        "backbone_2d.up.bias": old["backbone_2d.up.bias"][[2]],
        "dense_head.weight": old["dense_head.weight"][:, [2, 3, 4, 5, 6]],
        "dense_head.bias": old["dense_head.bias"],
        "backbone_3d.fine.0.weight": old["backbone_3d.fine.0.weight"],
    }
    for name, want in slices.items():
        assert torch.equal(new[name], want), name


def test_widths_follow_the_weights():
    model, batch = SparseDense(), voxel_batch()
    graph = traced(model, batch)
    compact = apply_plan(model, random_plan(graph, 3), graph)
    for module in compact.modules():
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels) == module.weight.shape[:2]
        elif isinstance(module, nn.ConvTranspose2d):
            assert (module.in_channels, module.out_channels) == module.weight.shape[:2]
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.num_features == len(module.weight) == len(module.running_mean)
        elif hasattr(module, "subm"):
            assert (module.out_channels, module.in_channels) == (module.weight.shape[0], module.weight.shape[-1])
            assert list(module.weight_shape) == list(module.weight.shape)


def test_bias_of_a_sparse_convolution_is_cut_with_its_filter():
    model, batch = randomize(SparseUNet()), voxel_batch()
    model.backbone_3d["down"].bias = nn.Parameter(torch.randn(5))
    graph = traced(model, batch)
    plan = plan_keeping(graph, {"backbone_3d.down": {1, 4}})
    assert_equation(model, graph, plan, batch, predict)
    compact = apply_plan(model, plan, graph)
    assert torch.equal(compact.backbone_3d["down"].bias, model.backbone_3d["down"].bias[[1, 4]])


def test_input_is_untouched_and_the_copy_shares_nothing():
    model, batch = SparseDense(), voxel_batch()
    graph, before = traced(model, batch), model_fingerprint(model)
    compact = apply_plan(model, random_plan(graph, 1), graph)
    with torch.no_grad():
        for parameter in compact.parameters():
            parameter.zero_()
    assert model_fingerprint(model) == before


def test_in_place_surgery_does_the_same():
    model, batch = randomize(SparseDense()), voxel_batch()
    graph = traced(model, batch)
    plan = random_plan(graph, 5)
    compact = apply_plan(model, plan, graph)
    apply_plan_(model, plan, graph)
    assert model_fingerprint(model) == model_fingerprint(compact)


def test_dtype_and_frozen_parameters_are_kept():
    model, batch = SparseDense(), voxel_batch()
    graph = traced(model, batch)
    model.double()
    model.backbone_2d["stem"][1].weight.requires_grad_(False)
    compact = apply_plan(model, random_plan(graph, 2), graph)
    assert {p.dtype for p in compact.parameters()} == {torch.float64}
    frozen = [name for name, p in compact.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone_2d.stem.1.weight"]


def test_a_compact_network_can_be_traced_and_cut_again():
    model, batch = randomize(SparseDense()), voxel_batch()
    graph = traced(model, batch)
    once = apply_plan(model, random_plan(graph, 1, keep=0.8), graph)
    again = traced(once, batch)
    assert_equation(once.eval(), again, random_plan(again, 2), batch, predict)
    assert count_parameters(once) < count_parameters(model)


def test_a_compact_network_trains():
    model, batch = SparseDense(), voxel_batch()
    graph = traced(model, batch)
    compact = apply_plan(model, random_plan(graph, 1), graph).train()
    compact(batch).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in compact.parameters())


def test_plan_of_another_width_names_the_first_layer():
    model, batch = SparseDense(), voxel_batch()
    graph = traced(model, batch)
    compact = apply_plan(model, plan_keeping(graph, {"backbone_3d.down.0": {0, 1}}), graph)
    plan = random_plan(graph, 0)
    with pytest.raises(ValueError, match=r"knows 5 prunable filters in backbone_3d.down.0, the network has 2"):
        apply_plan(compact, plan, traced(compact, batch))


def test_plan_of_another_kernel_is_refused():
    model, batch = SparseDense(), voxel_batch()
    plan = random_plan(traced(model, batch), 0)
    model.backbone_2d["side"] = nn.Conv2d(7, 4, 3, padding=1)
    with pytest.raises(ValueError, match="another architecture: order, input channels or kernel sizes"):
        apply_plan(model, plan, traced(model, batch))


def test_plan_that_splits_a_sum_is_refused():
    model, batch = SparseDense(), voxel_batch()
    graph = traced(model, batch)
    plan = plan_keeping(graph, {"backbone_2d.stem.1": {0, 1, 2, 3, 4, 5}})
    with pytest.raises(ValueError, match=r"removes filter 6 of backbone_2d.stem.1.*only go together"):
        apply_plan(model, plan, graph)


def test_plan_with_an_empty_layer_is_refused():
    model, batch = SparseDense(), voxel_batch()
    graph = traced(model, batch)
    with pytest.raises(ValueError, match="leaves backbone_2d.side with no filter"):
        apply_plan(model, plan_keeping(graph, {"backbone_2d.side": ()}), graph)
