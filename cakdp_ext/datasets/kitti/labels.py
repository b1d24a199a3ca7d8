"""KITTI's label files, and their boxes in both frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cakdp_ext.datasets.described import wrap_angle
from cakdp_ext.datasets.kitti.calibration import Calibration

DONT_CARE = "DontCare"
NUM_FIELDS = 15
DIFFICULTIES = ((40.0, 0, 0.15), (25.0, 1, 0.30), (25.0, 2, 0.50))
"""Smallest height in pixels, largest occlusion and truncation of easy, moderate and hard."""


@dataclass(frozen=True)
class ObjectLabel:
    """One line of a label file.

    Attributes:
        name: class, or ``DontCare`` for a region without 3D box.
        truncated: share outside the image.
        occluded: 0 visible, 1 partly, 2 largely, 3 unknown.
        alpha: observation angle, radians.
        bbox: left, top, right, bottom in pixels.
        dimensions: length, height, width in metres.
        location: bottom centre in the camera frame, metres.
        rotation_y: heading about the camera's y axis, radians.
        score: -1 without one.
    """

    name: str
    truncated: float
    occluded: float
    alpha: float
    bbox: tuple[float, float, float, float]
    dimensions: tuple[float, float, float]
    location: tuple[float, float, float]
    rotation_y: float
    score: float = -1.0

    @classmethod
    def from_line(cls, line: str) -> ObjectLabel:
        """Parse one line.

        Raises:
            ValueError: for another number of fields, or a field that is no number.
        """
        name, *rest = line.split()
        if len(rest) + 1 not in (NUM_FIELDS, NUM_FIELDS + 1):
            raise ValueError(f"expected {NUM_FIELDS} fields, or {NUM_FIELDS + 1} with a score, got {len(rest) + 1}")
        values = [float(word) for word in rest]
        if not np.isfinite(values).all():
            raise ValueError("expected finite numbers after the name")
        truncated, occluded, alpha, left, top, right, bottom, height, width, length, x, y, z, heading, *score = values
        return cls(
            name=name,
            truncated=truncated,
            occluded=occluded,
            alpha=alpha,
            bbox=(left, top, right, bottom),
            dimensions=(length, height, width),
            location=(x, y, z),
            rotation_y=heading,
            score=score[0] if score else -1.0,
        )

    @property
    def difficulty(self) -> int:
        """0 easy, 1 moderate, 2 hard, -1 none of them; a bbox is one pixel higher than its edges lie apart."""
        height = float(np.float32(self.bbox[3])) - float(np.float32(self.bbox[1])) + 1
        for level, (min_height, max_occluded, max_truncated) in enumerate(DIFFICULTIES):
            if height >= min_height and self.occluded <= max_occluded and self.truncated <= max_truncated:
                return level
        return -1


def read_labels(path: Path) -> list[ObjectLabel]:
    """Read a label file; regions to ignore come last.

    Args:
        path: text file, one object a line; it may be empty.

    Raises:
        ValueError: names the file and the line that cannot be read.
    """
    labels = []
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            labels.append(ObjectLabel.from_line(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}, in {line!r}") from error
    return sorted(labels, key=lambda label: label.name == DONT_CARE)


def label_columns(labels: Sequence[ObjectLabel]) -> dict[str, np.ndarray]:
    """Turn labels into columns, in the dtypes of OpenPCDet's info files.

    Args:
        labels: n of them, regions to ignore last.

    Returns:
        name, truncated, occluded, alpha, bbox ``(n, 4)``, dimensions ``(n, 3)``, location ``(n, 3)``, rotation_y,
        score, difficulty, index (-1 for regions to ignore); n may be 0.
    """
    num_objects = sum(label.name != DONT_CARE for label in labels)
    index = np.full(len(labels), -1, dtype=np.int32)
    index[:num_objects] = np.arange(num_objects)
    return {
        "name": np.array([label.name for label in labels], dtype=np.str_),
        "truncated": np.array([label.truncated for label in labels], dtype=np.float64),
        "occluded": np.array([label.occluded for label in labels], dtype=np.float64),
        "alpha": np.array([label.alpha for label in labels], dtype=np.float64),
        "bbox": np.array([label.bbox for label in labels], dtype=np.float32).reshape(-1, 4),
        "dimensions": np.array([label.dimensions for label in labels], dtype=np.float64).reshape(-1, 3),
        "location": np.array([label.location for label in labels], dtype=np.float32).reshape(-1, 3),
        "rotation_y": np.array([label.rotation_y for label in labels], dtype=np.float64),
        "score": np.array([label.score for label in labels], dtype=np.float64),
        "difficulty": np.array([label.difficulty for label in labels], dtype=np.int32),
        "index": index,
    }


def camera_to_lidar_boxes(
    location: np.ndarray, dimensions: np.ndarray, rotation_y: np.ndarray, calibration: Calibration
) -> np.ndarray:
    """Move boxes from KITTI's camera terms to the LiDAR frame, whose z axis is taken as vertical.

    Args:
        location: ``(N, 3)`` bottom centres in the camera frame, metres.
        dimensions: ``(N, 3)`` length, height, width, metres.
        rotation_y: ``(N,)`` radians.
        calibration: of the frame.

    Returns:
        ``(N, 7)`` float64 boxes; the heading is ``-(rotation_y + pi / 2)``, not brought into one period.
    """
    centers = calibration.to_lidar(location.astype(np.float64))
    centers[:, 2] += dimensions[:, 1] / 2
    heading = -(rotation_y + np.pi / 2)
    return np.concatenate((centers, dimensions[:, [0, 2, 1]], heading[:, None]), axis=1)


def lidar_to_camera_boxes(boxes: np.ndarray, calibration: Calibration) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move boxes ``(N, 7)`` to KITTI's camera terms; the inverse of ``camera_to_lidar_boxes``.

    Returns:
        ``(N, 3)`` location, ``(N, 3)`` dimensions and ``(N,)`` rotation_y in ``[-pi, pi)``.
    """
    bottoms = boxes[:, :3].astype(np.float64)
    bottoms[:, 2] -= boxes[:, 5] / 2
    return calibration.to_camera(bottoms), boxes[:, [3, 5, 4]], wrap_angle(-boxes[:, 6] - np.pi / 2)


def image_boxes(
    location: np.ndarray,
    dimensions: np.ndarray,
    rotation_y: np.ndarray,
    calibration: Calibration,
    image_shape: np.ndarray,
) -> np.ndarray:
    """Give the 2D boxes that 3D boxes fill in the image: bounds of the projected corners, clipped to the image.

    Args:
        location: ``(N, 3)`` bottom centres in the camera frame, metres.
        dimensions: ``(N, 3)`` length, height, width, metres.
        rotation_y: ``(N,)`` radians.
        calibration: of the frame.
        image_shape: height and width in pixels.

    Returns:
        ``(N, 4)`` left, top, right, bottom in pixels.
    """
    length, height, width = (dimensions[:, i, None] for i in range(3))
    cos, sin = np.cos(rotation_y)[:, None], np.sin(rotation_y)[:, None]
    along = np.array((1, 1, -1, -1, 1, 1, -1, -1)) * length / 2
    across = np.array((1, -1, -1, 1, 1, -1, -1, 1)) * width / 2
    up = np.array((0, 0, 0, 0, 1, 1, 1, 1)) * height
    corners = np.stack((along * cos + across * sin, -up, across * cos - along * sin), axis=-1) + location[:, None]
    pixels = calibration.to_image(corners.reshape(-1, 3)).reshape(-1, 8, 2)
    limit = np.array((image_shape[1] - 1, image_shape[0] - 1))
    return np.concatenate((pixels.min(axis=1).clip(0, limit), pixels.max(axis=1).clip(0, limit)), axis=1)
