"""Voxel RoI pooling: what the voxels around a grid point say about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cakdp_ext import ops

from .settings import PoolLayerSettings

QUERIES_PER_CHUNK = 1 << 13


@dataclass(frozen=True)
class VoxelSource:
    """One sparse feature map as pooling sees it.

    Attributes:
        features: ``(V, C)``.
        coords: ``(V, 4)`` ``(batch, z, y, x)`` in voxels of this map.
        centers: ``(V, 3)`` x, y, z of the voxels in metres, LiDAR frame.
        spatial_shape: ``(Z, Y, X)`` of this map.
        batch_size: number of frames.
    """

    features: Tensor
    coords: Tensor
    centers: Tensor
    spatial_shape: tuple[int, int, int]
    batch_size: int


@dataclass(frozen=True)
class GridQueries:
    """Grid points as one source sees them.

    Attributes:
        xyz: ``(Q, 3)`` metres, LiDAR frame.
        coords: ``(Q, 4)`` ``(batch, z, y, x)`` in voxels of the source; may lie outside of it.
    """

    xyz: Tensor
    coords: Tensor


@dataclass(frozen=True)
class Neighbors:
    """Which voxels a grid point pools.

    Attributes:
        index: ``(Q, S)`` rows of the source.
        offsets: ``(Q, S, 3)`` metres from the grid point to the voxel's centre, 0 where there is none.
        is_found: ``(Q,)`` whether the grid point has any voxel.
    """

    index: Tensor
    offsets: Tensor
    is_found: Tensor

    def split(self, size: int) -> list[Neighbors]:
        """Cut into runs of at most ``size`` grid points; one empty run when there are none."""
        parts = zip(self.index.split(size), self.offsets.split(size), self.is_found.split(size), strict=True)
        return [Neighbors(*part) for part in parts]


class NeighborVoxelPooling(nn.Module):
    """Pools one sparse feature map at grid points, at one or several scales.

    Each scale lifts the features of the voxels and, separately, their positions relative to the grid point, adds the
    two, and takes the largest (or mean) response among the neighbours. Lifting features before they are grouped is the
    paper's accelerated form: it costs V instead of Q x S products.

    Source: Voxel R-CNN (Deng et al., AAAI 2021), Sec. 3.3 and 3.4 (Eq. 2).

    Args:
        in_channels: width of the source's features.
        settings: scales.
    """

    def __init__(self, in_channels: int, settings: PoolLayerSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = settings.mlps
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

    def forward(self, source: VoxelSource, queries: GridQueries) -> Tensor:
        """Pool the source at every grid point.

        Args:
            source: features of all frames.
            queries: Q grid points of all frames.

        Returns:
            ``(Q, out_channels)``, scales side by side. A grid point without a neighbour pools a zero feature at zero
            distance. ``(0, out_channels)`` for no grid point.
        """
        return torch.cat([self._pool_scale(scale, source, queries) for scale in range(len(self.mlps_in))], dim=1)

    def _pool_scale(self, scale: int, source: VoxelSource, queries: GridQueries) -> Tensor:
        neighbors = self._find_neighbors(scale, source, queries)
        lifted = self._lift_features(scale, source.features)
        whole = self.training or len(queries.xyz) == 0
        chunks = [neighbors] if whole else neighbors.split(QUERIES_PER_CHUNK)
        pooled = torch.cat([self._pool_neighbors(scale, lifted, chunk) for chunk in chunks])
        return _per_row(self.mlps_out[scale], pooled)

    @torch.no_grad()
    def _find_neighbors(self, scale: int, source: VoxelSource, queries: GridQueries) -> Neighbors:
        index, is_empty = ops.voxel_query(
            queries.coords,
            queries.xyz,
            source.coords,
            source.centers,
            source.spatial_shape,
            source.batch_size,
            ranges=self.settings.query_ranges[scale],
            radius=self.settings.pool_radius[scale],
            num_samples=self.settings.nsample[scale],
        )
        centers = _at_least_two_rows(source.centers)
        offsets = centers[index] - queries.xyz.unsqueeze(1)
        return Neighbors(index, offsets.masked_fill_(is_empty[:, None, None], 0.0), ~is_empty)

    def _lift_features(self, scale: int, features: Tensor) -> Tensor:
        return _per_row(self.mlps_in[scale], _at_least_two_rows(features))

    def _pool_neighbors(self, scale: int, lifted: Tensor, neighbors: Neighbors) -> Tensor:
        grouped = lifted[neighbors.index] * neighbors.is_found[:, None, None]
        position = self.mlps_pos[scale](neighbors.offsets.permute(2, 0, 1).unsqueeze(0))
        response = (position + grouped.permute(2, 0, 1).unsqueeze(0)).relu_()
        pooled = response.amax(dim=3) if self.settings.pool_method == "max_pool" else response.mean(dim=3)
        return pooled.squeeze(0).t()


def _per_row(layers: nn.Module, rows: Tensor) -> Tensor:
    """Run 1x1 convolutions and norms ``(1, C, N)`` on a matrix ``(N, C)``."""
    return layers(rows.t().unsqueeze(0)).squeeze(0).t()


def _at_least_two_rows(rows: Tensor) -> Tensor:
    """Pad with zero rows: batch norm needs two rows, and grid points without a neighbour point at row 0."""
    return functional.pad(rows, (0, 0, 0, max(2 - len(rows), 0)))
