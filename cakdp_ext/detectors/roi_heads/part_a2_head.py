"""Which proposals are right, judged by where in an object their points lie? The second stage of Part-A2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cakdp_ext.detectors.backbones_3d import float32_on_cpu, same_scale
from cakdp_ext.detectors.part_head import PartPredictions
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.registry import ROI_HEADS
from cakdp_ext.detectors.roi_heads.part_pooling import FilledCells, RoiAwarePoolConfig, pool_parts
from cakdp_ext.detectors.roi_heads.roi_config import RoiHeadConfig
from cakdp_ext.detectors.roi_heads.roi_head import RoiHead
from cakdp_ext.detectors.row_layers import branch_layers, shared_layers
from cakdp_ext.detectors.sparse import spconv
from cakdp_ext.types import LidarGeometry

HIDDEN = 64
"""Channels between the two convolutions of a branch."""
PART_CHANNELS = 4
"""Three coordinates and the score of being an object."""
AT_ONCE = 128
"""Rois that are pooled at once in eval mode, which bounds the memory that they take."""


@dataclass(frozen=True)
class PartScene:
    """What the second stage looks at.

    Attributes:
        points: with the 3D backbone's features.
        said: what the point head says of them.
    """

    points: PointFeatures
    said: PartPredictions


@dataclass(frozen=True, kw_only=True)
class PartA2FCHeadConfig(RoiHeadConfig):
    """A ROI_HEAD section of NAME PartA2FCHead.

    Attributes:
        shared_fc: widths of the layers that both branches share.
        cls_fc: widths of the class branch.
        reg_fc: widths of the box branch.
        roi_aware_pool: how a roi is divided.
        seg_mask_score_thresh: score below which a point's part location counts as 0.
        dp_ratio: dropout between shared layers and behind the first layer of a branch.
        disable_part: pool the points' coordinates in place of their part locations.
    """

    shared_fc: tuple[int, ...]
    cls_fc: tuple[int, ...]
    reg_fc: tuple[int, ...]
    roi_aware_pool: RoiAwarePoolConfig
    seg_mask_score_thresh: float
    dp_ratio: float = 0.0
    disable_part: bool = False


@ROI_HEADS.register("PartA2FCHead")
class PartA2FCHead(RoiHead):
    """Pools part locations and features in the cells of each roi, then judges the roi and refines its box.

    Part locations are averaged, features maximised; each goes through two submanifold convolutions over the filled
    cells. Both branches share one rulebook. A roi without points is judged by its emptiness.

    Args:
        config: the section's keys.
        channels: widths of what it looks at; ``points`` is that of a point's features.
        geometry: range and voxel grid of the points.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.2, with OpenPCDet's tensor names.
    """

    Config = PartA2FCHeadConfig
    View = PartScene

    def __init__(self, config: PartA2FCHeadConfig, channels: Mapping[str, int], geometry: LidarGeometry) -> None:
        super().__init__(config)
        pooling = config.roi_aware_pool
        width, pooled = pooling.num_features // 2, pooling.num_features * pooling.pool_size**3
        shared = (pooled, *config.shared_fc)[-1]
        self.conv_part = _branch(PART_CHANNELS, width)
        self.conv_rpn = _branch(channels["points"], width)
        self.shared_fc_layer = shared_layers(pooled, config.shared_fc, config.dp_ratio)
        self.cls_layers = branch_layers(shared, config.cls_fc, 1, config.dp_ratio, spread=0.01)
        self.reg_layers = branch_layers(shared, config.reg_fc, self.coder.code_size, config.dp_ratio, spread=0.001)

    def judge(self, view: PartScene, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Judge rois.

        Args:
            view: points of B frames.
            rois: ``(B, K, 7)`` metres and radians, at least one.

        Returns:
            ``(B * K, 1)`` raw logits and ``(B * K, 7)`` residuals, in the order of the rois.
        """
        features = self.shared_features(view, rois).flatten(0, 1)
        return self.cls_layers(features), self.reg_layers(features)

    def shared_features(self, view: PartScene, rois: Tensor) -> Tensor:
        """Give ``(B, K, SHARED_FC[-1])`` features of the rois ``(B, K, 7)``.

        In eval mode, where rois do not depend on each other, only so many are pooled at once.
        """
        parts = self._parts(view)
        at_once = rois.shape[1] if self.training else max(1, AT_ONCE // len(rois))
        return torch.cat([self._features(view.points, parts, some) for some in rois.split(at_once, dim=1)], dim=1)

    def _features(self, points: PointFeatures, parts: Tensor, rois: Tensor) -> Tensor:
        num_rois, pooling = rois.shape[0] * rois.shape[1], self.config.roi_aware_pool
        cells = pool_parts(points, parts, rois, pooling)
        pooled = cells.scatter(self._convolve(cells, num_rois), num_rois, pooling.pool_size)
        return self.shared_fc_layer(pooled).unflatten(0, rois.shape[:2])

    def _parts(self, view: PartScene) -> Tensor:
        """Give ``(N, 4)``: part locations, 0 for what hardly is an object, and the score, without gradient."""
        scores = view.said.scores.detach().unsqueeze(1)
        places = view.points.xyz if self.config.disable_part else view.said.parts
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
