"""Random changes of a whole frame: flip, rotation, scaling, translation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.datasets.frame import RawFrame
from cakdp_ext.datasets.ground_truth_sampling import GroundTruthSampler

Augmentor = Callable[[RawFrame, np.random.Generator], RawFrame]


def flip(frame: RawFrame, axis: str) -> RawFrame:
    """Mirror a frame at the vertical plane through an axis of the LiDAR frame.

    Args:
        frame: is left as it is.
        axis: ``x`` changes the sign of y, ``y`` that of x.
    """
    column = {"x": 1, "y": 0}[axis]
    points, boxes = frame.points.copy(), frame.boxes.copy()
    points[:, column] *= -1
    boxes[:, column] *= -1
    boxes[:, 6] = (0.0 if axis == "x" else np.pi) - boxes[:, 6]
    return replace(frame, points=points, boxes=boxes, ground=None)


def rotate(frame: RawFrame, angle: float) -> RawFrame:
    """Turn a frame about the z axis, counter-clockwise by ``angle`` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array(((cos, sin), (-sin, cos)))
    points, boxes = frame.points.copy(), frame.boxes.copy()
    points[:, :2] = points[:, :2] @ turn.astype(points.dtype)
    boxes[:, :2] = boxes[:, :2] @ turn
    boxes[:, 6] += angle
    return replace(frame, points=points, boxes=boxes, ground=None)


def scale(frame: RawFrame, factor: float) -> RawFrame:
    """Scale coordinates and box sizes about the origin."""
    points, boxes = frame.points.copy(), frame.boxes.copy()
    points[:, :3] *= factor
    boxes[:, :6] *= factor
    return replace(frame, points=points, boxes=boxes, ground=None)


def translate(frame: RawFrame, offset: np.ndarray) -> RawFrame:
    """Move a frame by ``(3,)`` metres."""
    points, boxes = frame.points.copy(), frame.boxes.copy()
    points[:, :3] += offset.astype(points.dtype)
    boxes[:, :3] += offset
    return replace(frame, points=points, boxes=boxes, ground=None)


@dataclass(frozen=True)
class WorldFlip:
    """Mirrors along each listed axis with probability one half.

    Attributes:
        along_axis_list: of ``x`` and ``y``.
    """

    along_axis_list: tuple[str, ...]

    def __post_init__(self) -> None:
        if not set(self.along_axis_list) <= {"x", "y"}:
            raise ValueError(f"ALONG_AXIS_LIST may hold x and y, got {', '.join(map(str, self.along_axis_list))}")

    def __call__(self, frame: RawFrame, rng: np.random.Generator) -> RawFrame:
        """Change one frame."""
        for axis in self.along_axis_list:
            frame = flip(frame, axis) if rng.random() < 0.5 else frame
        return frame


@dataclass(frozen=True)
class WorldRotation:
    """Turns by a random angle.

    Attributes:
        world_rot_angle: smallest and largest angle in radians, or one angle a for ``(-a, a)``.
    """

    world_rot_angle: tuple[float, float] | float

    def __post_init__(self) -> None:
        _check_range("WORLD_ROT_ANGLE", self._limits)

    @property
    def _limits(self) -> tuple[float, float]:
        angle = self.world_rot_angle
        return angle if isinstance(angle, tuple) else (-angle, angle)

    def __call__(self, frame: RawFrame, rng: np.random.Generator) -> RawFrame:
        """Change one frame."""
        return rotate(frame, rng.uniform(*self._limits))


@dataclass(frozen=True)
class WorldScaling:
    """Scales by a random factor.

    Attributes:
        world_scale_range: smallest and largest factor.
    """

    world_scale_range: tuple[float, float]

    def __post_init__(self) -> None:
        _check_range("WORLD_SCALE_RANGE", self.world_scale_range)

    def __call__(self, frame: RawFrame, rng: np.random.Generator) -> RawFrame:
        """Change one frame."""
        return scale(frame, rng.uniform(*self.world_scale_range))


@dataclass(frozen=True)
class WorldTranslation:
    """Moves by a random, normally distributed offset.

    Attributes:
        noise_translate_std: standard deviations along x, y and z in metres.
    """

    noise_translate_std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.noise_translate_std) != 3 or min(self.noise_translate_std) < 0:
            raise ValueError(f"NOISE_TRANSLATE_STD must be three numbers >= 0, got {self.noise_translate_std}")

    def __call__(self, frame: RawFrame, rng: np.random.Generator) -> RawFrame:
        """Change one frame."""
        return translate(frame, rng.normal(0.0, self.noise_translate_std))


WORLD_AUGMENTORS: dict[str, type] = {
    "random_world_flip": WorldFlip,
    "random_world_rotation": WorldRotation,
    "random_world_scaling": WorldScaling,
    "random_world_translation": WorldTranslation,
}


def build_augmentors(
    node: Mapping[str, Any] | None, class_names: Sequence[str], data_path: Path
) -> tuple[Augmentor, ...]:
    """Build what ``DATA_AUGMENTOR`` lists, in its order, without what ``DISABLE_AUG_LIST`` names.

    Args:
        node: ``DATA_AUGMENTOR``; None for no augmentation.
        class_names: classes to detect.
        data_path: folder of the ground-truth database.

    Raises:
        ConfigError: for an unknown augmentor (the known ones are listed) or an unknown key.
        FileNotFoundError: when the ground-truth database is missing.
    """
    if node is None:
        return ()
    disabled = set(node.get("DISABLE_AUG_LIST", ()))
    entries = [entry for entry in node.get("AUG_CONFIG_LIST", ()) if entry.get("NAME") not in disabled]
    return tuple(_build(entry, class_names, data_path) for entry in entries)


def _build(entry: Mapping[str, Any], class_names: Sequence[str], data_path: Path) -> Augmentor:
    name = entry.get("NAME")
    settings = {key: value for key, value in entry.items() if key != "NAME"}
    if name == "gt_sampling":
        return GroundTruthSampler.from_node(settings, class_names, data_path)
    if name not in WORLD_AUGMENTORS:
        known = ", ".join(("gt_sampling", *WORLD_AUGMENTORS))
        raise ConfigError(f"unknown augmentor {name!r} in AUG_CONFIG_LIST; known augmentors: {known}")
    return from_node(WORLD_AUGMENTORS[name], settings, f"{name} of AUG_CONFIG_LIST")


def _check_range(key: str, limits: tuple[float, ...]) -> None:
    if len(limits) != 2 or limits[0] > limits[1]:
        raise ValueError(f"{key} must be [smallest, largest], got {list(limits)}")
