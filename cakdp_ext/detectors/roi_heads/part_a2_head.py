"""Which proposals are right, judged by where in an object their points lie? The second stage of Part-A2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cakdp_ext.detectors.backbones_3d import float32_on_cpu, same_scale
from cakdp_ext.detectors.box_coder import ResidualCoder
from cakdp_ext.detectors.part_head import PartPredictions
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.registry import ROI_HEADS
from cakdp_ext.detectors.roi_heads.part_pooling import FilledCells, RoiAwarePoolConfig, pool_parts
from cakdp_ext.detectors.roi_heads.roi_config import ProposalPhasesConfig, RoiLossConfig, RoiTargetConfig
from cakdp_ext.detectors.roi_heads.roi_layers import branch_layers, shared_layers
from cakdp_ext.detectors.roi_heads.voxel_rcnn_head import RoiOutput
from cakdp_ext.detectors.sparse import spconv
from cakdp_ext.types import LidarGeometry

HIDDEN = 64
"""Channels between the two convolutions of a branch."""
PART_CHANNELS = 4
"""Three coordinates and the score of being an object."""
AT_ONCE = 128
"""Rois of a frame that are judged at once in eval mode, which bounds the memory that they take."""


@dataclass(frozen=True)
class PartScene:
    """What the second stage looks at.

    Attributes:
        points: with the 3D backbone's features.
        said: what the point head says of them.
    """

    points: PointFeatures
    said: PartPredictions


@dataclass(frozen=True)
class PartA2FCHeadConfig:
    """A ROI_HEAD section of NAME PartA2FCHead.

    Attributes:
        shared_fc: widths of the layers that both branches share.
        cls_fc: widths of the class branch.
        reg_fc: widths of the box branch.
        nms_config: how proposals are chosen.
        roi_aware_pool: how a roi is divided.
        seg_mask_score_thresh: score below which a point's part location counts as 0.
        target_config: how rois are sampled in training.
        loss_config: what they are trained with.
        dp_ratio: dropout between shared layers and behind the first layer of a branch.
        disable_part: pool the points' coordinates in place of their part locations.
        class_agnostic: must be True: one logit and one box a roi, whatever its class.
    """

    shared_fc: tuple[int, ...]
    cls_fc: tuple[int, ...]
    reg_fc: tuple[int, ...]
    nms_config: ProposalPhasesConfig
    roi_aware_pool: RoiAwarePoolConfig
    seg_mask_score_thresh: float
    target_config: RoiTargetConfig
    loss_config: RoiLossConfig
    dp_ratio: float = 0.0
    disable_part: bool = False
    class_agnostic: bool = True

    def __post_init__(self) -> None:
        if not self.class_agnostic:
            raise ValueError("CLASS_AGNOSTIC must be True: this head gives one logit and one box a roi")


@ROI_HEADS.register("PartA2FCHead")
class PartA2FCHead(nn.Module):
    """Pools part locations and features in the cells of each roi, then judges the roi and refines its box.

    Part locations are averaged, features maximised; each goes through two submanifold convolutions over the filled
    cells. Both branches share one rulebook.

    Args:
        config: the section's keys.
        in_channels: features of a point.
        geometry: range and voxel grid of the points.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.2, with OpenPCDet's tensor names.
    """

    Config = PartA2FCHeadConfig

    def __init__(self, config: PartA2FCHeadConfig, in_channels: int, geometry: LidarGeometry) -> None:
        super().__init__()
        pooling = config.roi_aware_pool
        width = pooling.num_features // 2
        self.config = config
        self.coder = ResidualCoder()
        self.conv_part = _branch(PART_CHANNELS, width)
        self.conv_rpn = _branch(in_channels, width)
        self.shared_fc_layer = shared_layers(
            pooling.num_features * pooling.pool_size**3, config.shared_fc, config.dp_ratio
        )
        shared = (pooling.num_features * pooling.pool_size**3, *config.shared_fc)[-1]
        self.cls_layers = branch_layers(shared, config.cls_fc, 1, config.dp_ratio, spread=0.01)
        self.reg_layers = branch_layers(shared, config.reg_fc, self.coder.code_size, config.dp_ratio, spread=0.001)

    def forward(self, scene: PartScene, rois: Tensor) -> RoiOutput:
        """Judge rois.

        Args:
            scene: points of B frames.
            rois: ``(B, K, 7)`` metres and radians; padding of zeros holds no point and is judged by that.

        Returns:
            One row a roi, in the given order; no rows for K = 0.
        """
        if rois.shape[1] == 0:
            return RoiOutput(rois.new_zeros(len(rois), 0, 1), rois.new_zeros(len(rois), 0, self.coder.code_size))
        if self.training:
            return self._judge(scene, rois)
        parts = [self._judge(scene, some) for some in rois.split(AT_ONCE, dim=1)]
        return RoiOutput(*(torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("cls_logits", "deltas")))

    def _judge(self, scene: PartScene, rois: Tensor) -> RoiOutput:
        num_frames, num_rois = rois.shape[:2]
        cells = pool_parts(scene.points, self._parts(scene), rois, self.config.roi_aware_pool)
        values = self._convolve(cells, num_frames * num_rois)
        pooled = cells.scatter(values, num_frames * num_rois, self.config.roi_aware_pool.pool_size)
        features = self.shared_fc_layer(pooled)
        outputs = (layers(features).float() for layers in (self.cls_layers, self.reg_layers))
        return RoiOutput(*(rows.view(num_frames, num_rois, -1) for rows in outputs))

    def _parts(self, scene: PartScene) -> Tensor:
        """Give ``(N, 4)``: part locations, 0 for what hardly is an object, and the score, without gradient."""
        scores = scene.said.scores.detach().unsqueeze(1)
        places = scene.points.xyz if self.config.disable_part else scene.said.parts
        return torch.cat((places.masked_fill(scores < self.config.seg_mask_score_thresh, 0.0), scores), dim=1)

    def _convolve(self, cells: FilledCells, num_rois: int) -> Tensor:
        """Convolve both kinds of features over the filled cells: ``(n, NUM_FEATURES)``, those of parts last."""
        shape = [self.config.roi_aware_pool.pool_size] * 3
        parts = spconv.SparseConvTensor(cells.parts, cells.coords.int().contiguous(), shape, num_rois)
        with float32_on_cpu(cells.parts.device):
            features = self.conv_rpn(parts.replace_feature(cells.features)).features
            return torch.cat((features, self.conv_part(parts).features), dim=1)


def _branch(in_channels: int, width: int) -> nn.Module:
    layers = (same_scale(in_channels, HIDDEN, "cells"), same_scale(HIDDEN, width, "cells"))
    return spconv.SparseSequential(*layers)
