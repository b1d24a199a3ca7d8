"""What stands for the points of a voxel?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cakdp_ext.detectors.registry import VOXEL_FEATURES
from cakdp_ext.types import LidarGeometry


@dataclass(frozen=True)
class MeanVFEConfig:
    """VFE of NAME MeanVFE has no further keys."""


@VOXEL_FEATURES.register("MeanVFE")
class MeanVFE(nn.Module):
    """The mean of a voxel's points; nothing to learn.

    Args:
        config: no keys.
        geometry: says how many features a point has.
    """

    Config = MeanVFEConfig

    def __init__(self, config: MeanVFEConfig, geometry: LidarGeometry) -> None:
        super().__init__()
        self.num_features = geometry.num_point_features

    def forward(self, voxels: Tensor, num_points: Tensor) -> Tensor:
        """Average each voxel's points.

        Args:
            voxels: ``(V, P, F)``, zero where padded.
            num_points: ``(V,)`` how many of the P rows are points.

        Returns:
            ``(V, F)``; no voxels give no rows.
        """
        return voxels.sum(dim=1) / num_points.clamp(min=1).unsqueeze(1).to(voxels.dtype)
