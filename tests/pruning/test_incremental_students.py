"""The scores of every kind of student that the project ships, by differences and by whole forwards."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pruning_networks import class_logits, voxel_batch
from torch import nn

from cakdp_ext.config import load_config
from cakdp_ext.detectors import build_detector
from cakdp_ext.pruning import PLAIN_SCORING, FrameGaps, channel_graph
from cakdp_ext.types import LidarGeometry

CFGS = Path(__file__).resolve().parents[2] / "cfgs"
RANGES = {
    "kitti": LidarGeometry((0.0, -1.6, -3.0, 3.2, 1.6, 1.0), (0.05, 0.05, 0.1)),
    "waymo": LidarGeometry((-3.2, -3.2, -2.0, 3.2, 3.2, 4.0), (0.1, 0.1, 0.15), num_point_features=5),
}
EACH_LAYER = 2
RELATIVE = 1e-4
ROUNDING = 2**-25
"""Half a step of float32 between probabilities of 1/2 and 1, which the plain definition subtracts."""


def small_student(name):
    """A student as its YAML has it, on a small range."""
    cfg = load_config(CFGS / f"{name}.yaml")
    geometry = RANGES[name.partition("/")[0].partition("_")[0]]
    torch.manual_seed(0)
    return build_detector(cfg.MODEL, cfg.CLASS_NAMES, geometry), geometry


@torch.no_grad()
def enliven(model, batch):
    """Give weights under which every layer has its say: norms by the batch, an undecided head."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.2, 0.3)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
    class_logits(model.train(), batch)
    return model.eval()


def some_of_every_layer(graph):
    numbers = []
    for layer in graph.prunable:
        mine = [n for n, group in enumerate(graph.groups) if layer.name in {filter_.layer for filter_ in group}]
        numbers += [mine[round(i)] for i in np.linspace(0, len(mine) - 1, EACH_LAYER + 2)[1:-1]]
    return sorted(set(numbers))


def assert_same_order(fast, plain, doubt):
    """Whoever comes later by one way must not come earlier by the other, by more than the doubt in both."""
    order = np.argsort(fast)
    reached = np.maximum.accumulate((plain - doubt)[order])
    assert ((plain + doubt)[order] >= reached).all()


@pytest.mark.parametrize(
    "name",
    [
        "kitti/second",
        "kitti/centerpoint",
        "waymo_mini/centerpoint",
        "waymo/second",
        "kitti/methods/second_narrow",
        "waymo_mini/methods/centerpoint_narrow",
    ],
)
def test_exact_scores_are_the_plain_ones_for_every_student(name):
    model, geometry = small_student(name)
    batch = voxel_batch(0, 1, geometry.grid_size[::-1], per_frame=150, num_features=geometry.num_point_features)
    graph = channel_graph(enliven(model, batch), geometry)
    numbers = some_of_every_layer(graph)
    assert {f.layer for n in numbers for f in graph.groups[n]} == {layer.name for layer in graph.prunable}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="filters are scored by repeating")
        fast = FrameGaps(model, class_logits, graph).measure(batch, numbers)[0, numbers]
    plain = FrameGaps(model, class_logits, graph, method=PLAIN_SCORING).measure(batch, numbers)[0, numbers]
    doubt = np.maximum(RELATIVE * plain, ROUNDING)
    np.testing.assert_array_less(np.abs(fast - plain), doubt)
    assert_same_order(fast, plain, doubt)
    assert np.median(plain) > ROUNDING / RELATIVE, "the gaps must not drown in rounding"
