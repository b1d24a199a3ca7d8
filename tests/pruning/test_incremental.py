"""What is computed of a forward without a filter: as little as possible, and the same as all of it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from pruning_networks import (
    SparseDense,
    SparseUNet,
    predict,
    randomize,
    voxel_batch,
)
from torch import nn
from torch.nn import functional

from cakdp_ext.pruning import PLAIN_SCORING, FrameGaps, trace_channels
from cakdp_ext.pruning.incremental import (
    IncrementalReplay,
    NotUnderstoodError,
    outputs,
    product,
    recording,
    sites,
    tables,
)
from cakdp_ext.pruning.incremental.sites import Sites
from cakdp_ext.types import Batch

SLOWLY = "filters are scored by repeating"


def both_ways(model, batch, forward, removal="channel", scope=("backbone_3d", "backbone_2d")):
    """Gaps by differences and by whole forwards; a warning, which announces the slow way, is an error."""
    graph = trace_channels(model, lambda network: forward(network, batch), scope=scope)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=SLOWLY)
        fast = FrameGaps(model, forward, graph, removal).measure(batch)
    return fast, FrameGaps(model, forward, graph, removal, method=PLAIN_SCORING).measure(batch)


def assert_alike(fast, plain):
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=2e-8)
    assert np.mean(plain[plain > 0] > 1e-6) >= 0.5, "the gaps must not drown in the tolerance"


@pytest.mark.parametrize("removal", ["channel", "zero_weight"])
@pytest.mark.parametrize(
    ("network", "batch"),
    [
        (SparseDense(), voxel_batch(2, batch_size=2)),
        (SparseDense(adds_in_place=True), voxel_batch(2)),
        (SparseUNet(), voxel_batch(4)),
    ],
    ids=["two frames", "sums in place", "inverse convolution"],
)
def test_differences_give_what_whole_forwards_give(network, batch, removal):
    assert_alike(*both_ways(randomize(network), batch, predict, removal))


class Glue(nn.Module):
    """Convolutions joined by code that moves values in many ways."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.SiLU())
        self.c = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.d = nn.Conv2d(14, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, images):
        x = self.a(images)
        y = self.b(functional.pad(x, (1, 2, 0, 1)))[:, :, :-1, 1:-2]
        up = functional.interpolate(x, scale_factor=2.0, mode="nearest").clamp(max=3.0)
        joined = torch.cat([self.c(torch.sub(y, x, alpha=-1)).flip(1), up[:, [1, 0, 2, 3, 5, 4, 7, 6]]], dim=1)
        canvas = torch.zeros(*joined.shape[2:], *joined.shape[:2])
        canvas.permute(2, 3, 0, 1)[:, :, 2:] = joined[:, :, :-2]  # written through a view
        z = self.head(self.d(canvas.permute(2, 3, 0, 1)).relu_())
        z += 1.0
        return z.permute(0, 2, 3, 1).reshape(len(images), -1, 2)


def image_batch(seed=0, empty=False):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(2, 3, 12, 16, generator=generator)
    if empty:
        pixels[:, :, 3:, 4:] = 0
    empty_rows = torch.zeros(0, 4)
    nothing = empty_rows.long()
    return Batch(2, pixels, nothing, nothing, torch.zeros(2, 0, 7), torch.zeros(2, 0).long(), ("one", "two"))


def of_images(model, batch):
    return model(batch.voxels)


@pytest.mark.parametrize("removal", ["channel", "zero_weight"])
def test_values_are_followed_through_views_pads_and_writes(removal):
    fast, plain = both_ways(randomize(Glue()), image_batch(), of_images, removal, ("a", "b", "c", "d"))
    assert fast.shape == (2, 8 + 6 + 6), "filters of a and b meet in a sum"
    assert_alike(fast, plain)


def test_places_that_say_the_same_are_computed_once():
    model = randomize(Glue())
    graph = trace_channels(model, lambda network: of_images(network, image_batch()), scope=("a", "b", "c", "d"))
    counts = []
    for empty in (False, True):
        one = IncrementalReplay(model, lambda empty=empty: of_images(model, image_batch(empty=empty)), graph)
        with one.opened():
            one.gaps(graph.groups[:1])
            counts.append((sum(node.sites.count for node in one._nodes.values()), one.macs))
    assert counts[1][0] < 0.9 * counts[0][0]
    assert counts[1][1] < counts[0][1]


def test_removals_computed_together_give_what_each_gives_alone():
    model, batch = randomize(SparseDense()), voxel_batch(3)
    graph = trace_channels(model, lambda network: network(batch))
    one = IncrementalReplay(model, lambda: predict(model, batch), graph)
    with one.opened():
        assert one.num_together > 1
        alone = torch.cat([one.gaps([group]) for group in graph.groups])
        for together in (2, 5, len(graph.groups)):
            groups = [graph.groups[i : i + together] for i in range(0, len(graph.groups), together)]
            torch.testing.assert_close(torch.cat([one.gaps(some) for some in groups]), alone, rtol=1e-5, atol=1e-8)
    assert not one._nodes, "the record of a frame must not outlive it"


class Gated(nn.Module):
    """A product of two maps, which differences are not carried through."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        self.a, self.b, self.head = nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        x = self.stem(images)
        return self.head(self.a(x) * self.b(x).sigmoid()).flatten(2).transpose(1, 2)


def test_a_network_that_is_not_understood_is_scored_the_slow_way():
    model, batch = Gated().eval(), image_batch()
    graph = trace_channels(model, lambda network: of_images(network, batch), scope=("stem",))
    with pytest.warns(UserWarning, match=r"slower: head: the operator aten.mul.Tensor"):
        slow = FrameGaps(model, of_images, graph).measure(batch)
    np.testing.assert_allclose(slow, FrameGaps(model, of_images, graph, method=PLAIN_SCORING).measure(batch), rtol=1e-5)


def test_a_wrong_idea_of_a_layer_is_found_out_while_recording(monkeypatch):
    right = recording.kernel_weights
    monkeypatch.setattr(recording, "kernel_weights", lambda module: right(module).flip(1))
    model, batch = randomize(SparseDense()), voxel_batch(2)
    graph = trace_channels(model, lambda network: network(batch))
    with pytest.warns(UserWarning, match="its outputs are not those that its geometry and weights give"):
        found = FrameGaps(model, predict, graph).measure(batch)
    np.testing.assert_allclose(found, FrameGaps(model, predict, graph, method=PLAIN_SCORING).measure(batch), rtol=1e-5)


def test_a_wrong_difference_is_found_out_on_any_frame(monkeypatch):
    model, batch = randomize(SparseDense()), voxel_batch(2)
    graph = trace_channels(model, lambda network: network(batch))
    gaps = FrameGaps(model, predict, graph)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=SLOWLY)
        gaps.measure(voxel_batch(3))
    right = outputs.Output.gaps
    monkeypatch.setattr(outputs.Output, "gaps", lambda self, *args: 1.01 * right(self, *args))
    with pytest.warns(UserWarning, match="the predictions change by"):
        found = gaps.measure(batch)
    np.testing.assert_allclose(found, FrameGaps(model, predict, graph, method=PLAIN_SCORING).measure(batch), rtol=1e-5)


def test_only_wanted_groups_are_measured():
    model, batch = randomize(SparseDense()), voxel_batch(2)
    graph = trace_channels(model, lambda network: network(batch))
    gaps = FrameGaps(model, predict, graph)
    whole, some = gaps.measure(batch), gaps.measure(batch, [1, 5, 6])
    assert np.flatnonzero(~np.isnan(some[0])).tolist() == [1, 5, 6]
    np.testing.assert_allclose(some[:, [1, 5, 6]], whole[:, [1, 5, 6]], rtol=1e-6)


def test_products_are_not_rounded_to_half_of_float32():
    model, batch, seen = randomize(SparseDense()), voxel_batch(2), set()

    def watched(network, batch):
        seen.add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return predict(network, batch)

    graph = trace_channels(model, lambda network: network(batch))
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    FrameGaps(model, watched, graph).measure(batch, [0])
    assert seen == {(False, False)}
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN")
def test_kernels_are_compiled_for_few_numbers_of_rows(monkeypatch):
    weight, given, multiply = torch.randn(3, 4), set(), torch.ops.mkldnn._linear_pointwise

    class Watched:
        def _linear_pointwise(self, rows, *rest):
            given.add(len(rows))
            return multiply(rows, *rest)

    matrix = product._Matrix(weight)
    monkeypatch.setattr(torch.ops, "mkldnn", Watched())
    for count in (1, 7, 255, 256, 257, 300, 700):
        rows = torch.randn(count, 4)
        torch.testing.assert_close(matrix(rows), rows @ weight.t())
    assert given == {256, 512, 768}


@pytest.mark.parametrize("hashes", [True, False], ids=["by hash", "when all hashes collide"])
def test_places_agree_exactly_where_their_rows_do(hashes, monkeypatch):
    if not hashes:
        monkeypatch.setattr(sites, "_mixed", torch.zeros_like)
    rows = torch.randint(0, 2, (200, 5), generator=torch.Generator().manual_seed(0))
    found = Sites.alike(rows)
    assert found.count == len(rows.unique(dim=0))
    assert torch.equal(rows[found.representatives[found.label]], rows)
    assert found.representatives.tolist() == sorted(found.representatives.tolist())


def test_places_of_no_tensor():
    assert Sites.alike(torch.zeros(0, 4, dtype=torch.int64)).count == 0


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(2, 1)),
        nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
        nn.Conv1d(2, 3, 4, padding=2),
        nn.Conv3d(2, 3, (1, 2, 3)),
        nn.Linear(2, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
@torch.no_grad()
def test_a_table_and_weights_are_the_layer(layer):
    sizes = {nn.Conv1d: (9,), nn.Conv3d: (3, 5, 6), nn.Linear: ()}.get(type(layer), (7, 6))
    input = torch.randn(2, 2, *sizes)
    output = layer(input)
    rows = input.movedim(1, -1).reshape(-1, 2)
    table = tables.dense_table(layer, input, output)
    padded = torch.cat([rows, torch.zeros(1, 2)])
    found = padded[table].flatten(1) @ tables.kernel_weights(layer).flatten(1).t() + layer.bias
    torch.testing.assert_close(found, output.movedim(1, -1).reshape(-1, 3))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")])
def test_layers_that_are_not_understood_say_why(layer):
    input = torch.randn(1, 4, 6, 6)
    output = layer(input)
    ask = tables.kernel_weights if layer.groups > 1 else lambda it: tables.dense_table(it, input, output)
    with pytest.raises(NotUnderstoodError, match="groups" if layer.groups > 1 else "pads in a way of its own"):
        ask(layer)
