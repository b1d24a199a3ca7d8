"""Which proposals are right, and where exactly are their objects? The second stage of Voxel R-CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.backbones_3d import BackboneFeatures
from cakdp_ext.detectors.registry import ROI_HEADS
from cakdp_ext.detectors.roi_heads.roi_config import VoxelRCNNHeadConfig
from cakdp_ext.detectors.roi_heads.roi_frame import roi_grid_points
from cakdp_ext.detectors.roi_heads.roi_head import RoiHead
from cakdp_ext.detectors.roi_heads.voxel_pooling import GridPoints, NeighborVoxelPooling, VoxelSource
from cakdp_ext.detectors.row_layers import shared_layers
from cakdp_ext.types import LidarGeometry


@ROI_HEADS.register("VoxelRCNNHead")
class VoxelRCNNHead(RoiHead):
    """Pools voxel features at a grid of points in each roi, then judges the roi and refines its box.

    Args:
        config: the section's keys.
        channels: widths of the 3D backbone's scales by name.
        geometry: range and voxel grid of the points.

    Raises:
        ConfigError: for a feature source that the backbone does not have.

    Source: Voxel R-CNN (Deng et al., AAAI 2021), sections "Voxel RoI pooling" and "Detection Head", with OpenPCDet's
        tensor names.
    """

    Config = VoxelRCNNHeadConfig
    View = BackboneFeatures
    config: VoxelRCNNHeadConfig

    def __init__(self, config: VoxelRCNNHeadConfig, channels: Mapping[str, int], geometry: LidarGeometry) -> None:
        super().__init__(config)
        pooling = config.roi_grid_pool
        missing = [name for name in pooling.features_source if name not in channels]
        if missing:
            raise ConfigError(
                f"FEATURES_SOURCE of MODEL.ROI_HEAD names {', '.join(missing)}; "
                f"the 3D backbone has {', '.join(channels)}"
            )
        self.geometry = geometry
        self.roi_grid_pool_layers = nn.ModuleList(
            NeighborVoxelPooling(channels[name], pooling.layer(name)) for name in pooling.features_source
        )
        pooled = sum(pooling.layer(name).out_channels for name in pooling.features_source) * pooling.grid_size**3
        shared = (pooled, *config.shared_fc)[-1]
        self.shared_fc_layer = fully_connected(pooled, config.shared_fc, config.dp_ratio)
        self.cls_fc_layers = fully_connected(shared, config.cls_fc, config.dp_ratio)
        self.cls_pred_layer = nn.Linear((shared, *config.cls_fc)[-1], 1)
        self.reg_fc_layers = fully_connected(shared, config.reg_fc, config.dp_ratio)
        self.reg_pred_layer = nn.Linear((shared, *config.reg_fc)[-1], self.coder.code_size)
        self._start_undecided()

    def _start_undecided(self) -> None:
        """Make a fresh head give every roi about even odds and leave its box where it is."""
        for layer, spread in ((self.cls_pred_layer, 0.01), (self.reg_pred_layer, 0.001)):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)

    def judge(self, view: BackboneFeatures, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Judge rois by the scales of B frames; see :meth:`RoiHead.judge`."""
        features = self.shared_fc_layer(self.pool(view, rois))
        logits = self.cls_pred_layer(self.cls_fc_layers(features))
        return logits, self.reg_pred_layer(self.reg_fc_layers(features))

    def pool(self, backbone: BackboneFeatures, rois: Tensor) -> Tensor:
        """Pool every source at the grid points of every roi.

        Args:
            backbone: the scales of B frames.
            rois: ``(B, K, 7)``.

        Returns:
            ``(B * K, grid points * channels)``; of a grid point the sources' channels stand side by side.
        """
        xyz = roi_grid_points(rois.detach().float().flatten(0, 1), self.config.roi_grid_pool.grid_size)
        frames = torch.arange(len(rois), device=rois.device).repeat_interleave(rois.shape[1] * xyz.shape[1])
        points = GridPoints(xyz.flatten(0, 1), frames)
        pooled = [
            layer(VoxelSource.from_sparse(backbone.multi_scale[name], backbone.strides[name], self.geometry), points)
            for layer, name in zip(self.roi_grid_pool_layers, self.config.roi_grid_pool.features_source, strict=True)
        ]
        return torch.cat(pooled, dim=1).view(len(xyz), -1)


def fully_connected(in_features: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Stack linear layers, each with batch norm and ReLU, and dropout between them; see :func:`shared_layers`."""
    return shared_layers(in_features, widths, dropout, _linear)


def _linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features, bias=False)
    nn.init.xavier_normal_(linear.weight)
    return linear
