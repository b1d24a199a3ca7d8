"""Part-A2: a second stage that looks at where in an object the points of a proposal lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.first_stage import FirstStageOutput
from cakdp_ext.detectors.part_head import PointIntraPartOffsetHead
from cakdp_ext.detectors.registry import DETECTORS, POINT_HEADS
from cakdp_ext.detectors.roi_heads.part_a2_head import PartScene
from cakdp_ext.detectors.two_stage import TwoStageDetector
from cakdp_ext.types import Batch


@DETECTORS.register("PartA2Net")
class PartA2Net(TwoStageDetector):
    """Judges proposals by the features and the part locations of the points in them.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020).
    """

    sections: ClassVar[frozenset[str]] = TwoStageDetector.sections | {"POINT_HEAD"}
    View = PartScene
    point_head: PointIntraPartOffsetHead

    def build_view(self, model_cfg: Mapping[str, Any]) -> Mapping[str, int]:
        """Build the point head.

        Args:
            model_cfg: MODEL's mapping.

        Returns:
            The width of a point's features.

        Raises:
            ConfigError: for a 3D backbone without point features, or a point head that locates no parts.
        """
        width = getattr(self.backbone_3d, "num_point_features", None)
        if width is None:
            raise ConfigError(
                f"{type(self.backbone_3d).__name__} gives no point features, which PartA2Net needs; make "
                "MODEL.BACKBONE_3D.NAME UNetV2"
            )
        self.point_head = POINT_HEADS.build(model_cfg, width, self.class_names)
        if not isinstance(self.point_head, PointIntraPartOffsetHead):
            raise ConfigError(
                f"{type(self.point_head).__name__} locates no parts, which PartA2Net needs; make MODEL.POINT_HEAD.NAME "
                "PointIntraPartOffsetHead"
            )
        return {"points": width}

    def look(self, first: FirstStageOutput, batch: Batch) -> PartScene:
        """Give the voxels' centres as points, and what the point head says of them."""
        points: Any = first.backbone.points
        return PartScene(points, self.point_head(points))

    def view_losses(self, view: PartScene, batch: Batch) -> dict[str, Tensor]:
        """Give ``point_cls_loss`` and ``point_part_loss``."""
        return self.point_head.losses(view.said, view.points, batch)
