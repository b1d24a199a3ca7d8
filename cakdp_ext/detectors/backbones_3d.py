"""What does the sparse voxel grid hold? 3D backbones of submanifold and strided sparse convolutions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.registry import BACKBONES_3D
from cakdp_ext.detectors.sparse import SparseBlock, SparseResidual, conv_block, spconv
from cakdp_ext.types import LidarGeometry
from cakdp_ext.voxel_norm import VoxelBatchNorm1d

SCALES = ("conv1", "conv2", "conv3", "conv4")
NORM = partial(VoxelBatchNorm1d, eps=1e-3, momentum=0.01)
"""Makes the norm over voxels of a number of channels, with OpenPCDet's settings."""


@dataclass(frozen=True)
class BackboneFeatures:
    """What a 3D backbone says about a batch.

    Attributes:
        encoded: ``SparseConvTensor`` that the bird's-eye view is made of.
        multi_scale: ``x_conv1`` to ``x_conv4`` -> ``SparseConvTensor`` of that scale.
        strides: the same names, and ``encoded`` -> stride in x and y with respect to the voxel grid.
        points: features at the voxels' centres, of a backbone that goes back up to them.
    """

    encoded: Any
    multi_scale: Mapping[str, Any]
    strides: Mapping[str, int]
    points: PointFeatures | None = None


@dataclass(frozen=True)
class VoxelBackBone8xConfig:
    """Keys of BACKBONE_3D.

    Attributes:
        last_pad: padding of the last convolution, along every axis.
    """

    last_pad: int = 0


@BACKBONES_3D.register("VoxelBackBone8x")
class VoxelBackBone8x(nn.Module):
    """Four scales of sparse convolutions, each half as fine as the one before, and a last one that flattens height.

    Args:
        config: the section's keys.
        in_channels: features of a voxel.
        geometry: the voxel grid; its z axis gets one more layer, as every published checkpoint of this backbone has.

    Source: SECOND (Yan et al., Sensors 2018), section 3.1.2, with OpenPCDet's widths and tensor names.
    """

    Config: type[VoxelBackBone8xConfig] = VoxelBackBone8xConfig
    stride = 8
    widths = (16, 32, 64, 64)
    num_first_layers = 1

    def __init__(self, config: VoxelBackBone8xConfig, in_channels: int, geometry: LidarGeometry) -> None:
        super().__init__()
        nx, ny, nz = geometry.grid_size
        self.config = config
        self.spatial_shape = [nz + 1, ny, nx]
        self.conv_input = same_scale(in_channels, self.widths[0], "subm1")
        first = (self._layer(self.widths[0], "subm1") for _ in range(self.num_first_layers))
        self.conv1 = spconv.SparseSequential(*first)
        self.conv2 = self._next_scale(2)
        self.conv3 = self._next_scale(3)
        self.conv4 = self._next_scale(4, padding=(0, 1, 1))
        flatten = spconv.SparseConv3d(
            self.widths[3],
            128,
            (3, 1, 1),
            stride=(2, 1, 1),
            padding=config.last_pad,
            bias=False,
            indice_key="spconv_down2",
        )
        self.conv_out = conv_block(flatten, NORM)

    def _layer(self, channels: int, key: str) -> nn.Module:
        return same_scale(channels, channels, key)

    def _next_scale(self, level: int, padding: int | tuple[int, int, int] = 1) -> Any:
        in_channels, channels = self.widths[level - 2 : level]
        down = spconv.SparseConv3d(
            in_channels, channels, 3, stride=2, padding=padding, bias=False, indice_key=f"spconv{level}"
        )
        layers = (self._layer(channels, f"subm{level}") for _ in range(2))
        return spconv.SparseSequential(conv_block(down, NORM), *layers)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every scale and of ``encoded``, as the convolutions have them now."""
        scales = {f"x_{name}": _out_channels(getattr(self, name)) for name in SCALES}
        return {**scales, "encoded": _out_channels(self.conv_out)}

    @property
    def strides(self) -> dict[str, int]:
        """Stride of every scale and of ``encoded`` with respect to the voxel grid."""
        return {**{f"x_{name}": 2**level for level, name in enumerate(SCALES)}, "encoded": self.stride}

    @property
    def num_heights(self) -> int:
        """Layers along z that are left in ``encoded``."""
        shape = self.spatial_shape
        strided = [m for m in self.modules() if isinstance(m, spconv.SparseConv3d)]
        for conv in strided:
            shape = spconv.ops.get_conv_output_size(shape, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        return int(shape[0])

    def forward(self, features: Tensor, voxel_coords: Tensor, batch_size: int) -> BackboneFeatures:
        """Encode the voxels of a batch.

        Args:
            features: ``(V, F)`` of the voxels; V may be 0.
            voxel_coords: ``(V, 4)`` int32, ``(batch, z, y, x)``.
            batch_size: number of frames, those without a voxel included.

        Returns:
            Every scale; frames or batches without voxels have none at any scale, and every parameter is in the graph.
        """
        with float32_on_cpu(features.device):
            voxels = spconv.SparseConvTensor(
                features.float(), voxel_coords.int().contiguous(), self.spatial_shape, batch_size
            )
            scales, current = {}, self.conv_input(voxels)
            for name in SCALES:
                scales[f"x_{name}"] = current = getattr(self, name)(current)
            encoded = self.conv_out(current)
        return BackboneFeatures(encoded, scales, self.strides)


@dataclass(frozen=True)
class VoxelResBackBone8xConfig(VoxelBackBone8xConfig):
    """Keys of BACKBONE_3D.

    Attributes:
        use_bias: give the convolutions of the residual blocks a bias.
    """

    use_bias: bool = True


@BACKBONES_3D.register("VoxelResBackBone8x")
class VoxelResBackBone8x(VoxelBackBone8x):
    """The same four scales, wider at the end, with residual blocks between the strided convolutions.

    Source: CenterPoint (Yin et al., CVPR 2021), the backbone of its Waymo models, with OpenPCDet's widths and tensor
    names.
    """

    Config = VoxelResBackBone8xConfig
    config: VoxelResBackBone8xConfig
    widths = (16, 32, 64, 128)
    num_first_layers = 2

    def _layer(self, channels: int, key: str) -> nn.Module:
        return SparseResidual(channels, NORM, key, self.config.use_bias)


def same_scale(in_channels: int, channels: int, key: str) -> SparseBlock:
    """Make a submanifold convolution with norm and ReLU; ``key`` names its rulebook."""
    return conv_block(spconv.SubMConv3d(in_channels, channels, 3, padding=1, bias=False, indice_key=key), NORM)


def _out_channels(modules: nn.Module) -> int:
    """Channels of the last convolution among some modules that run one after the other."""
    return int([m.out_channels for m in modules.modules() if isinstance(m, spconv.conv.SparseConvolution)][-1])


def float32_on_cpu(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast away from spconv's CPU kernels, which know neither float16 nor bfloat16."""
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else contextlib.nullcontext()
