"""What KITTI's object benchmark asks of whom: classes, difficulties, minimum overlaps, and who counts.

Source: the object development kit of the KITTI benchmark (Geiger et al., CVPR 2012), and the minimum overlaps that
OpenPCDet prints beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from cakdp_ext.evaluation.kitti_annotations import LabelledObjects, ScoredObjects

METRICS = ("image", "bev", "3d")
"""What an overlap is taken of: boxes in the image, footprints, volumes."""

STRICTNESS = ("strict", "loose")
"""The benchmark's own minimum overlaps, and the more forgiving ones printed below them."""


class Role(IntEnum):
    """What an object is to one class at one difficulty."""

    ABSENT = -1  # takes no part
    COUNTED = 0  # is to be found, or is right or wrong
    IGNORED = 1  # may be matched, and neither helps nor harms


class Difficulty(NamedTuple):
    """Which ground truths are to be found, and how small a detection may be."""

    name: str
    min_height: float  # pixels
    max_occlusion: int
    max_truncation: float


DIFFICULTIES = (
    Difficulty("easy", 40.0, 0, 0.15),
    Difficulty("moderate", 25.0, 1, 0.30),
    Difficulty("hard", 25.0, 2, 0.50),
)


class ClassRule(NamedTuple):
    """Minimum overlaps of a class in the order of METRICS, and the class that is too much like it to count."""

    strict: tuple[float, float, float]
    loose: tuple[float, float, float]
    neighbour: str | None = None

    def min_overlap(self, metric: str, strictness: str) -> float:
        """Give the overlap that a match must exceed."""
        overlaps = self.strict if strictness == "strict" else self.loose
        return overlaps[METRICS.index(metric)]


_LARGE, _LARGE_LOOSE = (0.7, 0.7, 0.7), (0.7, 0.5, 0.5)
_SMALL, _SMALL_LOOSE = (0.5, 0.5, 0.5), (0.5, 0.25, 0.25)

CLASS_RULES: Mapping[str, ClassRule] = {
    "Car": ClassRule(_LARGE, _LARGE_LOOSE, neighbour="Van"),
    "Pedestrian": ClassRule(_SMALL, _SMALL_LOOSE, neighbour="Person_sitting"),
    "Cyclist": ClassRule(_SMALL, _SMALL_LOOSE),
    "Van": ClassRule(_LARGE, _LARGE_LOOSE),
    "Person_sitting": ClassRule(_SMALL, _SMALL_LOOSE),
    "Truck": ClassRule(_LARGE, (0.5, 0.5, 0.5)),
}


def check_class_names(class_names: Sequence[str]) -> None:
    """Raise ValueError unless there is a rule for every class and no class is named twice."""
    if isinstance(class_names, str) or not class_names:
        raise ValueError(f"class_names must be a non-empty list such as ['Car'], got {class_names!r}")
    unknown = [name for name in class_names if name not in CLASS_RULES]
    if unknown:
        raise ValueError(f"KITTI has no rule for class {', '.join(unknown)}; it has one for {', '.join(CLASS_RULES)}")
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names must be different, got {', '.join(class_names)}")


def ground_truth_roles(objects: LabelledObjects, class_name: str, difficulty: Difficulty) -> np.ndarray:
    """Tell which ground truths are to be found, which may be, and which take no part.

    Args:
        objects: N ground truths.
        class_name: a key of CLASS_RULES.
        difficulty: one of DIFFICULTIES.

    Returns:
        ``(N,)`` int8 of Role; of a neighbouring class or beyond the difficulty means IGNORED.
    """
    neighbour = CLASS_RULES[class_name].neighbour
    too_hard = (
        (objects.occluded > difficulty.max_occlusion)
        | (objects.truncated > difficulty.max_truncation)
        | (objects.bbox[:, 3] - objects.bbox[:, 1] <= difficulty.min_height)
    )
    roles = np.full(len(objects.names), Role.ABSENT, dtype=np.int8)
    roles[objects.is_class(class_name)] = Role.COUNTED
    roles[objects.is_class(class_name) & too_hard] = Role.IGNORED
    if neighbour is not None:
        roles[objects.is_class(neighbour)] = Role.IGNORED
    return roles


def detection_roles(objects: ScoredObjects, class_name: str, difficulty: Difficulty) -> np.ndarray:
    """Tell which detections are right or wrong, which may be matched only, and which take no part.

    Args:
        objects: N detections.
        class_name: a key of CLASS_RULES.
        difficulty: one of DIFFICULTIES.

    Returns:
        ``(N,)`` int8 of Role; lower than the difficulty's height means IGNORED, whatever the class: so does the
        development kit.
    """
    height = np.abs(objects.bbox[:, 3] - objects.bbox[:, 1])
    roles = np.where(objects.is_class(class_name), Role.COUNTED, Role.ABSENT).astype(np.int8)
    roles[height < difficulty.min_height] = Role.IGNORED
    return roles
