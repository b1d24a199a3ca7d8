"""Detectors of one stage: those that are scored, pruned and distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.contract import TrainingOutput
from cakdp_ext.detectors.first_stage import FirstStage
from cakdp_ext.detectors.registry import DETECTORS, upper_keys
from cakdp_ext.types import Batch, Detections, LidarGeometry


class OneStageDetector(FirstStage):
    """A first stage whose predictions are the detections.

    What distillation and pruning add is told by MODEL.DISTILL and MODEL.PRUNING, which the engine reads.

    Args:
        model_cfg: MODEL's mapping; copied.
        class_names: classes by label.
        geometry: range and voxel grid of the points.

    Raises:
        ConfigError: as :class:`FirstStage`, for a dense head of the other kind, and for a POST_PROCESSING that the head
            has no use for.
    """

    has_anchors: ClassVar[bool]

    def __init__(self, model_cfg: Mapping[str, Any], class_names: Sequence[str], geometry: LidarGeometry) -> None:
        super().__init__(model_cfg, class_names, geometry)
        self._check_head()
        self.post_processing = from_node(
            self.dense_head.PostProcessing, upper_keys(model_cfg.get("POST_PROCESSING")), "MODEL.POST_PROCESSING"
        )
        refinement = self.post_processing.iou_refinement
        if refinement is not None:
            refinement.require_branch(self.dense_head.has_iou_branch, type(self.dense_head).__name__)

    def _check_head(self) -> None:
        if (self.sites.anchors is not None) != self.has_anchors:
            kind, other = ("AnchorHeadSingle", "CenterPoint") if self.has_anchors else ("CenterHead", "SECONDNet")
            raise ConfigError(
                f"{type(self).__name__} cannot read {type(self.dense_head).__name__}; use {kind} or {kind}IoU, or "
                f"MODEL.NAME: {other}"
            )

    def forward(self, batch: Batch) -> TrainingOutput | list[Detections]:
        """Detect objects.

        Args:
            batch: on this module's device.

        Returns:
            In training mode the losses and the dense predictions, else the detections of each frame.
        """
        first = self.run_first_stage(batch)
        if self.training:
            losses = self.dense_head.losses(first.head, batch)
            return TrainingOutput(losses, first.predictions, first.taps)
        return self.dense_head.detect(first.head, self.post_processing)


@DETECTORS.register("SECONDNet", "SECONDNetCaKDP")
class SECONDNet(OneStageDetector):
    """Anchors on the map of a sparse voxel backbone; under either name the same detector.

    Source: SECOND (Yan et al., Sensors 2018).
    """

    has_anchors = True


@DETECTORS.register("CenterPoint", "CenterPointCaKDP")
class CenterPoint(OneStageDetector):
    """Heat maps of centres on the map of a sparse voxel backbone; under either name the same detector.

    Its head has the thresholds and the NMS: they stand in DENSE_HEAD.POST_PROCESSING.

    Source: CenterPoint (Yin et al., CVPR 2021), its first stage.
    """

    has_anchors = False

    def __init__(self, model_cfg: Mapping[str, Any], class_names: Sequence[str], geometry: LidarGeometry) -> None:
        stray = {"SCORE_THRESH", "NMS_CONFIG"} & set(upper_keys(model_cfg.get("POST_PROCESSING") or {}))
        if stray:
            raise ConfigError(
                f"{', '.join(sorted(stray))} of MODEL.POST_PROCESSING: boxes are chosen in CenterPoint's head; move "
                "it to MODEL.DENSE_HEAD.POST_PROCESSING"
            )
        super().__init__(model_cfg, class_names, geometry)
