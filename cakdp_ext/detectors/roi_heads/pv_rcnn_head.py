"""Which proposals are right, judged by the keypoints in and around them? The second stage of PV-RCNN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cakdp_ext.detectors.keypoints import build_aggregation
from cakdp_ext.detectors.keypoints.aggregation_config import read_aggregation
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.point_head import PointPredictions
from cakdp_ext.detectors.registry import ROI_HEADS
from cakdp_ext.detectors.roi_heads.roi_config import RoiHeadConfig
from cakdp_ext.detectors.roi_heads.roi_frame import roi_grid_points
from cakdp_ext.detectors.roi_heads.roi_head import RoiHead
from cakdp_ext.detectors.row_layers import branch_layers, shared_layers
from cakdp_ext.types import LidarGeometry


@dataclass(frozen=True)
class KeypointScene:
    """What the second stage looks at.

    Attributes:
        points: the keypoints with their fused features.
        said: what the point head says of them.
        asked: the keypoints with the features that the point head saw.
    """

    points: PointFeatures
    said: PointPredictions
    asked: PointFeatures


@dataclass(frozen=True)
class RoiGridConfig:
    """What ROI_GRID_POOL says beside how features are gathered.

    Attributes:
        grid_size: grid points along each side of a roi.
    """

    grid_size: int

    def __post_init__(self) -> None:
        if self.grid_size < 1:
            raise ValueError(f"GRID_SIZE must be at least 1, got {self.grid_size}")


@dataclass(frozen=True, kw_only=True)
class PVRCNNHeadConfig(RoiHeadConfig):
    """A ROI_HEAD section of NAME PVRCNNHead.

    Attributes:
        shared_fc: widths of the layers that both branches share.
        cls_fc: widths of the class branch.
        reg_fc: widths of the box branch.
        roi_grid_pool: GRID_SIZE, and how the keypoints around a grid point are gathered, as in an entry of SA_LAYER.
        dp_ratio: dropout between shared layers and behind the first layer of a branch.
    """

    shared_fc: tuple[int, ...]
    cls_fc: tuple[int, ...]
    reg_fc: tuple[int, ...]
    roi_grid_pool: Mapping[str, Any]
    dp_ratio: float = 0.0


@ROI_HEADS.register("PVRCNNHead")
class PVRCNNHead(RoiHead):
    """Gathers keypoints at a grid of points in each roi, then judges the roi and refines its box.

    Args:
        config: the section's keys.
        channels: widths of what it looks at; ``points`` is that of a keypoint's features.
        geometry: range and voxel grid of the points.

    Raises:
        ConfigError: for a ROI_GRID_POOL that cannot be.

    Source: PV-RCNN (Shi et al., CVPR 2020), section 3.3; PV-RCNN++ (Shi et al., IJCV 2023), with OpenPCDet's tensor
        names.
    """

    Config = PVRCNNHeadConfig
    View = KeypointScene

    def __init__(self, config: PVRCNNHeadConfig, channels: Mapping[str, int], geometry: LidarGeometry) -> None:
        super().__init__(config)
        where = "MODEL.ROI_HEAD.ROI_GRID_POOL"
        self.grid, aggregation = read_aggregation(config.roi_grid_pool, RoiGridConfig, where)
        self.roi_grid_pool_layer = build_aggregation(channels["points"], aggregation, where)
        pooled = self.roi_grid_pool_layer.out_channels * self.grid.grid_size**3
        shared = (pooled, *config.shared_fc)[-1]
        self.shared_fc_layer = shared_layers(pooled, config.shared_fc, config.dp_ratio)
        self.cls_layers = branch_layers(shared, config.cls_fc, 1, config.dp_ratio, spread=0.01)
        self.reg_layers = branch_layers(shared, config.reg_fc, self.coder.code_size, config.dp_ratio, spread=0.001)

    def judge(self, view: KeypointScene, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Judge rois by the keypoints of B frames; see :meth:`RoiHead.judge`."""
        features = self.shared_fc_layer(self.pool(view, rois))
        return self.cls_layers(features), self.reg_layers(features)

    def pool(self, view: KeypointScene, rois: Tensor) -> Tensor:
        """Gather keypoints, weighted by how surely they belong to objects, at the grid points of every roi.

        Args:
            view: keypoints of B frames.
            rois: ``(B, K, 7)``.

        Returns:
            ``(B * K, channels * grid points)``; of a channel the grid points stand side by side.
        """
        points = view.points
        with torch.autocast(rois.device.type, enabled=False):
            weighted = points.features.float() * view.said.scores.unsqueeze(1)
            xyz = roi_grid_points(rois.detach().float().flatten(0, 1), self.grid.grid_size)
            counts = torch.full((len(rois),), rois.shape[1] * xyz.shape[1], device=rois.device)
            source = PointFeatures(points.xyz, points.frames, weighted)
            pooled = self.roi_grid_pool_layer(source, xyz.flatten(0, 1), counts)
        return pooled.view(len(xyz), xyz.shape[1], -1).transpose(1, 2).flatten(1)
