"""What is known about single points?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cakdp_ext.types import LidarGeometry


@dataclass(frozen=True)
class PointFeatures:
    """Points of all frames and what is known about them.

    Attributes:
        xyz: ``(N, 3)`` metres, LiDAR frame.
        frames: ``(N,)`` int64 frame of each, ascending.
        features: ``(N, C)``.
    """

    xyz: Tensor
    frames: Tensor
    features: Tensor

    def counts(self, num_frames: int) -> Tensor:
        """Say how many points ``(num_frames,)`` int64 each frame has."""
        return torch.bincount(self.frames, minlength=num_frames)

    def where(self, keep: Tensor) -> PointFeatures:
        """Keep some of the points: ``(N,)`` bool, or rows in ascending order of their frames."""
        return PointFeatures(self.xyz[keep], self.frames[keep], self.features[keep])

    @classmethod
    def of_points(cls, points: Tensor) -> PointFeatures:
        """Read raw points ``(N, 4 + C)``: frame, x, y, z, and what else the sensor gives."""
        return cls(points[:, 1:4].contiguous(), points[:, 0].long(), points[:, 4:])

    @classmethod
    def of_voxels(cls, coords: Tensor, features: Tensor, stride: int, geometry: LidarGeometry) -> PointFeatures:
        """Take the centres of voxels as points, frame after frame.

        Args:
            coords: ``(V, 4)`` ``(batch, z, y, x)`` in voxels that are ``stride`` times as large as the geometry's.
            features: ``(V, C)``.
            stride: along every axis.
            geometry: range and voxel grid.
        """
        order = torch.argsort(coords[:, 0], stable=True)
        like = torch.empty(0, device=coords.device).new_tensor
        size, origin = like(geometry.voxel_size) * stride, like(geometry.point_cloud_range[:3])
        centers = (coords[order][:, [3, 2, 1]] + 0.5) * size + origin
        return cls(centers, coords[order, 0].long(), features[order])

    @classmethod
    def of_sparse(cls, sparse: Any, stride: int, geometry: LidarGeometry) -> PointFeatures:
        """Take the centres of a ``SparseConvTensor``'s voxels as points; see :meth:`of_voxels`."""
        return cls.of_voxels(sparse.indices, sparse.features, stride, geometry)
