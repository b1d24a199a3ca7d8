"""What MODEL.DISTILL of a YAML says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cakdp_ext.config import ModelSource

SPACES = ("logits", "probability")


@dataclass(frozen=True)
class DistillConfig:
    """How the student is taught. Read it with ``config.from_node(DistillConfig, node, where)``.

    Attributes:
        teacher: the two-stage detector that teaches.
        method: name of a registered method.
        alpha: weight of the distillation loss in Eq. 7.
        space: where Eq. 1 compares student and teacher: ``logits`` or ``probability`` (their sigmoids).
        score_thresh: a representative's best class score lies above it; 0.25 for SECOND, 0.1 for CenterPoint.
        nms_thresh: bird's-eye-view IoU of the rotated, class-agnostic NMS that picks the representatives.
        nms_pre_maxsize: so many best samples of a frame go into that NMS.
        nms_post_maxsize: a frame has at most so many representatives.
    """

    teacher: ModelSource
    method: str = "SKD"
    alpha: float = 1.0
    space: str = "logits"
    score_thresh: float = 0.25
    nms_thresh: float = 0.7
    nms_pre_maxsize: int = 2048
    nms_post_maxsize: int = 200

    def __post_init__(self) -> None:
        _check_teacher(self.teacher)
        if self.space not in SPACES:
            raise ValueError(f"unknown SPACE {self.space!r}; valid spaces: {', '.join(SPACES)}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"ALPHA must be a finite number not below 0, got {self.alpha}")
        for name in ("score_thresh", "nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name.upper()} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("nms_pre_maxsize", "nms_post_maxsize"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name.upper()} must be a whole number of at least 1, got {value!r}")


def _check_teacher(teacher: object) -> None:
    if not isinstance(teacher, ModelSource):
        raise ValueError(f"TEACHER must be a mapping with CFG and CKPT, got {teacher!r}")
    for name, value in (("CFG", teacher.cfg), ("CKPT", teacher.ckpt)):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name} of TEACHER must be the path of a file, got {value!r}")
