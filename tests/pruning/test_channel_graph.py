"""The channel graph against graphs written down by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pruning_networks import GRID, SparseDense, SparseUNet, class_logits, predict, second_batch, voxel_batch
from torch import nn

from cakdp_ext.config import load_config
from cakdp_ext.detectors import build_detector
from cakdp_ext.pruning import model_fingerprint, trace_channels
from cakdp_ext.pruning.tracing import UNKNOWN, CodeBook
from cakdp_ext.types import LidarGeometry

ROOT = Path(__file__).resolve().parents[2]


def trace(model, batch=None, **kwargs):
    batch = voxel_batch() if batch is None else batch
    return trace_channels(model, lambda network: network(batch), **kwargs)


class Net(nn.Module):
    """Convolutions of a backbone, joined by a function, and a head that keeps its outputs."""

    def __init__(self, join, head_inputs, **layers):
        super().__init__()
        self.backbone_2d = nn.ModuleDict(layers)
        self.dense_head = nn.Conv2d(head_inputs, 2, 1)
        self.join = join

    def forward(self, x):
        return self.dense_head(self.join(self.backbone_2d, x))


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 1)


def trace_dense(net):
    image = torch.randn(2, 3, 6, 6)
    return trace_channels(net, lambda network: network(image))


def consumers(graph, layer):
    return [[tuple(slot) for slot in slots] for slots in graph.layers[layer].consumers]


def test_every_filter_of_the_toy_goes_where_its_forward_sends_it():
    graph = trace(SparseDense())
    fine, down, stem, side, up = (f"backbone_{d}" for d in ("3d.fine.0", "3d.down.0", "2d.stem.1", "2d.side", "2d.up"))
    assert consumers(graph, fine) == [[(down, c)] for c in range(6)]
    assert consumers(graph, down) == [[(stem, 4 * c + z) for z in range(4)] for c in range(5)]
    for layer, extra in ((stem, True), ("backbone_2d.residual.0", False)):
        residual = [("backbone_2d.residual.0", 0)] if extra else []
        assert [sorted(c) for c in consumers(graph, layer)] == [
            sorted([*((name, c) for name, _ in residual), (side, c), (up, c)]) for c in range(7)
        ]
    assert consumers(graph, up) == [[("dense_head", c)] for c in range(3)]
    assert consumers(graph, side) == [[("dense_head", 3 + c)] for c in range(4)]
    assert consumers(graph, "dense_head") == [[], [], []]


def test_norms_on_the_way_belong_to_the_filter():
    graph = trace(SparseDense())
    norms = {name: [[tuple(s) for s in slots] for slots in layer.norms] for name, layer in graph.layers.items()}
    assert norms["backbone_3d.fine.0"] == [[("backbone_3d.fine.1", c)] for c in range(6)]
    assert norms["backbone_2d.residual.0"] == [[("backbone_2d.residual.1", c)] for c in range(7)]
    assert norms["backbone_2d.up"] == [[], [], []]


def test_execution_order_and_canonical_order_are_told_apart():
    graph = trace(SparseDense())
    runs = [
        "backbone_3d.fine.0",
        "backbone_3d.down.0",
        "backbone_2d.stem.1",
        "backbone_2d.residual.0",
        "backbone_2d.up",
    ]
    assert list(graph.layers) == [*runs, "backbone_2d.side", "dense_head"]
    registered = [*runs[:3], "backbone_2d.side", "backbone_2d.up", "backbone_2d.residual.0"]
    assert [layer.name for layer in graph.prunable] == registered
    assert graph.num_filters == 6 + 5 + 7 + 4 + 3 + 7


def test_filters_that_meet_in_a_sum_are_one_decision():
    graph = trace(SparseDense())
    pairs = [tuple((f.layer, f.channel) for f in group) for group in graph.groups if len(group) > 1]
    assert pairs == [(("backbone_2d.stem.1", c), ("backbone_2d.residual.0", c)) for c in range(7)]
    assert len(graph.groups) == 6 + 5 + 7 + 4 + 3


@pytest.mark.parametrize("in_place", [False, True])
def test_in_place_code_of_the_network_changes_nothing(in_place):
    assert trace(SparseDense(adds_in_place=in_place)) == trace(SparseDense())


def test_inverse_convolution_and_skip_connection():
    graph = trace(SparseUNet())
    b = "backbone_3d."
    assert consumers(graph, b + "fine") == [[(b + "down", c), (b + "merge", 4 + c)] for c in range(3)]
    assert consumers(graph, b + "down") == [[(b + "up", c)] for c in range(5)]
    assert consumers(graph, b + "up") == [[(b + "merge", c)] for c in range(4)]
    assert consumers(graph, b + "plain") == [[("dense_head", c)] for c in range(2)]
    assert {len(group) for group in graph.groups} == {1}


def test_layers_outside_of_the_scope_and_heads_keep_their_filters():
    graph = trace(SparseDense(), scope=("backbone_3d.down", "dense_head"))
    assert [layer.name for layer in graph.prunable] == ["backbone_3d.down.0"]
    assert "outputs" in graph.pinned["dense_head"]
    assert "outside" in graph.pinned["backbone_2d.stem.1"]


def test_a_sum_with_a_layer_that_must_stay_pins_its_partner():
    graph = trace(SparseDense(), scope=("backbone_3d", "backbone_2d.stem"))
    assert [layer.name for layer in graph.prunable] == ["backbone_3d.fine.0", "backbone_3d.down.0"]
    assert "backbone_2d.residual.0" in graph.pinned["backbone_2d.stem.1"]


def test_a_module_used_twice_couples_what_feeds_it():
    def join(layers, x):
        return layers["shared"](layers["a"](x)) + layers["shared"](layers["b"](x))

    net = Net(join, 5, a=conv(3, 4), b=conv(3, 4), shared=conv(4, 5))
    graph = trace_dense(net)
    assert [[f.layer[-1] for f in group] for group in graph.groups[:4]] == [["a", "b"]] * 4
    assert "backbone_2d.shared" in graph.pinned, "the sum of its own two outputs is no copy of one filter"


def test_a_channel_with_two_codes_is_not_read_as_the_larger():
    book = CodeBook.draw({"a": 5}, seed=0)
    low, high = book.codes["a"].sort().values[[0, 1]]
    same, mixed = torch.stack([high, high]), torch.stack([low, high])
    decoded = book.decode(torch.stack([same, mixed], dim=1)[None], torch.zeros(1, 2, 2))
    assert decoded.tolist() == [[int((book.codes["a"] == high).nonzero()), UNKNOWN]]


def test_maps_laid_side_by_side_couple_their_filters():
    net = Net(lambda m, x: torch.cat([m["a"](x), m["b"](x)], dim=2), 4, a=conv(3, 4), b=conv(3, 4))
    pairs = [tuple((f.layer[-1], f.channel) for f in group) for group in trace_dense(net).groups]
    assert pairs == [(("a", c), ("b", c)) for c in range(4)]


def test_a_mean_that_happens_to_look_like_another_filter_is_found_out():
    width = 1000
    widths = {"backbone_2d.a": width, "backbone_2d.last": 4, "dense_head": 2}
    book = CodeBook.draw(widths, seed=0)
    codes = book.codes["backbone_2d.a"]
    means = (codes[:, None] + codes[None, :]) / 2
    looks_like = book.decode(torch.stack([means, means], dim=1), torch.zeros(width, 2, width))
    one, other = ((looks_like >= 0) & ~torch.eye(width, dtype=torch.bool)).nonzero()[0].tolist()

    def join(layers, x):
        maps = layers["a"](x)
        return layers["last"](torch.cat([maps, (maps[:, one] + maps[:, other])[:, None] / 2], dim=1))

    graph = trace_dense(Net(join, 4, a=conv(3, width), last=conv(width + 1, 4)))
    assert {name: layer.num_filters for name, layer in graph.layers.items()} == widths
    assert "plain copy" in graph.pinned["backbone_2d.a"]


def test_mean_of_two_maps_is_not_mistaken_for_a_third():
    net = Net(lambda m, x: (m["a"](x) + m["b"](x)) / 2, 64, a=conv(3, 64), b=conv(3, 64))
    with pytest.raises(ValueError, match="no layer under .* can be pruned .*not a plain copy"):
        trace_dense(net)


UNCLEAR = {
    "product": (lambda m, x: m["a"](x) * m["b"](x).sigmoid(), {"b": conv(3, 4)}, "plain copy"),
    "two filters of one layer": (lambda m, x: m["a"](x) + m["a"](x).flip(1), {}, "plain copy"),
    "scaled": (lambda m, x: 0.5 * m["a"](x), {}, "plain copy"),
    "norm over channels": (lambda m, x: m["b"](m["a"](x)), {"b": nn.GroupNorm(2, 4)}, "plain copy"),
    "norm over places": (lambda m, x: m["b"](m["a"](x)), {"b": nn.InstanceNorm2d(4)}, "plain copy"),
    "softmax": (lambda m, x: m["b"](m["a"](x)), {"b": nn.Softmax(1)}, "plain copy"),
    "grouped convolution": (lambda m, x: m["b"](m["a"](x)), {"b": nn.Conv2d(4, 4, 1, groups=2)}, "split into groups"),
    "sum with the input": (lambda m, x: m["a"](x) + x[:, :1], {}, "plain copy"),
    "layer also used on the input": (
        lambda m, x: (m["b"](m["a"](x)[:, :3]) + m["b"](x)) * 2,
        {"b": conv(3, 4)},
        "no convolution made",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_no_plain_copy_is_pinned_with_its_reason(name):
    join, layers, reason = UNCLEAR[name]
    net = Net(lambda m, x: m["last"](join(m, x)), 5, a=conv(3, 4), **layers, last=conv(4, 5))
    graph = trace_dense(net)
    assert reason in graph.pinned["backbone_2d.a"]
    assert [layer.name for layer in graph.prunable] == ["backbone_2d.last"]


@pytest.mark.parametrize(
    "resize",
    [nn.Upsample(scale_factor=1.7, mode="bilinear"), nn.AvgPool2d(3, 1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)],
    ids=["bilinear", "average", "max", "nearest"],
)
def test_resampled_maps_keep_their_channels(resize):
    net = Net(lambda m, x: m["b"](m["resize"](m["a"](x))), 5, a=conv(3, 300), resize=resize, b=conv(300, 5))
    graph = trace_channels(net, lambda network: network(torch.zeros(1, 3, 9, 9)))
    assert consumers(graph, "backbone_2d.a") == [[("backbone_2d.b", c)] for c in range(300)]


def test_raw_input_beside_filters_keeps_its_channels():
    net = Net(lambda m, x: m["b"](torch.cat([x, m["a"](x)], dim=1)), 5, a=conv(3, 4), b=conv(7, 5))
    assert consumers(trace_dense(net), "backbone_2d.a") == [[("backbone_2d.b", 3 + c)] for c in range(4)]


def test_an_example_without_voxels_is_refused():
    empty = voxel_batch(per_frame=0)
    with pytest.raises(ValueError, match=r"no active voxel reaches backbone_3d.fine.0.*example batch"):
        trace(SparseDense(), empty)


def test_an_example_that_misses_a_height_layer_is_refused():
    low = voxel_batch(grid=(2, *GRID[1:]))
    with pytest.raises(ValueError, match=r"never activates input channels .* of backbone_2d.stem.1.*height"):
        trace(SparseDense(), low)


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    model = SparseDense()
    model.train()
    model.backbone_2d["stem"].eval()
    before, modes = model_fingerprint(model), [m.training for m in model.modules()]
    if fails:
        with pytest.raises(ZeroDivisionError):
            trace_channels(model, lambda network: (network(voxel_batch()), 1 / 0))
    else:
        trace(model)
    assert model_fingerprint(model) == before
    assert [m.training for m in model.modules()] == modes
    assert not [m for m in model.modules() if "forward" in vars(m)]
    assert model.backbone_2d["stem"][2].num_batches_tracked == 0


def test_second_has_the_papers_26_layers_and_3456_filters_in_the_released_order():
    cfg = load_config(ROOT / "cfgs/kitti/second.yaml")
    geometry = LidarGeometry((0.0, -3.2, -3.0, 6.4, 3.2, 1.0), (0.05, 0.05, 0.1))
    model, batch = build_detector(cfg.MODEL, cfg.CLASS_NAMES, geometry), second_batch(geometry)
    graph = trace_channels(model, lambda network: class_logits(network, batch))
    names = [layer.name for layer in graph.prunable]
    assert len(names) == 26
    assert [name.split(".")[0] for name in names] == ["backbone_3d"] * 12 + ["backbone_2d"] * 14
    assert [name.split(".")[1] for name in names[12:]] == ["blocks"] * 12 + ["deblocks"] * 2
    assert names[:2] == ["backbone_3d.conv_input.0", "backbone_3d.conv1.0.0"]
    assert names[11] == "backbone_3d.conv_out.0"
    assert [layer.num_filters for layer in graph.prunable] == [16] * 2 + [32] * 3 + [64] * 6 + [128] * 7 + [256] * 8
    assert graph.num_filters == len(graph.groups) == 3456
    first_map = [[slot.channel for slot in slots] for slots in graph.layers["backbone_3d.conv_out.0"].consumers]
    assert first_map == [[2 * c, 2 * c + 1] for c in range(128)]
    assert list(graph.layers).index("backbone_2d.deblocks.0.0") < list(graph.layers).index("backbone_2d.blocks.1.1")


def test_predict_is_enough_to_trace():
    batch = voxel_batch()
    assert trace_channels(SparseDense(), lambda network: predict(network, batch)).num_filters == 32


@pytest.mark.parametrize(("value", "join"), [(1.0, torch.mul), (0.0, torch.add)])
def test_what_a_parameter_happens_to_be_decides_nothing(value, join):
    net = Net(None, 4, first=conv(3, 4), second=conv(4, 4))
    net.free = nn.Parameter(torch.full((1, 4, 1, 1), value))
    net.join = lambda layers, x: layers["second"](join(layers["first"](x), net.free))
    for now in (value, 1.7):
        net.free.data.fill_(now)
        reason = trace_dense(net).pinned["backbone_2d.first"]
        assert "of backbone_2d.second is not a plain copy of one of its filters" in reason
        assert net.free.unique().item() == pytest.approx(now)
