"""What do the voxels around a grid point say? Voxel RoI pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cakdp_ext import ops
from cakdp_ext.detectors.roi_heads.roi_config import PoolLayerConfig
from cakdp_ext.types import LidarGeometry


@dataclass(frozen=True)
class GridPoints:
    """Where features are pooled.

    Attributes:
        xyz: ``(Q, 3)`` metres, LiDAR frame.
        frames: ``(Q,)`` int64 frame of each.
    """

    xyz: Tensor
    frames: Tensor


@dataclass(frozen=True)
class VoxelSource:
    """One sparse feature map and where it lies.

    Attributes:
        features: ``(V, C)``.
        coords: ``(V, 4)`` ``(batch, z, y, x)`` in voxels of this map.
        spatial_shape: ``(Z, Y, X)`` of this map.
        batch_size: number of frames.
        origin: ``(3,)`` x, y, z where voxel 0 begins, metres.
        voxel_size: ``(3,)`` x, y, z of this map's voxels, metres.
    """

    features: Tensor
    coords: Tensor
    spatial_shape: tuple[int, int, int]
    batch_size: int
    origin: Tensor
    voxel_size: Tensor

    @classmethod
    def from_sparse(cls, sparse: Any, stride: int, geometry: LidarGeometry) -> VoxelSource:
        """Read a ``SparseConvTensor`` whose voxels are ``stride`` times as large as the geometry's."""
        depth, height, width = (int(size) for size in sparse.spatial_shape)
        origin = torch.tensor(geometry.point_cloud_range[:3], device=sparse.features.device)
        size = torch.tensor(geometry.voxel_size, device=sparse.features.device) * stride
        shape = (depth, height, width)
        return cls(sparse.features, sparse.indices, shape, int(sparse.batch_size), origin, size)

    @property
    def middle(self) -> Tensor:
        """The point ``(3,)`` amid the map, metres."""
        return self.origin + self.voxel_size * self.voxel_size.new_tensor(self.spatial_shape[::-1]) / 2

    @property
    def centers(self) -> Tensor:
        """Centres ``(V, 3)`` of the voxels: x, y, z in metres."""
        return (self.coords[:, [3, 2, 1]] + 0.5) * self.voxel_size + self.origin

    def locate(self, points: GridPoints) -> Tensor:
        """Give the voxel ``(Q, 4)`` ``(batch, z, y, x)`` in which each point lies; it may be outside of the map."""
        cells = torch.floor((points.xyz - self.origin) / self.voxel_size).long()
        return torch.cat((points.frames.unsqueeze(1), cells.flip(1)), dim=1)


@dataclass(frozen=True)
class Neighbors:
    """Which voxels each grid point pools.

    Attributes:
        index: ``(Q, S)`` rows of the source, 0 where there is no neighbour.
        is_empty: ``(Q,)`` whether a grid point has none.
    """

    index: Tensor
    is_empty: Tensor

    def gather(self, lifted: Tensor) -> Tensor:
        """Lay out features ``(V, C)`` as ``(Q, S, C)``, zeros where there is no neighbour."""
        return F.pad(lifted, (0, 0, 0, 1))[self.index.masked_fill(self.is_empty.unsqueeze(1), len(lifted))]

    def offsets(self, source: VoxelSource, points: GridPoints) -> Tensor:
        """Give where the neighbours lie seen from their grid point, ``(Q, S, 3)`` metres, 0 where there is none."""
        offsets = F.pad(source.centers, (0, 0, 0, 1))[self.index] - points.xyz.unsqueeze(1)
        return offsets.masked_fill_(self.is_empty[:, None, None], 0.0)


class NeighborVoxelPooling(nn.Module):
    """Pools one sparse feature map at grid points, at one or several scales.

    Each scale lifts the features of the voxels and, separately, their positions relative to the grid point, adds the
    two, and takes the largest (or mean) response among the neighbours. Lifting features before they are grouped is the
    paper's accelerated form: it costs V instead of Q x S products. In eval mode the norm of the positions is affine
    too, so that a voxel's position and the grid point's are lifted apart, and nothing of size Q x S x C is laid out.

    Source: Voxel R-CNN (Deng et al., AAAI 2021), section "Voxel RoI Pooling".

    Args:
        in_channels: width of the source's features.
        config: its scales.
    """

    def __init__(self, in_channels: int, config: PoolLayerConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.mlps
        self.mlps_in = nn.ModuleList(
            nn.Sequential(nn.Conv1d(in_channels, mid, 1, bias=False), nn.BatchNorm1d(mid)) for mid, _ in widths
        )
        self.mlps_pos = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, mid, 1, bias=False), nn.BatchNorm2d(mid)) for mid, _ in widths
        )
        self.mlps_out = nn.ModuleList(
            nn.Sequential(nn.Conv1d(mid, out, 1, bias=False), nn.BatchNorm1d(out), nn.ReLU()) for mid, out in widths
        )
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @property
    def out_channels(self) -> int:
        """Width of what is pooled."""
        return self.config.out_channels

    def forward(self, source: VoxelSource, points: GridPoints) -> Tensor:
        """Pool the source at every grid point.

        Args:
            source: features of all frames; there may be none.
            points: Q grid points of all frames.

        Returns:
            ``(Q, out_channels)``, scales side by side. A grid point without a neighbour pools a zero feature at zero
            distance. ``(0, out_channels)`` for no grid point.
        """
        if len(points.xyz) == 0:
            return source.features.new_zeros(0, self.out_channels)
        return torch.cat([self._pool_scale(scale, source, points) for scale in range(len(self.mlps_in))], dim=1)

    def _pool_scale(self, scale: int, source: VoxelSource, points: GridPoints) -> Tensor:
        neighbors = self._find_neighbors(scale, source, points)
        lifted = self._lift_features(scale, source.features)
        if self.training or self.config.pool_method == "avg_pool":
            pooled = self._pool_samples(scale, neighbors.gather(lifted), neighbors.offsets(source, points))
        else:
            pooled = self._pool_unrolled(scale, lifted, source, points, neighbors)
        return self.mlps_out[scale](pooled.t().unsqueeze(0)).squeeze(0).t()

    def _find_neighbors(self, scale: int, source: VoxelSource, points: GridPoints) -> Neighbors:
        index, is_empty = ops.voxel_query(
            source.locate(points),
            points.xyz,
            source.coords,
            source.centers,
            source.spatial_shape,
            source.batch_size,
            ranges=self.config.query_ranges[scale],
            radius=self.config.pool_radius[scale],
            num_samples=self.config.nsample[scale],
        )
        return Neighbors(index, is_empty)

    def _lift_features(self, scale: int, features: Tensor) -> Tensor:
        """Lift the features of every voxel; a step with fewer than two takes the running statistics and leaves them."""
        layers: list[Any] = list(self.mlps_in[scale].children())
        conv, norm = layers
        lifted = conv(F.pad(features, (0, 0, 0, 1)).t().unsqueeze(0))[..., : len(features)]
        if self.training and len(features) < 2:
            statistics = (norm.running_mean, norm.running_var)
            lifted = F.batch_norm(lifted, *statistics, norm.weight, norm.bias, False, 0.0, norm.eps)
        else:
            lifted = norm(lifted)
        return lifted.squeeze(0).t()

    def _pool_samples(self, scale: int, grouped: Tensor, offsets: Tensor) -> Tensor:
        """Pool neighbours laid out one by one: ``grouped (Q, S, C)`` features, ``offsets (Q, S, 3)`` -> ``(Q, C)``."""
        position = self.mlps_pos[scale](offsets.permute(2, 0, 1).unsqueeze(0)).squeeze(0).permute(1, 2, 0)
        response = (position + grouped).relu_()
        return response.amax(dim=1) if self.config.pool_method == "max_pool" else response.mean(dim=1)

    def _pool_unrolled(
        self, scale: int, lifted: Tensor, source: VoxelSource, points: GridPoints, neighbors: Neighbors
    ) -> Tensor:
        """Take the largest response by ``max(f + A (c - g) + b) = max(f + A c) - A g + b``.

        Positions are multiplied in float64, relative to the middle of the map: the two products nearly cancel.
        """
        weight, bias = folded(self.mlps_pos[scale])
        of_voxels = (source.centers - source.middle).double() @ weight.t()
        of_points = (points.xyz - source.middle).double() @ weight.t()
        table = F.pad(lifted.float() + of_voxels.float(), (0, 0, 0, 1))
        best = F.embedding_bag(neighbors.index, table, mode="max") - of_points.float()
        return (best.masked_fill(neighbors.is_empty.unsqueeze(1), 0.0) + bias).relu()


def folded(layers: Any) -> tuple[Tensor, Tensor]:
    """Write a 1x1 convolution and its norm in eval mode as weight ``(out, in)``, float64, and bias ``(out,)``."""
    conv, norm = layers
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (conv.weight.flatten(1) * gain.unsqueeze(1)).double(), norm.bias - norm.running_mean * gain
