"""Detectors of one stage: those that are scored, pruned and distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cakdp_ext.config import from_node
from cakdp_ext.detectors.first_stage import FirstStage
from cakdp_ext.detectors.registry import DETECTORS, upper_keys
from cakdp_ext.types import Batch, Detections, LidarGeometry, TrainingOutput


class OneStageDetector(FirstStage):
    """A first stage whose predictions are the detections.

    What distillation and pruning add is told by MODEL.DISTILL and MODEL.PRUNING, which the engine reads.

    Args:
        model_cfg: MODEL's mapping; copied.
        class_names: classes by label.
        geometry: range and voxel grid of the points.

    Raises:
        ConfigError: as :class:`FirstStage`, and for a POST_PROCESSING that the dense head has no use for.
    """

    def __init__(self, model_cfg: Mapping[str, Any], class_names: Sequence[str], geometry: LidarGeometry) -> None:
        super().__init__(model_cfg, class_names, geometry)
        self.post_processing = from_node(
            self.dense_head.PostProcessing, upper_keys(model_cfg.get("POST_PROCESSING")), "MODEL.POST_PROCESSING"
        )
        refinement = self.post_processing.iou_refinement
        if refinement is not None:
            refinement.require_branch(self.dense_head.has_iou_branch, type(self.dense_head).__name__)

    def forward(self, batch: Batch) -> TrainingOutput | list[Detections]:
        """Detect objects.

        Args:
            batch: on this module's device.

        Returns:
            In training mode the losses and the dense predictions, else the detections of each frame.
        """
        output = self.run_first_stage(batch).head
        if self.training:
            return TrainingOutput(self.dense_head.losses(output, batch), self.dense_head.decode(output))
        return self.dense_head.detect(output, self.post_processing)


@DETECTORS.register("SECONDNet", "SECONDNetCaKDP")
class SECONDNet(OneStageDetector):
    """Anchors on the map of a sparse voxel backbone; under either name the same detector.

    Source: SECOND (Yan et al., Sensors 2018).
    """
