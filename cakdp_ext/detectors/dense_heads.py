"""What lies where? Dense heads that let every anchor of the bird's-eye view speak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cakdp_ext import refinement
from cakdp_ext.config import ConfigError
from cakdp_ext.detectors import losses
from cakdp_ext.detectors.anchors import anchor_grid
from cakdp_ext.detectors.box_coder import ResidualCoder
from cakdp_ext.detectors.dense_head_config import AnchorHeadConfig, AnchorHeadIoUConfig
from cakdp_ext.detectors.post_processing import PostProcessingConfig, detect
from cakdp_ext.detectors.registry import DENSE_HEADS
from cakdp_ext.detectors.target_assigner import AnchorTargets, AxisAlignedTargetAssigner
from cakdp_ext.taps import BoxCodes
from cakdp_ext.types import Batch, DensePredictions, Detections, LidarGeometry, PredictionSites


@dataclass(frozen=True)
class HeadOutput:
    """Raw maps of an anchor head, one row an anchor, float32, with gradient in training.

    Attributes:
        cls_logits: ``(B, A, C)``.
        deltas: ``(B, A, 7)``.
        dir_logits: ``(B, A, bins)``, or None without a direction classifier.
        iou_logits: ``(B, A, C)``, or None without an IoU branch.
    """

    cls_logits: Tensor
    deltas: Tensor
    dir_logits: Tensor | None = None
    iou_logits: Tensor | None = None


@DENSE_HEADS.register("AnchorHeadSingle")
class AnchorHeadSingle(nn.Module):
    """One 1x1 convolution each for classes, boxes and directions of all anchors.

    Args:
        config: the section's keys.
        in_channels: channels of the map.
        class_names: classes by label.
        geometry: the range that the anchors cover.

    Source: SECOND (Yan et al., Sensors 2018), section 3.3, with OpenPCDet's tensor names.
    """

    Config: type[AnchorHeadConfig] = AnchorHeadConfig
    PostProcessing = PostProcessingConfig
    has_iou_branch = False
    anchors: Tensor
    centers: Tensor
    code_weights: Tensor

    def __init__(
        self, config: AnchorHeadConfig, in_channels: int, class_names: Sequence[str], geometry: LidarGeometry
    ) -> None:
        super().__init__()
        specs = config.anchor_generator_config
        self.config = config
        self.class_names = () if config.class_agnostic else tuple(class_names)
        self.num_classes = len(self.class_names) or 1
        self.num_per_cell = sum(spec.num_per_cell for spec in specs)
        self.stride = specs[0].feature_map_stride
        self.coder = ResidualCoder()
        self.target_assigner = AxisAlignedTargetAssigner(config.target_assigner_config, specs, list(class_names))
        self.register_buffer("anchors", anchor_grid(specs, geometry), persistent=False)
        self.register_buffer("centers", geometry.cell_centers(self.stride, self.num_per_cell), persistent=False)
        self.register_buffer(
            "code_weights", torch.tensor(config.loss_config.loss_weights.code_weights), persistent=False
        )
        self.conv_cls = nn.Conv2d(in_channels, self.num_per_cell * self.num_classes, 1)
        self.conv_box = nn.Conv2d(in_channels, self.num_per_cell * self.coder.code_size, 1)
        self.conv_dir_cls = None
        if config.use_direction_classifier is not None:
            self.conv_dir_cls = nn.Conv2d(in_channels, self.num_per_cell * config.num_dir_bins, 1)
        refinement.start_from_prior(self.conv_cls)
        nn.init.normal_(self.conv_box.weight, std=0.001)

    @property
    def sites(self) -> PredictionSites:
        """Where the A predictions sit, on the head's device."""
        anchors = self.anchors.view(-1, 7)
        return PredictionSites(self.centers, anchors, self.stride, self.num_classes, self.class_names)

    def forward(self, bev: Tensor) -> HeadOutput:
        """Read the maps.

        Args:
            bev: ``(B, C, H, W)``.

        Raises:
            ValueError: for a map of another size than the anchors were laid out for.
        """
        if bev.shape[2:] != self.anchors.shape[:2]:
            raise ValueError(
                f"the head's anchors need a map of {tuple(self.anchors.shape[:2])}, got {tuple(bev.shape[2:])}; "
                "make POINT_CLOUD_RANGE a multiple of voxel size x feature_map_stride"
            )
        return HeadOutput(
            cls_logits=self._per_anchor(self.conv_cls(bev)),
            deltas=self._per_anchor(self.conv_box(bev)),
            dir_logits=None if self.conv_dir_cls is None else self._per_anchor(self.conv_dir_cls(bev)),
        )

    def _per_anchor(self, maps: Tensor) -> Tensor:
        """Bring ``(B, N * K, H, W)`` into ``(B, H * W * N, K)``, float32 even under autocast."""
        rows = maps.permute(0, 2, 3, 1)
        return rows.reshape(len(maps), self.anchors.shape[:3].numel(), -1).float()

    def decode(self, output: HeadOutput) -> DensePredictions:
        """Make boxes of the raw maps; no gradient flows through the boxes.

        Args:
            output: of :meth:`forward`.

        Returns:
            Predictions of the A anchors; the logits keep their gradient.
        """
        boxes = self.coder.decode(output.deltas.detach(), self.anchors.view(-1, 7))
        if output.dir_logits is not None:
            config, bins = self.config, output.dir_logits.detach().argmax(dim=-1)
            boxes[..., 6] = losses.heading_in_bin(
                boxes[..., 6], bins, config.dir_offset, config.dir_limit_offset, config.num_dir_bins
            )
        return DensePredictions(output.cls_logits, boxes, output.iou_logits)

    def box_codes(self, output: HeadOutput) -> BoxCodes:
        """Give the residuals ``(B, A, 1, 7)`` and the directions' logits."""
        return BoxCodes(output.deltas[:, :, None], (self.class_names,), output.dir_logits)

    def detect(self, output: HeadOutput, config: PostProcessingConfig) -> list[Detections]:
        """Apply the IoU refinement, the score threshold and NMS to what was decoded."""
        return detect(self.decode(output), config)

    def losses(self, output: HeadOutput, batch: Batch) -> dict[str, Tensor]:
        """Compare the raw maps with the objects of a batch.

        Args:
            output: of :meth:`forward`.
            batch: whose objects to look for; frames without any are all background.

        Returns:
            ``cls_loss``, ``loc_loss`` and, with a direction classifier, ``dir_loss``: weighted scalars.
        """
        with torch.autocast(output.deltas.device.type, enabled=False):
            targets = self.assign_targets(batch)
            weights = self.config.loss_config.loss_weights
            cls_loss = losses.classification_loss(output.cls_logits, targets.labels, targets.num_positives)
            return {"cls_loss": weights.cls_weight * cls_loss, **self._box_losses(output, batch, targets)}

    def assign_targets(self, batch: Batch) -> AnchorTargets:
        """Match the anchors with the objects of a batch; a class-agnostic head calls every object 0."""
        targets = self.target_assigner.assign(self.anchors, batch.gt_boxes, batch.gt_labels)
        return AnchorTargets(targets.labels.clamp(max=self.num_classes - 1), targets.gt_indices)

    def _box_losses(self, output: HeadOutput, batch: Batch, targets: AnchorTargets) -> dict[str, Tensor]:
        weights, config = self.config.loss_config.loss_weights, self.config
        frames, sites = targets.positives
        gt_boxes = batch.gt_boxes[frames, targets.gt_indices[frames, sites]]
        deltas = self.coder.encode(gt_boxes, self.anchors.view(-1, 7)[sites])
        loc_loss = losses.localization_loss(output.deltas[frames, sites], deltas, self.code_weights)
        found = {"loc_loss": weights.loc_weight * losses.mean_over_frames(loc_loss, frames, targets.num_positives)}
        if output.dir_logits is not None:
            bins = losses.direction_bins(gt_boxes[:, 6], config.dir_offset, config.num_dir_bins)
            dir_loss = nn.functional.cross_entropy(output.dir_logits[frames, sites], bins, reduction="none")
            found["dir_loss"] = weights.dir_weight * losses.mean_over_frames(dir_loss, frames, targets.num_positives)
        return found


@DENSE_HEADS.register("AnchorHeadSingleIoU")
class AnchorHeadSingleIoU(AnchorHeadSingle):
    """An anchor head that also predicts, for every anchor and class, how well it overlaps an object.

    Args:
        config: the section's keys.
        in_channels: channels of the map.
        class_names: classes by label.
        geometry: the range that the anchors cover.

    Source: CaKDP (Zhang et al., CVPR 2024), section 3.4.
    """

    Config = AnchorHeadIoUConfig
    has_iou_branch = True
    config: AnchorHeadIoUConfig

    def __init__(
        self, config: AnchorHeadIoUConfig, in_channels: int, class_names: Sequence[str], geometry: LidarGeometry
    ) -> None:
        super().__init__(config, in_channels, class_names, geometry)
        if config.class_agnostic:
            raise ConfigError("an IoU branch predicts one IoU a class; set CLASS_AGNOSTIC: False")
        self.conv_iou = nn.Conv2d(in_channels, self.num_per_cell * self.num_classes, 1)
        refinement.start_from_prior(self.conv_iou)

    def forward(self, bev: Tensor) -> HeadOutput:
        """Read the maps ``(B, C, H, W)``, the IoU branch's included."""
        output = super().forward(bev)
        return HeadOutput(output.cls_logits, output.deltas, output.dir_logits, self._per_anchor(self.conv_iou(bev)))

    def losses(self, output: HeadOutput, batch: Batch) -> dict[str, Tensor]:
        """Compare the raw maps with the objects of a batch; ``iou_loss`` (Eq. 6) joins the others."""
        found = super().losses(output, batch)
        with torch.autocast(output.deltas.device.type, enabled=False):
            found["iou_loss"] = self._iou_loss(output, batch)
        return found

    def _iou_loss(self, output: HeadOutput, batch: Batch) -> Tensor:
        if output.iou_logits is None:
            raise ValueError("the IoU loss needs iou_logits; give the output of this head's own forward")
        return refinement.anchor_branch_loss(
            self.config.iou_head,
            output.iou_logits,
            self.anchors.view(-1, 7),
            lambda: self.decode(output).boxes,
            batch.gt_boxes,
            batch.gt_labels,
        )
