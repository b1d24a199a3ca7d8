"""Voxel R-CNN: a second stage that looks at the voxels of the 3D backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cakdp_ext.detectors.backbones_3d import BackboneFeatures
from cakdp_ext.detectors.first_stage import FirstStageOutput
from cakdp_ext.detectors.registry import DETECTORS
from cakdp_ext.detectors.two_stage import TwoStageDetector
from cakdp_ext.types import Batch


@DETECTORS.register("VoxelRCNN")
class VoxelRCNN(TwoStageDetector):
    """Judges proposals by the features of the voxels in and around them.

    Source: Voxel R-CNN (Deng et al., AAAI 2021).
    """

    View = BackboneFeatures

    def build_view(self, model_cfg: Mapping[str, Any]) -> Mapping[str, int]:
        """Give the widths of the 3D backbone's scales; there is nothing to build."""
        return {name: width for name, width in self.backbone_3d.channels.items() if name != "encoded"}

    def look(self, first: FirstStageOutput, batch: Batch) -> BackboneFeatures:
        """Give the scales of the 3D backbone."""
        return first.backbone
