"""Students that are narrow from their birth."""

import pytest
import torch
from pruning_networks import SparseDense, predict, randomize, small_second, voxel_batch

from cakdp_ext.checkpoint import CheckpointError
from cakdp_ext.config import ConfigError
from cakdp_ext.pruning import (
    WidthConfig,
    apply_plan,
    channel_graph,
    masked,
    narrow_,
    read_width,
    require_width,
    trace_channels,
    width_entry,
    width_plan,
)


def test_every_layer_keeps_its_share_and_one_filter_at_least():
    batch = voxel_batch()
    graph = trace_channels(randomize(SparseDense()), lambda network: predict(network, batch))
    plan = width_plan(graph, WidthConfig(backbone_3d=0.1, backbone_2d=0.6))
    kept = {name: len(keep) for name, keep in plan.keep_indices.items()}
    assert kept == {
        "backbone_3d.fine.0": 1, "backbone_3d.down.0": 1,
        "backbone_2d.stem.1": 4, "backbone_2d.residual.0": 4, "backbone_2d.side": 2, "backbone_2d.up": 1,
    }  # fmt: skip
    assert plan.keep_indices["backbone_2d.stem.1"] == plan.keep_indices["backbone_2d.residual.0"], "a sum ties them"


@pytest.mark.parametrize("width", [WidthConfig(0.5, 0.5), WidthConfig(1.0, 0.75), WidthConfig(0.3, 1.0)])
def test_a_narrow_second_computes_what_the_full_one_does_without_the_others(width):
    model, geometry = small_second()
    graph = channel_graph(model, geometry)
    batch = voxel_batch(0, 1, geometry.grid_size[::-1], per_frame=300)
    with torch.no_grad(), masked(model, width_plan(graph, width), graph):
        wanted = model.predict_dense(batch).cls_logits
    widths = {name: module.weight.shape for name, module in model.named_modules() if hasattr(module, "weight")}
    narrow_(model, width, geometry)
    with torch.no_grad():
        torch.testing.assert_close(model.predict_dense(batch).cls_logits, wanted, rtol=1e-4, atol=1e-5)
    for layer in graph.prunable:
        share = width.backbone_3d if layer.name.startswith("backbone_3d.") else width.backbone_2d
        weight, before = dict(model.named_modules())[layer.name].weight, widths[layer.name]
        axis = 1 if type(dict(model.named_modules())[layer.name]).__name__ == "ConvTranspose2d" else 0
        assert weight.shape[axis] == int(share * before[axis])


def test_a_narrow_network_can_be_cut_further():
    model, geometry = small_second()
    narrow_(model, WidthConfig(0.5, 0.5), geometry)
    graph = channel_graph(model, geometry)
    smaller = apply_plan(model, width_plan(graph, WidthConfig(0.5, 0.5)), graph)
    assert smaller.predict_dense(voxel_batch(0, 1, geometry.grid_size[::-1])).cls_logits.isfinite().all()


@pytest.mark.parametrize(
    ("node", "width"),
    [
        (0.75, WidthConfig(0.75, 0.75)),
        ({"BACKBONE_2D": 0.5}, WidthConfig(1.0, 0.5)),
        ({"BACKBONE_3D": 0.25, "BACKBONE_2D": 1}, WidthConfig(0.25, 1)),
        (None, None),
    ],
)
def test_a_number_stands_for_both_backbones(node, width):
    assert read_width({"NAME": "SECONDNet", "WIDTH": node}) == width


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (0, "MODEL.WIDTH: BACKBONE_3D of WIDTH must be a number above 0 and at most 1, got 0"),
        (1.5, "at most 1, got 1.5"),
        (True, "got True"),
        ({"BACKBONE": 0.5}, "unknown key BACKBONE in MODEL.WIDTH; valid keys: BACKBONE_3D, BACKBONE_2D"),
    ],
)
def test_widths_that_make_no_sense_are_refused(node, message):
    with pytest.raises(ConfigError, match=message):
        read_width({"WIDTH": node})


def test_a_second_stage_needs_its_features_whole():
    with pytest.raises(ConfigError, match="VoxelRCNN has a ROI_HEAD; leave WIDTH out"):
        read_width({"NAME": "VoxelRCNN", "WIDTH": 0.5, "ROI_HEAD": {"NAME": "VoxelRCNNHead"}})


def test_a_checkpoint_knows_its_width():
    half, other = WidthConfig(0.5, 0.5), WidthConfig(0.5, 0.75)
    require_width(width_entry(half), half, "a.pth")
    require_width({}, half, "a.pth")
    with pytest.raises(
        CheckpointError, match=r"a.pth was trained .* 2D: 0.5\}, the YAML has .* 2D: 0.75\}".replace(" 2D", "_2D")
    ):
        require_width(width_entry(half), other, "a.pth")
    with pytest.raises(CheckpointError, match="the YAML has none"):
        require_width(width_entry(half), None, "a.pth")
