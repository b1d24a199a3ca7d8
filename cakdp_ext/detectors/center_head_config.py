"""What may be asked of a center head? The keys of DENSE_HEAD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cakdp_ext.center_maps import BRANCHES, CODE_SIZE
from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.center_targets import CenterTargetConfig
from cakdp_ext.detectors.post_processing import CenterPostProcessing
from cakdp_ext.refinement import CenterIoUHeadConfig

_REFUSED = {
    "vel": "velocities are not predicted here: no data set of ours tells them",
    "iou": "an IoU branch is asked for by DENSE_HEAD.NAME: CenterHeadIoU, and by nothing else",
}


@dataclass(frozen=True)
class SeparateHeadConfig:
    """Keys of SEPARATE_HEAD_CFG.

    Attributes:
        head_order: center, center_z, dim, rot, the one order that the regression targets have.
        head_dict: branch -> ``{out_channels, num_conv}``; a branch that is left out has two convolutions.
    """

    head_order: tuple[str, ...] = tuple(BRANCHES)
    head_dict: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        branches = {name.lower(): shape for name, shape in self.head_dict.items()}
        for name, reason in _REFUSED.items():
            if name in branches or name in self.head_order:
                raise ValueError(f"{name} in HEAD_ORDER or HEAD_DICT: {reason}; take it out")
        if tuple(self.head_order) != tuple(BRANCHES) or not branches.keys() <= BRANCHES.keys():
            raise ValueError(
                f"HEAD_ORDER must be {', '.join(BRANCHES)}, and HEAD_DICT must know no other branch; "
                f"got {', '.join(self.head_order)} and {', '.join(branches) or 'none'}"
            )
        for name, shape in branches.items():
            channels, num_conv = shape.get("OUT_CHANNELS", BRANCHES[name]), shape.get("NUM_CONV", 2)
            if channels != BRANCHES[name] or num_conv < 1:
                raise ValueError(
                    f"{name} of HEAD_DICT needs out_channels {BRANCHES[name]} and num_conv of at least 1, got {shape}"
                )
        object.__setattr__(self, "head_dict", branches)

    def num_conv(self, branch: str) -> int:
        """Convolutions of a branch, the last one included."""
        return int(self.head_dict.get(branch, {}).get("NUM_CONV", 2))


@dataclass(frozen=True)
class CenterLossWeights:
    """Keys of LOSS_CONFIG.LOSS_WEIGHTS: factors of the losses and, under code_weights, of the eight regressed values.

    These are x and y in the cell, z, the sizes' logarithms, cosine and sine of the heading.
    """

    cls_weight: float = 1.0
    loc_weight: float = 2.0
    code_weights: tuple[float, ...] = (1.0,) * CODE_SIZE

    def __post_init__(self) -> None:
        if len(self.code_weights) != CODE_SIZE:
            raise ValueError(f"code_weights needs {CODE_SIZE} entries, got {self.code_weights}")


@dataclass(frozen=True)
class CenterLossConfig:
    """Keys of LOSS_CONFIG."""

    loss_weights: CenterLossWeights = field(default_factory=CenterLossWeights)


@dataclass(frozen=True)
class CenterHeadConfig:
    """Keys of DENSE_HEAD for center heads.

    Attributes:
        class_names_each_head: the classes of every part; a name that the detector does not know is passed over.
        target_assigner_config: what a part should say of an object.
        separate_head_cfg: the branches of every part beside its heat map.
        post_processing: from heat maps to detections.
        loss_config: factors of the losses.
        shared_conv_channel: channels of the map that all branches read.
        num_hm_conv: convolutions of the heat maps' branch.
        use_bias_before_norm: give convolutions a bias although a norm follows.
        bn_eps: what the norms add to the variance.
        bn_mom: by how much a step moves the norms' statistics.
        class_agnostic: False: every class has a heat map of its own.
    """

    class_names_each_head: tuple[Sequence[str], ...]
    target_assigner_config: CenterTargetConfig
    separate_head_cfg: SeparateHeadConfig = field(default_factory=SeparateHeadConfig)
    post_processing: CenterPostProcessing = field(default_factory=CenterPostProcessing)
    loss_config: CenterLossConfig = field(default_factory=CenterLossConfig)
    shared_conv_channel: int = 64
    num_hm_conv: int = 2
    use_bias_before_norm: bool = False
    bn_eps: float = 1e-5
    bn_mom: float = 0.1
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        if self.class_agnostic:
            raise ValueError("a center head has a heat map for every class; set CLASS_AGNOSTIC: False")
        if self.num_hm_conv < 1 or self.shared_conv_channel < 1:
            raise ValueError(
                f"NUM_HM_CONV and SHARED_CONV_CHANNEL must be at least 1, "
                f"got {self.num_hm_conv} and {self.shared_conv_channel}"
            )

    def labels_of_parts(self, class_names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Give the labels that every part tells apart, in the order of its heat maps.

        Args:
            class_names: classes by label.

        Raises:
            ConfigError: where a part has no class, or a class not exactly one part.
        """
        parts = tuple(
            tuple(class_names.index(name) for name in names if name in class_names)
            for names in self.class_names_each_head
        )
        if sorted(label for part in parts for label in part) != list(range(len(class_names))) or not all(parts):
            raise ConfigError(
                f"CLASS_NAMES_EACH_HEAD of MODEL.DENSE_HEAD must name each of {', '.join(class_names)} once, and at "
                f"least one of them in every head, got {[list(names) for names in self.class_names_each_head]}"
            )
        return parts


@dataclass(frozen=True)
class CenterHeadIoUConfig(CenterHeadConfig):
    """Keys of DENSE_HEAD for a center head with an IoU branch."""

    iou_head: CenterIoUHeadConfig = field(default_factory=CenterIoUHeadConfig)
