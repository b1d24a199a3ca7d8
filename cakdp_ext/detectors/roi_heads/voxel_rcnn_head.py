"""Which proposals are right, and where exactly are their objects? The second stage of Voxel R-CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.backbones_3d import BackboneFeatures
from cakdp_ext.detectors.box_coder import ResidualCoder
from cakdp_ext.detectors.registry import ROI_HEADS
from cakdp_ext.detectors.roi_heads import roi_losses
from cakdp_ext.detectors.roi_heads.proposals import Proposals, propose
from cakdp_ext.detectors.roi_heads.roi_config import VoxelRCNNHeadConfig
from cakdp_ext.detectors.roi_heads.roi_frame import at_origin, from_roi_frame, roi_grid_points
from cakdp_ext.detectors.roi_heads.roi_targets import RoiTargets, sample_targets
from cakdp_ext.detectors.roi_heads.voxel_pooling import GridPoints, NeighborVoxelPooling, VoxelSource
from cakdp_ext.types import Batch, DensePredictions, LidarGeometry


@dataclass(frozen=True)
class RoiOutput:
    """What the second stage says about K rois a frame, float32, with gradient in training.

    Attributes:
        cls_logits: ``(B, K, 1)`` raw.
        deltas: ``(B, K, 7)`` residuals of the object's box in the frame of the roi.
    """

    cls_logits: Tensor
    deltas: Tensor


@ROI_HEADS.register("VoxelRCNNHead")
class VoxelRCNNHead(nn.Module):
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
    code_weights: Tensor

    def __init__(self, config: VoxelRCNNHeadConfig, channels: Mapping[str, int], geometry: LidarGeometry) -> None:
        super().__init__()
        pooling = config.roi_grid_pool
        missing = [name for name in pooling.features_source if name not in channels]
        if missing:
            raise ConfigError(
                f"FEATURES_SOURCE of MODEL.ROI_HEAD names {', '.join(missing)}; "
                f"the 3D backbone has {', '.join(channels)}"
            )
        self.config = config
        self.geometry = geometry
        self.coder = ResidualCoder()
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
        weights = config.loss_config.loss_weights
        self.register_buffer("code_weights", torch.tensor(weights.code_weights), persistent=False)
        self._start_undecided()

    def _start_undecided(self) -> None:
        """Make a fresh head give every roi about even odds and leave its box where it is."""
        for layer, spread in ((self.cls_pred_layer, 0.01), (self.reg_pred_layer, 0.001)):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)

    def propose(self, predictions: DensePredictions) -> Proposals:
        """Choose rois among the first stage's boxes, by the rules of training or of evaluation."""
        phases = self.config.nms_config
        return propose(predictions, phases.train if self.training else phases.test)

    def sample(self, proposals: Proposals, batch: Batch) -> RoiTargets:
        """Draw the rois of a training step and compare them with the objects of the batch."""
        with torch.autocast(proposals.rois.device.type, enabled=False):
            return sample_targets(proposals, batch.gt_boxes, batch.gt_labels, self.config.target_config)

    def forward(self, backbone: BackboneFeatures, rois: Tensor) -> RoiOutput:
        """Judge rois.

        Args:
            backbone: the scales of B frames.
            rois: ``(B, K, 7)`` metres and radians; padding of zeros is judged like any other.

        Returns:
            One row a roi, in the given order; no rows for K = 0.
        """
        num_frames, num_rois = rois.shape[:2]
        if num_rois == 0:
            return RoiOutput(rois.new_zeros(num_frames, 0, 1), rois.new_zeros(num_frames, 0, self.coder.code_size))
        features = self.shared_fc_layer(self.pool(backbone, rois))
        logits = self.cls_pred_layer(self.cls_fc_layers(features))
        deltas = self.reg_pred_layer(self.reg_fc_layers(features))
        return RoiOutput(*(rows.float().view(num_frames, num_rois, -1) for rows in (logits, deltas)))

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

    def decode(self, output: RoiOutput, rois: Tensor) -> Tensor:
        """Make boxes of the residuals.

        Args:
            output: of :meth:`forward`.
            rois: ``(B, K, 7)`` that it was asked about.

        Returns:
            ``(B, K, 7)`` in the LiDAR frame.
        """
        with torch.autocast(rois.device.type, enabled=False):
            rois = rois.float()
            return from_roi_frame(self.coder.decode(output.deltas, at_origin(rois)), rois)

    def losses(self, output: RoiOutput, targets: RoiTargets) -> dict[str, Tensor]:
        """Compare what was said about the sampled rois with their targets.

        Args:
            output: of :meth:`forward` for ``targets.rois``.
            targets: of :meth:`sample`.

        Returns:
            ``rcnn_cls_loss``, ``rcnn_reg_loss`` and, where the config asks for it, ``rcnn_corner_loss``: weighted
            scalars, 0 where no roi counts.
        """
        config, is_foreground = self.config.loss_config, targets.is_foreground
        weights = config.loss_weights
        anchors, boxes = at_origin(targets.rois[is_foreground]), targets.boxes[is_foreground]
        deltas = output.deltas[is_foreground]
        with torch.autocast(deltas.device.type, enabled=False):
            cls_loss = roi_losses.roi_class_loss(output.cls_logits.flatten(), targets.cls_targets.flatten())
            reg_loss = roi_losses.roi_residual_loss(deltas, self.coder.encode(boxes, anchors), self.code_weights)
            found = {
                "rcnn_cls_loss": weights.rcnn_cls_weight * cls_loss,
                "rcnn_reg_loss": weights.rcnn_reg_weight * reg_loss,
            }
            if config.corner_loss_regularization:
                corner_loss = roi_losses.corner_loss(self.coder.decode(deltas, anchors), boxes)
                found["rcnn_corner_loss"] = weights.rcnn_corner_weight * corner_loss
        return found


def fully_connected(in_features: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Stack linear layers, each with batch norm and ReLU, and dropout between them.

    Args:
        in_features: width of the input.
        widths: of the layers; none gives an identity.
        dropout: share that is dropped; 0 leaves the dropout layers out.
    """
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        if index and dropout > 0:
            layers.append(nn.Dropout(dropout))
        linear = nn.Linear(in_features, width, bias=False)
        nn.init.xavier_normal_(linear.weight)
        layers += [linear, nn.BatchNorm1d(width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers)
