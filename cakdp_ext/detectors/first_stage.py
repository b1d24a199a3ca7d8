"""What every detector begins with: points to voxels to bird's-eye view to a dense head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import EncodedScene
from cakdp_ext.detectors.backbones_3d import BackboneFeatures
from cakdp_ext.detectors.post_processing import CommonPostProcessing
from cakdp_ext.detectors.registry import BACKBONES_2D, BACKBONES_3D, DENSE_HEADS, MAPS_TO_BEV, VOXEL_FEATURES
from cakdp_ext.taps import ENCODED, BevFeatures, BoxCodes, SparseFeatures, Taps, VoxelFeatures
from cakdp_ext.types import (
    PREDICTIONS,
    Batch,
    DensePredictions,
    Detections,
    LidarGeometry,
    PredictionSites,
    Role,
    Roles,
)


class FirstStageOutput:
    """What the first stage makes of a batch, each part computed when it is first asked for.

    Args:
        stage: whose modules compute.
        batch: on their device; frames without voxels are allowed.
    """

    def __init__(self, stage: FirstStage, batch: Batch) -> None:
        self.stage, self.batch = stage, batch

    @cached_property
    def voxels(self) -> Tensor:
        """``(V, F)`` features of the voxels."""
        features: Tensor = self.stage.vfe(self.batch.voxels, self.batch.voxel_num_points)
        return features

    @cached_property
    def backbone(self) -> BackboneFeatures:
        """The 3D backbone's scales."""
        scales: BackboneFeatures = self.stage.backbone_3d(self.voxels, self.batch.voxel_coords, self.batch.batch_size)
        return scales

    @cached_property
    def bev_map(self) -> Tensor:
        """``(B, C, H, W)`` that the 2D backbone reads."""
        bev: Tensor = self.stage.map_to_bev_module(self.backbone.encoded)
        return bev

    @cached_property
    def bev_features(self) -> Tensor:
        """``(B, C, H, W)`` of the 2D backbone."""
        bev: Tensor = self.stage.backbone_2d(self.bev_map)
        return bev

    @cached_property
    def head(self) -> Any:
        """Raw maps of the dense head, in its own form."""
        return self.stage.dense_head(self.bev_features)

    @cached_property
    def predictions(self) -> DensePredictions:
        """What the dense head says at each of its sites."""
        found: DensePredictions = self.stage.dense_head.decode(self.head)
        return found

    def taps(self, roles: Roles) -> Taps:
        """Show what is asked for; what is not, and nothing that is needs, is not computed."""
        given: dict[Role, Any] = {
            role: getattr(self, f"_{role.value}") for role in roles if role is not Role.SECOND_STAGE
        }
        return Taps(self.stage.sites, given)

    @property
    def _voxels(self) -> VoxelFeatures:
        return VoxelFeatures(self.voxels, self.batch.voxel_coords.long(), self.batch.voxel_num_points.long())

    @property
    def _sparse(self) -> dict[str, SparseFeatures]:
        scales = {**self.backbone.multi_scale, ENCODED: self.backbone.encoded}
        return {name: SparseFeatures.of(scale, self.backbone.strides[name]) for name, scale in scales.items()}

    @property
    def _bev(self) -> BevFeatures:
        return BevFeatures(self.bev_map, self.bev_features)

    @property
    def _dense(self) -> DensePredictions:
        return self.predictions

    @property
    def _boxes(self) -> BoxCodes:
        codes: BoxCodes = self.stage.dense_head.box_codes(self.head)
        return codes


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

    def box_codes(self, output: Any) -> BoxCodes:
        """Give what it regresses at each of its sites, raw and with gradient."""
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
        "NAME VFE BACKBONE_3D MAP_TO_BEV BACKBONE_2D DENSE_HEAD POST_PROCESSING DISTILL PRUNING WIDTH".split()
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
        self.build_point_features(model_cfg)
        self.backbone_2d = BACKBONES_2D.build(model_cfg, self.map_to_bev_module.num_bev_features)
        self.dense_head = DENSE_HEADS.build(model_cfg, self.backbone_2d.num_bev_features, self.class_names, geometry)
        self._check_stride()

    def build_point_features(self, model_cfg: Mapping[str, Any]) -> None:
        """Build what stands between MAP_TO_BEV and BACKBONE_2D in a checkpoint; here nothing.

        Args:
            model_cfg: MODEL's mapping.
        """

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
        output = FirstStageOutput(self, batch)
        assert output.head is not None  # computed here, whatever is asked for later
        return output

    def encode(self, batch: Batch, roles: Roles = PREDICTIONS) -> EncodedScene:
        """Run the first stage as far as the roles need it; no proposals, no NMS, no second stage.

        Args:
            batch: on this module's device.
            roles: what to show.
        """
        first = FirstStageOutput(self, batch)
        return EncodedScene(first.taps(roles))

    def predict_dense(self, batch: Batch) -> DensePredictions:
        """Give the raw predictions without targets, losses, mask or NMS."""
        return self.run_first_stage(batch).predictions
