"""Which points belong to objects, and to which part of them? The point head of Part-A2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.point_head import (
    PointHeadSimple,
    PointLossConfig,
    PointLossWeights,
    PointPredictions,
    PointTargetConfig,
    point_layers,
)
from cakdp_ext.detectors.point_targets import PointTargets, part_locations
from cakdp_ext.detectors.registry import POINT_HEADS
from cakdp_ext.types import Batch


@dataclass(frozen=True)
class PartLossWeights(PointLossWeights):
    """Weights of the point head's losses (LOSS_WEIGHTS)."""

    point_part_weight: float = 1.0


@dataclass(frozen=True)
class PartLossConfig(PointLossConfig):
    """What the point head is trained with (LOSS_CONFIG)."""

    loss_weights: PartLossWeights


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
class PartPredictions(PointPredictions):
    """What the point head says of N points, float32.

    Attributes:
        part_logits: ``(N, 3)`` raw; their sigmoids are the part locations.
    """

    part_logits: Tensor

    @property
    def parts(self) -> Tensor:
        """Where in its object each point lies: ``(N, 3)`` in [0, 1], along the object's own axes."""
        return self.part_logits.sigmoid()


@POINT_HEADS.register("PointIntraPartOffsetHead")
class PointIntraPartOffsetHead(PointHeadSimple):
    """Tells points of objects from background and says where in its object each of them lies.

    Args:
        config: the section's keys.
        in_channels: features of a point.
        class_names: classes by label.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.1.2, with OpenPCDet's tensor names.
    """

    Config = PointIntraPartOffsetHeadConfig

    def __init__(self, config: PointIntraPartOffsetHeadConfig, in_channels: int, class_names: Sequence[str]) -> None:
        super().__init__(config, in_channels, class_names)
        self.part_reg_layers = point_layers(in_channels, config.part_fc, 3)

    def forward(self, points: PointFeatures) -> PartPredictions:
        """Judge points.

        Args:
            points: N of all frames; N may be 0.
        """
        cls_logits, part_logits = self.cls_layers(points.features), self.part_reg_layers(points.features)
        return PartPredictions(cls_logits.float(), part_logits.float())

    def losses(self, output: PointPredictions, points: PointFeatures, batch: Batch) -> dict[str, Tensor]:
        """Compare what was said of the points with the objects of a batch.

        Args:
            output: of :meth:`forward`.
            points: that it was asked about.
            batch: whose objects to look for.

        Returns:
            ``point_cls_loss`` and ``point_part_loss``: weighted scalars; without foreground the second is 0.

        Raises:
            TypeError: for what another head said.
        """
        if not isinstance(output, PartPredictions):
            raise TypeError(f"give what this head says of the points, not {type(output).__name__}")
        targets = self.assign_targets(points, batch)
        with torch.autocast(output.cls_logits.device.type, enabled=False):
            part_loss = part_location_loss(output.part_logits, points.xyz, targets)
        weight = self.config.loss_config.loss_weights.point_part_weight
        return {**self._class_loss(output, targets), "point_part_loss": weight * part_loss}


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
