"""SECOND: the one-stage detector that is scored, pruned and distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cakdp_ext.config import from_node
from cakdp_ext.detectors.first_stage import FirstStage
from cakdp_ext.detectors.post_processing import PostProcessingConfig, detect
from cakdp_ext.detectors.registry import DETECTORS, upper_keys
from cakdp_ext.types import Batch, DensePredictions, Detections, LidarGeometry, TrainingOutput


@DETECTORS.register("SECONDNet", "SECONDNetCaKDP")
class SECONDNet(FirstStage):
    """A first stage whose predictions are the detections.

    Under either name it is the same detector: what distillation and pruning add is told by MODEL.DISTILL and
    MODEL.PRUNING, which the engine reads.

    Args:
        model_cfg: MODEL's mapping; copied.
        class_names: classes by label.
        geometry: range and voxel grid of the points.

    Source: SECOND (Yan et al., Sensors 2018).
    """

    def __init__(self, model_cfg: Mapping[str, Any], class_names: Sequence[str], geometry: LidarGeometry) -> None:
        super().__init__(model_cfg, class_names, geometry)
        self.post_processing = from_node(
            PostProcessingConfig, upper_keys(model_cfg.get("POST_PROCESSING")), "MODEL.POST_PROCESSING"
        )
        refinement = self.post_processing.iou_refinement
        if refinement is not None:
            refinement.require_branch(hasattr(self.dense_head, "conv_iou"), type(self.dense_head).__name__)

    def forward(self, batch: Batch) -> TrainingOutput | list[Detections]:
        """Detect objects.

        Args:
            batch: on this module's device.

        Returns:
            In training mode the losses and the dense predictions, else the detections of each frame.
        """
        output = self.run_first_stage(batch)
        predictions = self.dense_head.decode(output.head)
        if self.training:
            return TrainingOutput(self.dense_head.losses(output.head, batch), predictions)
        return self.postprocess(predictions)

    def postprocess(self, predictions: DensePredictions) -> list[Detections]:
        """Apply the IoU refinement, the score threshold and NMS."""
        return detect(predictions, self.post_processing)
