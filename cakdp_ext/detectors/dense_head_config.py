"""What may be asked of an anchor head? The keys of DENSE_HEAD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cakdp_ext.config import from_node
from cakdp_ext.detectors.anchors import AnchorSpec
from cakdp_ext.detectors.box_coder import ResidualCoder
from cakdp_ext.detectors.registry import upper_keys
from cakdp_ext.detectors.target_assigner import TargetAssignerConfig
from cakdp_ext.refinement import IoUHeadConfig


@dataclass(frozen=True)
class LossWeights:
    """Keys of LOSS_CONFIG.LOSS_WEIGHTS: factors of the losses and, under code_weights, of the seven residuals."""

    cls_weight: float = 1.0
    loc_weight: float = 2.0
    dir_weight: float = 0.2
    code_weights: tuple[float, ...] = (1.0,) * 7

    def __post_init__(self) -> None:
        if len(self.code_weights) != ResidualCoder.code_size:
            raise ValueError(f"code_weights needs {ResidualCoder.code_size} entries, got {self.code_weights}")


@dataclass(frozen=True)
class LossConfig:
    """Keys of LOSS_CONFIG."""

    loss_weights: LossWeights = field(default_factory=LossWeights)


@dataclass(frozen=True)
class AnchorHeadConfig:
    """Keys of DENSE_HEAD for anchor heads.

    Attributes:
        anchor_generator_config: one entry a class.
        class_agnostic: tell objects from background only, one channel for all classes.
        use_direction_classifier: absent for none; the box residuals cannot tell front from back.
        dir_offset: where the first direction bin begins, radians.
        dir_limit_offset: share of a bin by which a decoded heading may lie below it.
        num_dir_bins: how many shares of a turn are told apart.
        target_assigner_config: which anchors stand for which objects.
        loss_config: factors of the losses.
    """

    anchor_generator_config: tuple[AnchorSpec, ...]
    class_agnostic: bool = False
    use_direction_classifier: bool | None = None
    dir_offset: float = 0.0
    dir_limit_offset: float = 0.0
    num_dir_bins: int = 2
    target_assigner_config: TargetAssignerConfig = field(default_factory=TargetAssignerConfig)
    loss_config: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if self.use_direction_classifier is False:
            raise ValueError("OpenPCDet takes USE_DIRECTION_CLASSIFIER: False for True; leave the key out for none")
        entries: Sequence[Any] = self.anchor_generator_config
        if not entries:
            raise ValueError("ANCHOR_GENERATOR_CONFIG needs an entry for each class")
        specs = tuple(
            entry
            if isinstance(entry, AnchorSpec)
            else from_node(AnchorSpec, upper_keys(entry), "ANCHOR_GENERATOR_CONFIG")
            for entry in entries
        )
        object.__setattr__(self, "anchor_generator_config", specs)


@dataclass(frozen=True)
class AnchorHeadIoUConfig(AnchorHeadConfig):
    """Keys of DENSE_HEAD for an anchor head with an IoU branch."""

    iou_head: IoUHeadConfig = field(default_factory=IoUHeadConfig)
