"""What do the points in the cells around a place know, cell by cell? VectorPool aggregation."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cakdp_ext import ops
from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.keypoints.aggregation import Aggregation
from cakdp_ext.detectors.keypoints.aggregation_config import VectorGroupConfig, VectorPoolingConfig
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.row_layers import GroupedRowConv1d, RowBatchNorm1d, RowConv1d, hidden_layers

REACH = 2.0
"""Points up to so many times the cube's half width away are looked at for the three nearest to a cell."""
NEAR = 1e-8
"""Metres added to distances before they are inverted."""


class VectorPooling(Aggregation):
    """Describes the surroundings of a place by the concatenated features of the cells around it, by several divisions.

    Args:
        in_channels: width of the source's features.
        config: the divisions.
        where: what errors call the section.

    Raises:
        ConfigError: when the source's width is no multiple of the width that it shall be folded to.

    Source: PV-RCNN++ (Shi et al., IJCV 2023), section "VectorPool Aggregation", with OpenPCDet's tensor names.
    """

    def __init__(self, in_channels: int, config: VectorPoolingConfig, where: str) -> None:
        super().__init__()
        self.width = config.num_reduced_channels or in_channels
        if in_channels % self.width:
            raise ConfigError(
                f"NUM_REDUCED_CHANNELS {self.width} of {where} must divide the source's {in_channels} channels"
            )
        self.groups = [f"layer_{number}" for number in range(config.num_groups)]
        for name, group in zip(self.groups, config.groups, strict=False):
            self.add_module(name, DividedSpace(self.width, group, config))
        gathered = 3 + sum(group.post_mlps[-1] for group in config.groups[: config.num_groups])
        self.msg_post_mlps = hidden_layers(RowConv1d, gathered, config.msg_post_mlps)
        self.out_channels = config.msg_post_mlps[-1]
        self.start()

    def forward(self, source: PointFeatures, xyz: Tensor, counts: Tensor) -> Tensor:
        """Describe the surroundings of places; see :meth:`Aggregation.forward`."""
        folded = source.features.float().unflatten(1, (-1, self.width)).sum(dim=1)
        source = PointFeatures(source.xyz, source.frames, folded)
        gathered = [self.get_submodule(name)(source, xyz, counts) for name in self.groups]
        return self.msg_post_mlps(torch.cat([xyz, *gathered], dim=1))


class DividedSpace(nn.Module):
    """One division of the space around a place: a layer for every cell, then layers for all together.

    Args:
        width: of the source's features.
        group: the division.
        config: what a cell says, and in which width.
    """

    def __init__(self, width: int, group: VectorGroupConfig, config: VectorPoolingConfig) -> None:
        super().__init__()
        self.group = group
        self.kind = config.local_aggregation_type
        positions = 9 if self.kind == "local_interpolation" else 3
        local = config.num_channels_of_local_aggregation
        conv = GroupedRowConv1d(group.num_cells, positions + width, local)
        self.separate_local_aggregation_layer = nn.Sequential(conv, RowBatchNorm1d(conv.out_channels), nn.ReLU())
        self.post_mlps = hidden_layers(RowConv1d, conv.out_channels, group.post_mlps)

    def forward(self, source: PointFeatures, xyz: Tensor, counts: Tensor) -> Tensor:
        """Describe the surroundings of places: ``(Q, width of the last layer)``."""
        read = self._interpolate if self.kind == "local_interpolation" else self._pool
        return self.post_mlps(self.separate_local_aggregation_layer(read(source, xyz, counts)))

    @property
    def _limit(self) -> int | None:
        return self.group.neighbor_nsample if self.group.neighbor_nsample > 0 else None

    def _interpolate(self, source: PointFeatures, xyz: Tensor, counts: Tensor) -> Tensor:
        """Weigh the three points nearest to each cell's centre: ``(Q, G, C + 9)``, features, then their offsets."""
        centers = xyz.unsqueeze(1) + self._cell_centers(xyz)
        reach = REACH * self.group.max_neighbor_distance
        neighbors = ops.local_neighbors(source.xyz, source.counts(len(counts)), xyz, counts, reach, self._limit)
        squared, index = ops.local_three_nn(source.xyz, centers, neighbors)
        is_missing, is_empty = index < 0, index[..., :1] < 0
        squared = torch.where(is_missing, squared[..., :1], squared)
        index = torch.where(is_missing, index[..., :1], index).masked_fill(is_empty, len(source.xyz))
        closeness = 1.0 / (squared.sqrt() + NEAR)
        weights = closeness / closeness.sum(dim=-1, keepdim=True).clamp(min=NEAR)
        known = F.pad(source.features, (0, 0, 0, 1))
        features = ops.three_interpolate(known, index.flatten(0, 1), weights.flatten(0, 1)).unflatten(
            0, index.shape[:2]
        )
        offsets = (centers.unsqueeze(2) - F.pad(source.xyz, (0, 0, 0, 1))[index]).flatten(2).masked_fill(is_empty, 0.0)
        return torch.cat((features, offsets), dim=2)

    def _cell_centers(self, like: Tensor) -> Tensor:
        """Give the centres ``(G, 3)`` of the cells seen from the place, x outermost."""
        reach = self.group.max_neighbor_distance
        axes = [
            ((torch.arange(cells, dtype=torch.float64) + 0.5) * (2 * reach / cells) - reach).to(like)
            for cells in self.group.num_local_voxel
        ]
        return torch.cartesian_prod(*axes)

    def _pool(self, source: PointFeatures, xyz: Tensor, counts: Tensor) -> Tensor:
        """Pool the points of each cell: ``(Q, G, 3 + C)``, their offset from the place, then their features."""
        cells = ops.vector_cells(
            source.xyz,
            source.counts(len(counts)),
            xyz,
            counts,
            self.group.num_local_voxel,
            self.group.max_neighbor_distance,
            None if self.kind == "voxel_avg_pool" else 1,
            max_neighbors=self._limit if self.kind == "voxel_avg_pool" else None,
        )
        pooled, _ = ops.pool_cells(source.features, cells, "avg")
        return torch.cat((ops.mean_offsets(source.xyz, xyz, cells), pooled), dim=-1).flatten(1, 3)
