"""What every detector begins with: points to voxels to bird's-eye view to a dense head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.backbones_3d import BackboneFeatures
from cakdp_ext.detectors.post_processing import CommonPostProcessing
from cakdp_ext.detectors.registry import BACKBONES_2D, BACKBONES_3D, DENSE_HEADS, MAPS_TO_BEV, VOXEL_FEATURES
from cakdp_ext.types import Batch, DensePredictions, Detections, LidarGeometry, PredictionSites


@dataclass(frozen=True)
class FirstStageOutput:
    """Everything that the first stage made of a batch.

    Attributes:
        backbone: the 3D backbone's scales.
        bev_features: ``(B, C, H, W)`` of the 2D backbone.
        head: raw maps of the dense head, in its own form.
    """

    backbone: BackboneFeatures
    bev_features: Tensor
    head: Any


class DenseHead(Protocol):
    """What a detector asks of its dense head; ``output`` is whatever the head made of the map.

    Attributes:
        PostProcessing: the keys of MODEL.POST_PROCESSING that it takes.
        stride: of its map with respect to the voxel grid.
        has_iou_branch: whether its predictions have IoU logits.
    """

    PostProcessing: type[CommonPostProcessing]
    stride: int
    has_iou_branch: bool

    @property
    def sites(self) -> PredictionSites:
        """Where its predictions sit; the same tensors from call to call."""
        ...

    def __call__(self, bev: Tensor) -> Any:
        """Read the raw maps off ``(B, C, H, W)`` features."""
        ...

    def decode(self, output: Any) -> DensePredictions:
        """Say what it predicts at each of its sites; boxes without gradient."""
        ...

    def losses(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Give its losses by name, weighted scalars."""
        ...

    def detect(self, output: Any, config: Any) -> list[Detections]:
        """Turn the raw maps into detections of each frame."""
        ...


class FirstStage(nn.Module):
    """The modules of a detector up to its dense head, built from MODEL's sections under OpenPCDet's names.

    ``global_step`` belongs to the checkpoint's contract; whoever trains advances it.

    Args:
        model_cfg: MODEL's mapping; copied, so that nothing here changes the caller's.
        class_names: classes by label.
        geometry: range and voxel grid of the points.

    Raises:
        ConfigError: for sections or keys that are unknown, missing or do not fit each other.
    """

    sections: ClassVar[frozenset[str]] = frozenset(
        "NAME VFE BACKBONE_3D MAP_TO_BEV BACKBONE_2D DENSE_HEAD POST_PROCESSING DISTILL PRUNING".split()
    )
    global_step: Tensor
    post_processing: CommonPostProcessing
    dense_head: Any

    def __init__(self, model_cfg: Mapping[str, Any], class_names: Sequence[str], geometry: LidarGeometry) -> None:
        super().__init__()
        self._refuse_unknown_sections(model_cfg)
        self.model_cfg = deepcopy(model_cfg)
        self.class_names = tuple(class_names)
        self.geometry = geometry
        self.register_buffer("global_step", torch.zeros(1, dtype=torch.int64))
        self.vfe = VOXEL_FEATURES.build(model_cfg, geometry)
        self.backbone_3d = BACKBONES_3D.build(model_cfg, self.vfe.num_features, geometry)
        channels, heights = self.backbone_3d.channels["encoded"], self.backbone_3d.num_heights
        self.map_to_bev_module = MAPS_TO_BEV.build(model_cfg, channels, heights)
        self.backbone_2d = BACKBONES_2D.build(model_cfg, self.map_to_bev_module.num_bev_features)
        self.dense_head = DENSE_HEADS.build(model_cfg, self.backbone_2d.num_bev_features, self.class_names, geometry)
        self._check_stride()

    def _refuse_unknown_sections(self, model_cfg: Mapping[str, Any]) -> None:
        unknown = [key for key in model_cfg if key not in self.sections]
        if unknown:
            raise ConfigError(
                f"{type(self).__name__} has no use for MODEL.{', '.join(unknown)}; "
                f"its sections: {', '.join(sorted(self.sections))}"
            )

    def _check_stride(self) -> None:
        stride = self.backbone_3d.stride * self.backbone_2d.stride
        if stride != self.dense_head.stride:
            raise ConfigError(
                f"feature_map_stride of the dense head is {self.dense_head.stride}, but the backbones' map has "
                f"stride {stride:g}; change one of the two"
            )

    @property
    def sites(self) -> PredictionSites:
        """Where the dense head's predictions sit."""
        return self.dense_head.sites

    @property
    def recall_thresholds(self) -> tuple[float, ...]:
        """IoUs at which recalled objects are counted."""
        return self.post_processing.recall_thresh_list

    def run_first_stage(self, batch: Batch) -> FirstStageOutput:
        """Run everything up to the dense head's raw maps.

        Args:
            batch: on this module's device; frames without voxels are allowed.
        """
        features = self.vfe(batch.voxels, batch.voxel_num_points)
        backbone = self.backbone_3d(features, batch.voxel_coords, batch.batch_size)
        bev_features = self.backbone_2d(self.map_to_bev_module(backbone.encoded))
        return FirstStageOutput(backbone, bev_features, self.dense_head(bev_features))

    def predict_dense(self, batch: Batch) -> DensePredictions:
        """Give the raw predictions without targets, losses, mask or NMS."""
        return self.dense_head.decode(self.run_first_stage(batch).head)
