"""Annotations of all frames, checked, as one set of arrays.

KITTI describes an object in the camera's frame (x right, y down, z forward): ``location`` is the middle of its
bottom, ``dimensions`` are length, height and width, ``rotation_y`` turns about the axis that points down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cakdp_ext.evaluation.tables import read_table
from cakdp_ext.types import Annotations

_WIDTHS = {"bbox": (4,), "dimensions": (3,), "location": (3,), "rotation_y": (), "alpha": ()}
_GROUND_TRUTH_WIDTHS = {**_WIDTHS, "truncated": (), "occluded": ()}
_DETECTION_WIDTHS = {**_WIDTHS, "score": ()}


@dataclass(frozen=True)
class Objects:
    """All objects of a data set, frame after frame.

    Attributes:
        starts: ``(F + 1,)`` int64: frame f holds objects ``starts[f]`` to ``starts[f + 1] - 1``.
        names: ``(N,)`` class names in lower case.
        bbox: ``(N, 4)`` float64, left, top, right, bottom in pixels.
        boxes: ``(N, 7)`` float64 in a frame with x forward, y left, z up that stands where the camera stands.
        alpha: ``(N,)`` float64, observation angle in radians.
    """

    starts: np.ndarray
    names: np.ndarray
    bbox: np.ndarray
    boxes: np.ndarray
    alpha: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """Frame of each object, ``(N,)`` int64."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def is_class(self, name: str) -> np.ndarray:
        """Tell which objects are of a class, ``(N,)`` bool."""
        return self.names == name.lower()


@dataclass(frozen=True)
class LabelledObjects(Objects):
    """Ground truths: how much of them leaves the image (0 to 1) and how occluded they are (0 to 3)."""

    truncated: np.ndarray
    occluded: np.ndarray


@dataclass(frozen=True)
class ScoredObjects(Objects):
    """Detections."""

    scores: np.ndarray


def read_ground_truth(annotations: Annotations) -> LabelledObjects:
    """Read the ground truths of F frames, DontCare regions among them.

    Args:
        annotations: one mapping a frame: name, truncated, occluded, alpha, bbox, dimensions, location, rotation_y.

    Returns:
        Float64 arrays; empty ones for no objects.

    Raises:
        ValueError: for a missing key, another shape or a number that is not finite; it names the frame.
    """
    table = read_table(annotations, _GROUND_TRUTH_WIDTHS, "ground truth")
    return LabelledObjects(**_shared(table), truncated=table["truncated"], occluded=table["occluded"])


def read_detections(annotations: Annotations) -> ScoredObjects:
    """Read the detections of F frames.

    Args:
        annotations: one mapping a frame: name, score, alpha, bbox, dimensions, location, rotation_y.

    Returns:
        Float64 arrays; empty ones for no objects.

    Raises:
        ValueError: for a missing key, another shape or a number that is not finite; it names the frame.
    """
    table = read_table(annotations, _DETECTION_WIDTHS, "detections")
    return ScoredObjects(**_shared(table), scores=table["score"])


def upright_boxes(location: np.ndarray, dimensions: np.ndarray, rotation_y: np.ndarray) -> np.ndarray:
    """Turn boxes in KITTI's camera terms into boxes of this package, seen from the camera.

    Args:
        location: ``(N, 3)`` middle of the bottom in the camera's frame, metres.
        dimensions: ``(N, 3)`` length, height, width in metres.
        rotation_y: ``(N,)`` radians, clockwise seen from above, 0 for a box that points to the right.

    Returns:
        ``(N, 7)``: x forward, y left, z up; geometric centre, full sizes, heading counter-clockwise from +x.
    """
    right, down, forward = location.T
    length, height, width = dimensions.T
    return np.stack(
        [forward, -right, height / 2 - down, length, width, height, -rotation_y - np.pi / 2],
        axis=1,
    )


def _shared(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    boxes = upright_boxes(table["location"], table["dimensions"], table["rotation_y"])
    kept = {key: table[key] for key in ("starts", "names", "bbox", "alpha")}
    return {**kept, "boxes": boxes}
