"""Voxel R-CNN: the two-stage detector that teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.detectors.first_stage import FirstStage
from cakdp_ext.detectors.post_processing import PostProcessingConfig, select_labelled
from cakdp_ext.detectors.registry import DETECTORS, ROI_HEADS, upper_keys
from cakdp_ext.detectors.roi_heads import VoxelRCNNHead
from cakdp_ext.types import Batch, Detections, EncodedScene, LidarGeometry, TrainingOutput


@dataclass(frozen=True)
class RoiPredictions:
    """What the second stage made of the proposals of B frames.

    Attributes:
        cls_logits: ``(B, K, 1)`` raw.
        boxes: ``(B, K, 7)`` refined.
        labels: ``(B, K)`` int64 class that the first stage gave.
        is_valid: ``(B, K)`` bool, False where padded.
    """

    cls_logits: Tensor
    boxes: Tensor
    labels: Tensor
    is_valid: Tensor


@DETECTORS.register("VoxelRCNN")
class VoxelRCNN(FirstStage):
    """A first stage that proposes and a second stage that judges and refines what was proposed.

    Args:
        model_cfg: MODEL's mapping; copied.
        class_names: classes by label.
        geometry: range and voxel grid of the points.

    Source: Voxel R-CNN (Deng et al., AAAI 2021).
    """

    sections: ClassVar[frozenset[str]] = FirstStage.sections | {"ROI_HEAD"}
    post_processing: PostProcessingConfig

    def __init__(self, model_cfg: Mapping[str, Any], class_names: Sequence[str], geometry: LidarGeometry) -> None:
        super().__init__(model_cfg, class_names, geometry)
        scales = {name: width for name, width in self.backbone_3d.channels.items() if name != "encoded"}
        self.roi_head: VoxelRCNNHead = ROI_HEADS.build(model_cfg, scales, geometry)
        self.post_processing = from_node(
            PostProcessingConfig, upper_keys(model_cfg.get("POST_PROCESSING")), "MODEL.POST_PROCESSING"
        )
        refinement = self.post_processing.iou_refinement
        if self.post_processing.nms_config.multi_classes_nms or (refinement and refinement.mode != "none"):
            raise ConfigError(
                "MODEL.POST_PROCESSING of a VoxelRCNN knows neither MULTI_CLASSES_NMS nor IOU_REFINEMENT: its "
                "second stage gives one score a box"
            )

    def forward(self, batch: Batch) -> TrainingOutput | list[Detections]:
        """Detect objects.

        Args:
            batch: on this module's device.

        Returns:
            In training mode the losses of both stages, else the detections of each frame.
        """
        first = self.run_first_stage(batch)
        proposals = self.roi_head.propose(self.dense_head.decode(first.head))
        if self.training:
            targets = self.roi_head.sample(proposals, batch)
            losses = self.roi_head.losses(self.roi_head(first.backbone, targets.rois), targets)
            return TrainingOutput({**self.dense_head.losses(first.head, batch), **losses})
        output = self.roi_head(first.backbone, proposals.rois)
        boxes = self.roi_head.decode(output, proposals.rois)
        return self.postprocess(RoiPredictions(output.cls_logits, boxes, proposals.labels, proposals.is_valid))

    @torch.no_grad()
    def postprocess(self, predictions: RoiPredictions) -> list[Detections]:
        """Apply the score threshold and NMS, whatever the classes; padding is never detected."""
        scores = predictions.cls_logits.sigmoid().amax(dim=-1)
        frames = zip(predictions.boxes, scores, predictions.labels, predictions.is_valid, strict=True)
        return [select_labelled(*frame, self.post_processing) for frame in frames]

    def encode(self, batch: Batch) -> EncodedScene:
        """Run the first stage; no proposals, no NMS.

        Args:
            batch: on this module's device.
        """
        first = self.run_first_stage(batch)
        return EncodedScene(self.dense_head.decode(first.head), first.backbone)

    def refine(self, encoded: EncodedScene, rois: Tensor) -> Tensor:
        """Judge boxes that this detector need not have proposed.

        Args:
            encoded: of :meth:`encode`, B frames.
            rois: ``(B, K, 7)`` metres and radians; rows of zeros, as padding, do no harm.

        Returns:
            ``(B, K, 1)`` logits, in the order of the rois; ``(B, 0, 1)`` for none.

        Raises:
            RuntimeError: in training mode, where dropout and batch norm would make the logits depend on each other.
            ValueError: for rois of another shape, or of another number of frames than were encoded.
        """
        if self.training:
            raise RuntimeError("refine judges in eval mode only; call .eval() on the teacher first")
        num_frames = len(encoded.predictions.boxes)
        if rois.dim() != 3 or rois.shape[0] != num_frames or rois.shape[2] != 7:
            raise ValueError(
                f"rois must have shape ({num_frames}, K, 7) like the encoded frames, got {tuple(rois.shape)}"
            )
        return self.roi_head(encoded.features, rois).cls_logits
