"""Which points belong to objects? The point head of PV-RCNN, and what all point heads share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.detectors.losses import classification_loss
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.point_targets import PointTargets, assign_points
from cakdp_ext.detectors.registry import POINT_HEADS
from cakdp_ext.types import Batch
from cakdp_ext.voxel_norm import VoxelBatchNorm1d


@dataclass(frozen=True)
class PointTargetConfig:
    """Which points count as objects (TARGET_CONFIG).

    Attributes:
        gt_extra_width: metres that are added to the sizes of an object; points that only then lie in it are ignored.
    """

    gt_extra_width: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.gt_extra_width) != 3 or min(self.gt_extra_width) < 0:
            raise ValueError(f"GT_EXTRA_WIDTH must be three widths of at least 0, got {list(self.gt_extra_width)}")


@dataclass(frozen=True)
class PointLossWeights:
    """Weights of the point head's losses (LOSS_WEIGHTS)."""

    point_cls_weight: float = 1.0


@dataclass(frozen=True)
class PointLossConfig:
    """What the point head is trained with (LOSS_CONFIG).

    Attributes:
        loss_weights: see there.
        loss_reg: changes nothing; files for OpenPCDet have it.
    """

    loss_weights: PointLossWeights
    loss_reg: str = "smooth-l1"


@dataclass(frozen=True)
class PointHeadSimpleConfig:
    """A POINT_HEAD section of NAME PointHeadSimple.

    Attributes:
        cls_fc: widths of the hidden layers.
        target_config: which points count as objects.
        loss_config: what the head is trained with.
        class_agnostic: whether one logit says "object", or every class has its own.
        use_point_features_before_fusion: judge keypoints by all that they gathered.
    """

    cls_fc: tuple[int, ...]
    target_config: PointTargetConfig
    loss_config: PointLossConfig
    class_agnostic: bool = False
    use_point_features_before_fusion: bool = False


@dataclass(frozen=True)
class PointPredictions:
    """What a point head says of N points, float32.

    Attributes:
        cls_logits: ``(N, C)`` raw; C is 1 for a class-agnostic head.
    """

    cls_logits: Tensor

    @property
    def scores(self) -> Tensor:
        """How surely each point belongs to an object: ``(N,)`` in [0, 1]."""
        return self.cls_logits.sigmoid().amax(dim=1)


@POINT_HEADS.register("PointHeadSimple")
class PointHeadSimple(nn.Module):
    """Tells points of objects from background.

    Args:
        config: the section's keys.
        in_channels: features of a point.
        class_names: classes by label.

    Source: PV-RCNN (Shi et al., CVPR 2020), section 3.3, "Predicted Keypoint Weighting", with OpenPCDet's tensor names.
    """

    Config: type = PointHeadSimpleConfig

    def __init__(self, config: Any, in_channels: int, class_names: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.cls_layers = point_layers(in_channels, config.cls_fc, 1 if config.class_agnostic else len(class_names))

    def forward(self, points: PointFeatures) -> PointPredictions:
        """Judge points.

        Args:
            points: N of all frames; N may be 0.
        """
        return PointPredictions(self.cls_layers(points.features).float())

    def assign_targets(self, points: PointFeatures, batch: Batch) -> PointTargets:
        """Say which object of the batch, if any, every point belongs to."""
        counts, extra_width = points.counts(batch.batch_size), self.config.target_config.gt_extra_width
        return assign_points(points.xyz, counts, batch.gt_boxes, batch.gt_labels, extra_width)

    def losses(self, output: PointPredictions, points: PointFeatures, batch: Batch) -> dict[str, Tensor]:
        """Compare what was said of the points with the objects of a batch.

        Args:
            output: of :meth:`forward`.
            points: that it was asked about.
            batch: whose objects to look for.

        Returns:
            ``point_cls_loss``, a weighted scalar.
        """
        return self._class_loss(output, self.assign_targets(points, batch))

    def _class_loss(self, output: PointPredictions, targets: PointTargets) -> dict[str, Tensor]:
        labels = targets.labels.clamp(max=0) if self.config.class_agnostic else targets.labels
        num_positives = targets.is_foreground.sum().clamp(min=1)
        with torch.autocast(output.cls_logits.device.type, enabled=False):
            loss = classification_loss(output.cls_logits[None], labels[None], num_positives[None])
        return {"point_cls_loss": self.config.loss_config.loss_weights.point_cls_weight * loss}


def point_layers(in_features: int, widths: Sequence[int], out_features: int) -> nn.Sequential:
    """Stack linear layers with batch norm and ReLU, and a last one with a bias alone; bears single points.

    Args:
        in_features: width of the input.
        widths: of the hidden layers; there may be none.
        out_features: width of the output.
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(in_features, width, bias=False), VoxelBatchNorm1d(width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))
