"""What does the bird's-eye view show? 2D convolutions over several scales, brought back to one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.registry import BACKBONES_2D

_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


@dataclass(frozen=True)
class BEVBackboneConfig:
    """Keys of BACKBONE_2D; one entry a level.

    Attributes:
        layer_nums: convolutions after the level's first one.
        layer_strides: stride of the level's first convolution.
        num_filters: channels of the level.
        upsample_strides: how much finer the level's output is brought; below 1 makes it coarser. One entry more than
            there are levels brings the concatenated levels up once again. None at all leaves a single level as it is.
        num_upsample_filters: channels of each brought-back level.
        use_conv_for_no_stride: make an upsample stride of 1 a plain convolution, not a transposed one.
    """

    layer_nums: tuple[int, ...]
    layer_strides: tuple[int, ...]
    num_filters: tuple[int, ...]
    upsample_strides: tuple[float, ...] = ()
    num_upsample_filters: tuple[int, ...] = ()
    use_conv_for_no_stride: bool = False

    def __post_init__(self) -> None:
        levels, ups = len(self.layer_nums), len(self.upsample_strides)
        if not levels == len(self.layer_strides) == len(self.num_filters) or not levels:
            raise ValueError(
                "LAYER_NUMS, LAYER_STRIDES and NUM_FILTERS need one entry a level, "
                f"got {self.layer_nums}, {self.layer_strides}, {self.num_filters}"
            )
        if ups not in (levels, levels + 1) and not (ups == 0 and levels == 1):
            raise ValueError(f"UPSAMPLE_STRIDES needs {levels} entries or one more, got {self.upsample_strides}")
        if len(self.num_upsample_filters) not in {ups, min(ups, levels)} or any(self.num_upsample_filters[levels:]):
            raise ValueError(
                f"NUM_UPSAMPLE_FILTERS needs {min(ups, levels)} entries for {ups} UPSAMPLE_STRIDES (the stride beyond "
                f"the levels keeps the channels), got {self.num_upsample_filters}"
            )

    @property
    def stride(self) -> float:
        """Stride of the output with respect to the input.

        Raises:
            ConfigError: when the levels are not brought to the same size.
        """
        levels = len(self.layer_nums)
        down = [math.prod(self.layer_strides[: level + 1]) for level in range(levels)]
        ups = self.upsample_strides or (1,)
        strides = [stride / up for stride, up in zip(down, ups, strict=False)]
        if any(not math.isclose(stride, strides[0]) for stride in strides):
            raise ConfigError(
                f"LAYER_STRIDES {self.layer_strides} and UPSAMPLE_STRIDES {self.upsample_strides} bring the levels to "
                f"strides {strides}; they must be equal to be concatenated"
            )
        return strides[0] / math.prod(ups[levels:])


@BACKBONES_2D.register("BaseBEVBackbone")
class BaseBEVBackbone(nn.Module):
    """Levels of 3x3 convolutions, each on top of the one before; all are resampled to one size and concatenated.

    Args:
        config: the section's keys.
        in_channels: channels of the map.

    Source: SECOND (Yan et al., Sensors 2018), figure 3, with OpenPCDet's tensor names.
    """

    Config = BEVBackboneConfig

    def __init__(self, config: BEVBackboneConfig, in_channels: int) -> None:
        super().__init__()
        levels = len(config.layer_nums)
        widths = (in_channels, *config.num_filters)
        self.stride = config.stride
        self.blocks = nn.ModuleList(_level(config, i, widths[i]) for i in range(levels))
        self.deblocks = nn.ModuleList(_resamplings(config))
        self.num_bev_features = sum(config.num_upsample_filters[:levels]) or config.num_filters[-1]

    def forward(self, bev: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, num_bev_features, H / stride, W / stride)``."""
        outputs = []
        for level, block in enumerate(self.blocks):
            bev = block(bev)
            outputs.append(self.deblocks[level](bev) if len(self.deblocks) else bev)
        merged = torch.cat(outputs, dim=1)
        for extra in self.deblocks[len(self.blocks) :]:
            merged = extra(merged)
        return merged


def _level(config: BEVBackboneConfig, level: int, in_channels: int) -> nn.Sequential:
    width = config.num_filters[level]
    first = nn.Conv2d(in_channels, width, 3, stride=config.layer_strides[level], bias=False)
    layers: list[nn.Module] = [nn.ZeroPad2d(1), first, _NORM(width), nn.ReLU()]
    for _ in range(config.layer_nums[level]):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), _NORM(width), nn.ReLU()]
    return nn.Sequential(*layers)


def _resamplings(config: BEVBackboneConfig) -> Iterator[nn.Sequential]:
    levels = len(config.layer_nums)
    merged = sum(config.num_upsample_filters[:levels])
    for level, stride in enumerate(config.upsample_strides):
        is_extra = level >= levels
        in_channels = merged if is_extra else config.num_filters[level]
        channels = merged if is_extra else config.num_upsample_filters[level]
        is_plain = not is_extra and (stride < 1 or (stride == 1 and config.use_conv_for_no_stride))
        yield nn.Sequential(_resample(in_channels, channels, stride, is_plain), _NORM(channels), nn.ReLU())


def _resample(in_channels: int, channels: int, stride: float, is_plain: bool) -> nn.Module:
    kind = nn.Conv2d if is_plain else nn.ConvTranspose2d
    size = round(1 / stride) if is_plain else int(stride)
    return kind(in_channels, channels, size, stride=size, bias=False)
