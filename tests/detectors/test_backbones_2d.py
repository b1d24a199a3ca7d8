from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.backbones_2d import BaseBEVBackbone, BEVBackboneConfig

TWO_LEVELS = BEVBackboneConfig((1, 0), (1, 2), (6, 8), (1, 2), (5, 7))


def norm_relu(features: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    shape = (1, -1, 1, 1)
    scale = norm.weight.view(shape) / (norm.running_var.view(shape) + 1e-3).sqrt()
    return ((features - norm.running_mean.view(shape)) * scale + norm.bias.view(shape)).clamp(min=0)


def test_output_agrees_with_the_same_layers_written_out():
    torch.manual_seed(0)
    model = BaseBEVBackbone(TWO_LEVELS, 4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    weights = dict(model.named_parameters())
    bev = torch.randn(2, 4, 6, 8)
    first = norm_relu(F.conv2d(bev, weights["blocks.0.1.weight"], padding=1), model.blocks[0][2])
    first = norm_relu(F.conv2d(first, weights["blocks.0.4.weight"], padding=1), model.blocks[0][5])
    second = norm_relu(F.conv2d(first, weights["blocks.1.1.weight"], padding=1, stride=2), model.blocks[1][2])
    up_first = torch.einsum("bchw,cd->bdhw", first, weights["deblocks.0.0.weight"][:, :, 0, 0])
    up_second = F.conv_transpose2d(second, weights["deblocks.1.0.weight"], stride=2)
    expected = torch.cat([norm_relu(up_first, model.deblocks[0][1]), norm_relu(up_second, model.deblocks[1][1])], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(bev), expected, rtol=1e-4, atol=1e-5)
    assert model.num_bev_features == 12
    assert model.stride == 1


def test_memory_format_changes_speed_not_results():
    model = BaseBEVBackbone(TWO_LEVELS, 4).eval()
    bev = torch.randn(2, 4, 6, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(bev.contiguous(memory_format=torch.channels_last)), model(bev))


@pytest.mark.parametrize(
    ("stride", "use_conv", "kind", "kernel"),
    [
        (1, False, nn.ConvTranspose2d, (1, 1)),
        (1, True, nn.Conv2d, (1, 1)),
        (2, True, nn.ConvTranspose2d, (2, 2)),
        (0.5, False, nn.Conv2d, (2, 2)),
        (0.25, False, nn.Conv2d, (4, 4)),
    ],
)
def test_kind_and_kernel_of_a_resampling(stride, use_conv, kind, kernel):
    config = BEVBackboneConfig((0,), (1,), (6,), (stride,), (5,), use_conv_for_no_stride=use_conv)
    model = BaseBEVBackbone(config, 4)
    layer = model.deblocks[0][0]
    assert type(layer) is kind
    assert layer.kernel_size == layer.stride == kernel
    assert model(torch.zeros(1, 4, 8, 16)).shape == (1, 5, 8 * stride, 16 * stride)
    assert model.stride == 1 / stride


def test_a_stride_beyond_the_levels_brings_the_merged_map_up():
    config = BEVBackboneConfig((0, 0), (2, 2), (6, 8), (1, 2, 2), (5, 7))
    model = BaseBEVBackbone(config, 4)
    assert model.deblocks[2][0].weight.shape == (12, 12, 2, 2)
    assert model(torch.zeros(1, 4, 8, 8)).shape == (1, 12, 8, 8)
    assert model.stride == 1


def test_one_level_without_resampling_is_passed_on():
    model = BaseBEVBackbone(BEVBackboneConfig((1,), (2,), (6,)), 4)
    assert model(torch.zeros(1, 4, 8, 8)).shape == (1, 6, 4, 4)
    assert (model.num_bev_features, model.stride) == (6, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 1), (1,), (6, 8)), "one entry a level"),
        (((), (), ()), "one entry a level"),
        (((1, 1), (1, 2), (6, 8), (1,), (5,)), "UPSAMPLE_STRIDES needs 2 entries or one more"),
        (((1, 1), (1, 2), (6, 8)), "UPSAMPLE_STRIDES needs 2 entries or one more"),
        (((1,), (1,), (6,), (1,), (5, 7)), "NUM_UPSAMPLE_FILTERS needs 1 entries"),
        (((1,), (1,), (6,), (1, 2), (5, 7)), "keeps the channels"),
    ],
)
def test_lists_that_do_not_fit_each_other_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BEVBackboneConfig(*arguments)


def test_levels_of_different_sizes_cannot_be_merged():
    with pytest.raises(ConfigError, match=r"strides \[1.0, 2.0\]; they must be equal"):
        BaseBEVBackbone(BEVBackboneConfig((0, 0), (1, 2), (6, 8), (1, 1), (5, 7)), 4)
