"""What MODEL.DISTILL of a YAML says; :func:`cakdp_ext.distillation.read_config` reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cakdp_ext.config import ModelSource

SPACES = ("logits", "probability")


@dataclass(frozen=True)
class NoOptions:
    """A method without keys of its own."""


@dataclass(frozen=True)
class SkdConfig:
    """Keys of SKD, TKD and TSKD.

    Attributes:
        space: where Eq. 1 compares student and teacher: ``logits`` or ``probability`` (their sigmoids).
        score_thresh: a representative's best class score lies above it; 0.25 for SECOND, 0.1 for CenterPoint.
        nms_thresh: bird's-eye-view IoU of the rotated, class-agnostic NMS that picks the representatives.
        nms_pre_maxsize: so many best samples of a frame go into that NMS.
        nms_post_maxsize: a frame has at most so many representatives.
    """

    space: str = "logits"
    score_thresh: float = 0.25
    nms_thresh: float = 0.7
    nms_pre_maxsize: int = 2048
    nms_post_maxsize: int = 200

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ValueError(f"unknown SPACE {self.space!r}; valid spaces: {', '.join(SPACES)}")
        for name in ("score_thresh", "nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name.upper()} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("nms_pre_maxsize", "nms_post_maxsize"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name.upper()} must be a whole number of at least 1, got {value!r}")


@dataclass(frozen=True)
class MethodChoice:
    """One of the methods that METHOD names.

    Attributes:
        name: under which it is registered.
        weight: what its loss is multiplied by.
        options: an instance of the method's ``Config``.
    """

    name: str
    weight: float
    options: Any

    def __post_init__(self) -> None:
        check_weight("WEIGHT", self.weight)


@dataclass(frozen=True)
class DistillConfig:
    """Who teaches the student, and how.

    Attributes:
        teacher: the detector that teaches.
        methods: the ways, whose weighted losses are added; no name twice.
    """

    teacher: ModelSource
    methods: tuple[MethodChoice, ...]

    def __post_init__(self) -> None:
        _check_teacher(self.teacher)
        names = [choice.name for choice in self.methods]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"METHOD must name at least one method and none twice, got {names}")


def check_weight(key: str, value: object) -> None:
    """Refuse a weight that is no finite number from 0 on.

    Raises:
        ValueError: naming the key.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{key} must be a finite number not below 0, got {value}")


def _check_teacher(teacher: object) -> None:
    if not isinstance(teacher, ModelSource):
        raise ValueError(f"TEACHER must be a mapping with CFG and CKPT, got {teacher!r}")
    for name, value in (("CFG", teacher.cfg), ("CKPT", teacher.ckpt)):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name} of TEACHER must be the path of a file, got {value!r}")
