"""PV-RCNN and PV-RCNN++: a second stage that looks at keypoints which know what lies around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.first_stage import FirstStageOutput
from cakdp_ext.detectors.keypoints import KeypointSources, VoxelSetAbstraction
from cakdp_ext.detectors.point_head import PointHeadSimple
from cakdp_ext.detectors.registry import DETECTORS, POINT_ENCODERS, POINT_HEADS, upper_keys
from cakdp_ext.detectors.roi_heads.pv_rcnn_head import KeypointScene
from cakdp_ext.detectors.two_stage import TwoStageDetector
from cakdp_ext.types import Batch


@DETECTORS.register("PVRCNNPlusPlus")
class PVRCNNPlusPlus(TwoStageDetector):
    """Judges proposals by keypoints, which may lie around the proposals that are judged.

    In the order of OpenPCDet's checkpoints, PFE stands in front of BACKBONE_2D.

    Source: PV-RCNN++ (Shi et al., IJCV 2023).
    """

    sections: ClassVar[frozenset[str]] = TwoStageDetector.sections | {"PFE", "POINT_HEAD"}
    View = KeypointScene
    pfe: VoxelSetAbstraction
    point_head: PointHeadSimple

    def build_point_features(self, model_cfg: Mapping[str, Any]) -> None:
        """Build the keypoints' module.

        Args:
            model_cfg: MODEL's mapping.
        """
        widths = {name: width for name, width in self.backbone_3d.channels.items() if name != "encoded"}
        widths["bev"] = self.map_to_bev_module.num_bev_features
        widths["raw_points"] = self.geometry.num_point_features - 3
        self.pfe = POINT_ENCODERS.build(model_cfg, widths, self.backbone_3d.strides, self.geometry)

    def build_view(self, model_cfg: Mapping[str, Any]) -> Mapping[str, int]:
        """Build the point head.

        Args:
            model_cfg: MODEL's mapping.

        Returns:
            The width of a keypoint's features.
        """
        width = self.pfe.num_gathered_features if _sees_all(model_cfg) else self.pfe.num_point_features
        self.point_head = POINT_HEADS.build(model_cfg, width, self.class_names)
        return {"points": self.pfe.num_point_features}

    def look(self, first: FirstStageOutput, batch: Batch) -> KeypointSources | KeypointScene:
        """Give the keypoints, or all that they need where they depend on rois."""
        sources = self.pfe.sources(batch, first.backbone, first.bev_map)
        return sources if self.pfe.needs_rois else self._describe(sources)

    def focus(self, seen: KeypointSources | KeypointScene, rois: Tensor) -> KeypointScene:
        """Give the keypoints for rois ``(B, K, 7)``."""
        return self._describe(seen, rois.float()) if isinstance(seen, KeypointSources) else seen

    def _describe(self, sources: KeypointSources, rois: Tensor | None = None) -> KeypointScene:
        keypoints = self.pfe(sources, rois)
        asked = keypoints.gathered if _sees_all(self.model_cfg) else keypoints.fused
        return KeypointScene(keypoints.fused, self.point_head(asked), asked)

    def view_losses(self, view: KeypointScene, batch: Batch) -> dict[str, Tensor]:
        """Give the losses of the point head."""
        return self.point_head.losses(view.said, view.asked, batch)


@DETECTORS.register("PVRCNN")
class PVRCNN(PVRCNNPlusPlus):
    """Judges proposals by keypoints that stand for the whole scene, whatever is proposed.

    Raises:
        ConfigError: also for a PFE that depends on rois.

    Source: PV-RCNN (Shi et al., CVPR 2020).
    """

    def build_point_features(self, model_cfg: Mapping[str, Any]) -> None:
        """Build the keypoints' module.

        Args:
            model_cfg: MODEL's mapping.
        """
        super().build_point_features(model_cfg)
        if self.pfe.needs_rois:
            raise ConfigError(
                "MODEL.PFE of a PVRCNN cannot depend on rois; make MODEL.NAME PVRCNNPlusPlus, or SAMPLE_METHOD FPS "
                "without FILTER_NEIGHBOR_WITH_ROI"
            )


def _sees_all(model_cfg: Mapping[str, Any]) -> bool:
    """Tell whether the point head judges keypoints by all that they gathered."""
    section = model_cfg.get("POINT_HEAD") or {}
    return bool(upper_keys(section).get("USE_POINT_FEATURES_BEFORE_FUSION", False))
