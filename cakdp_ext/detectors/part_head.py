"""Which points belong to objects, and to which part of them? The point head of Part-A2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cakdp_ext.detectors.losses import classification_loss
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.point_targets import PointTargets, assign_points, part_locations
from cakdp_ext.detectors.registry import POINT_HEADS
from cakdp_ext.detectors.sparse import VoxelBatchNorm1d
from cakdp_ext.types import Batch


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
class PartLossWeights:
    """Weights of the point head's losses (LOSS_WEIGHTS)."""

    point_cls_weight: float = 1.0
    point_part_weight: float = 1.0


@dataclass(frozen=True)
class PartLossConfig:
    """What the point head is trained with (LOSS_CONFIG).

    Attributes:
        loss_weights: see there.
        loss_reg: changes nothing; files for OpenPCDet have it.
    """

    loss_weights: PartLossWeights
    loss_reg: str = "smooth-l1"


@dataclass(frozen=True)
class PointIntraPartOffsetHeadConfig:
    """A POINT_HEAD section of NAME PointIntraPartOffsetHead.

    Attributes:
        cls_fc: widths of the hidden layers in front of the classes.
        part_fc: widths of the hidden layers in front of the part locations.
        target_config: which points count as objects.
        loss_config: what the head is trained with.
        class_agnostic: whether one logit says "object", or every class has its own.
    """

    cls_fc: tuple[int, ...]
    part_fc: tuple[int, ...]
    target_config: PointTargetConfig
    loss_config: PartLossConfig
    class_agnostic: bool = False


@dataclass(frozen=True)
class PartPredictions:
    """What the point head says of N points, float32.

    Attributes:
        cls_logits: ``(N, C)`` raw; C is 1 for a class-agnostic head.
        part_logits: ``(N, 3)`` raw; their sigmoids are the part locations.
    """

    cls_logits: Tensor
    part_logits: Tensor

    @property
    def scores(self) -> Tensor:
        """How surely each point belongs to an object: ``(N,)`` in [0, 1]."""
        return self.cls_logits.sigmoid().amax(dim=1)

    @property
    def parts(self) -> Tensor:
        """Where in its object each point lies: ``(N, 3)`` in [0, 1], along the object's own axes."""
        return self.part_logits.sigmoid()


@POINT_HEADS.register("PointIntraPartOffsetHead")
class PointIntraPartOffsetHead(nn.Module):
    """Tells points of objects from background and says where in its object each of them lies.

    Args:
        config: the section's keys.
        in_channels: features of a point.
        class_names: classes by label.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.1.2, with OpenPCDet's tensor names.
    """

    Config = PointIntraPartOffsetHeadConfig

    def __init__(self, config: PointIntraPartOffsetHeadConfig, in_channels: int, class_names: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        num_logits = 1 if config.class_agnostic else len(class_names)
        self.cls_layers = point_layers(in_channels, config.cls_fc, num_logits)
        self.part_reg_layers = point_layers(in_channels, config.part_fc, 3)

    def forward(self, points: PointFeatures) -> PartPredictions:
        """Judge points.

        Args:
            points: N of all frames; N may be 0.
        """
        cls_logits, part_logits = self.cls_layers(points.features), self.part_reg_layers(points.features)
        return PartPredictions(cls_logits.float(), part_logits.float())

    def assign_targets(self, points: PointFeatures, batch: Batch) -> PointTargets:
        """Say which object of the batch, if any, every point belongs to."""
        counts, extra_width = points.counts(batch.batch_size), self.config.target_config.gt_extra_width
        return assign_points(points.xyz, counts, batch.gt_boxes, batch.gt_labels, extra_width)

    def losses(self, output: PartPredictions, points: PointFeatures, batch: Batch) -> dict[str, Tensor]:
        """Compare what was said of the points with the objects of a batch.

        Args:
            output: of :meth:`forward`.
            points: that it was asked about.
            batch: whose objects to look for.

        Returns:
            ``point_cls_loss`` and ``point_part_loss``: weighted scalars; without foreground the second is 0.
        """
        weights, targets = self.config.loss_config.loss_weights, self.assign_targets(points, batch)
        with torch.autocast(output.cls_logits.device.type, enabled=False):
            cls_loss = self._cls_loss(output.cls_logits, targets)
            part_loss = part_location_loss(output.part_logits, points.xyz, targets)
        return {
            "point_cls_loss": weights.point_cls_weight * cls_loss,
            "point_part_loss": weights.point_part_weight * part_loss,
        }

    def _cls_loss(self, cls_logits: Tensor, targets: PointTargets) -> Tensor:
        labels = targets.labels.clamp(max=0) if self.config.class_agnostic else targets.labels
        num_positives = targets.is_foreground.sum().clamp(min=1)
        return classification_loss(cls_logits[None], labels[None], num_positives[None])


def part_location_loss(part_logits: Tensor, xyz: Tensor, targets: PointTargets) -> Tensor:
    """Binary cross entropy of part locations, averaged over the three axes and the foreground points.

    Args:
        part_logits: ``(N, 3)`` raw.
        xyz: ``(N, 3)`` of the points, metres.
        targets: of the points.

    Returns:
        A scalar; 0 (with a gradient of 0) without foreground.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.1.2.
    """
    chosen = targets.is_foreground
    logits, wanted = part_logits[chosen], part_locations(xyz[chosen], targets.boxes[chosen])
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / max(logits.numel(), 1)


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
