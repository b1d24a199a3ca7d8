"""What is known about every voxel? The sparse U-Net of Part-A2: down to a view from above, and back up to voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cakdp_ext.detectors.backbones_3d import (
    NORM,
    BackboneFeatures,
    VoxelBackBone8x,
    VoxelBackBone8xConfig,
    float32_on_cpu,
    same_scale,
)
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.registry import BACKBONES_3D
from cakdp_ext.detectors.sparse import InverseBlock, SparseResidual, spconv
from cakdp_ext.types import LidarGeometry

LEVELS = (4, 3, 2, 1)
"""Scales of the way up, coarsest first."""


@dataclass(frozen=True)
class UNetV2Config(VoxelBackBone8xConfig):
    """Keys of BACKBONE_3D.

    Attributes:
        return_encoded_tensor: must be True: the first stage looks at the bird's-eye view.
    """

    return_encoded_tensor: bool = True

    def __post_init__(self) -> None:
        if not self.return_encoded_tensor:
            raise ValueError("RETURN_ENCODED_TENSOR must be True: without it there is no bird's-eye view to propose on")


@BACKBONES_3D.register("UNetV2")
class UNetV2(VoxelBackBone8x):
    """The encoder of ``VoxelBackBone8x`` and a decoder that brings its features back to every voxel.

    At each scale the decoder joins what comes from below with the encoder's features, refined by a residual block. A
    convolution of both is added to their sums over groups of neighbouring channels, and an inverse convolution carries
    the result to the next finer scale.

    Args:
        config: the section's keys.
        in_channels: features of a voxel.
        geometry: the voxel grid.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.1.1 and figure 4, with OpenPCDet's
        widths and tensor names.
    """

    Config = UNetV2Config

    def __init__(self, config: UNetV2Config, in_channels: int, geometry: LidarGeometry) -> None:
        super().__init__(config, in_channels, geometry)
        self.geometry = geometry
        for level in LEVELS:
            self._add_level(level)

    def _add_level(self, level: int) -> None:
        width, finer = self.widths[level - 1], self.widths[max(level - 2, 0)]
        self.add_module(f"conv_up_t{level}", SparseResidual(width, NORM, f"subm{level}", use_bias=False))
        self.add_module(f"conv_up_m{level}", same_scale(2 * width, width, f"subm{level}"))
        if level > 1:
            self.add_module(f"inv_conv{level}", InverseBlock(width, finer, NORM, f"spconv{level}"))
        else:
            self.conv5 = spconv.SparseSequential(same_scale(width, finer, f"subm{level}"))

    @property
    def num_point_features(self) -> int:
        """Channels of ``points``."""
        return self.widths[0]

    def forward(self, features: Tensor, voxel_coords: Tensor, batch_size: int) -> BackboneFeatures:
        """Encode the voxels of a batch and decode them again.

        Args:
            features: ``(V, F)`` of the voxels; V may be 0.
            voxel_coords: ``(V, 4)`` int32, ``(batch, z, y, x)``, frame after frame.
            batch_size: number of frames, those without a voxel included.

        Returns:
            What ``VoxelBackBone8x`` gives, and ``points``: ``(V, 16)`` features at the voxels' centres, in their order.
        """
        found = super().forward(features, voxel_coords, batch_size)
        with float32_on_cpu(features.device):
            current = found.multi_scale["x_conv4"]
            for level in LEVELS:
                current = self._decode(level, found.multi_scale, current)
        return replace(found, points=self._points(current))

    def _decode(self, level: int, scales: Mapping[str, Any], below: Any) -> Any:
        """Merge what came from below with the encoder's scale, and carry both up."""
        lateral = getattr(self, f"conv_up_t{level}")(scales[f"x_conv{level}"])
        both = lateral.replace_feature(torch.cat((below.features, lateral.features), dim=1))
        merged = getattr(self, f"conv_up_m{level}")(both).features
        merged = both.replace_feature(merged + sum_of_groups(both.features, merged.shape[1]))
        if level == 1:
            return self.conv5(merged)
        return getattr(self, f"inv_conv{level}")(merged, scales[f"x_conv{level - 1}"])

    def _points(self, voxels: Any) -> PointFeatures:
        like = voxels.features.new_tensor
        size, origin = like(self.geometry.voxel_size), like(self.geometry.point_cloud_range[:3])
        centers = (voxels.indices[:, [3, 2, 1]] + 0.5) * size + origin
        return PointFeatures(centers, voxels.indices[:, 0].long(), voxels.features)


def sum_of_groups(features: Tensor, num_groups: int) -> Tensor:
    """Reduce ``(N, C)`` to ``(N, num_groups)``: the sums of as many equal groups of neighbouring channels."""
    return features.unflatten(1, (num_groups, -1)).sum(dim=2)
