"""How KITTI's LiDAR, rectified camera and image see the same point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ENTRIES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
NEAR = 0.1


@dataclass(frozen=True, eq=False)
class Calibration:
    """Transforms of one frame.

    The camera frame is the rectified one: x right, y down, z forward.

    Attributes:
        projection: ``(3, 4)`` of the left colour camera (``P2``).
        lidar_to_camera: ``(4, 4)`` rigid, rectification included.
    """

    projection: np.ndarray
    lidar_to_camera: np.ndarray

    @classmethod
    def from_parts(cls, parts: Mapping[str, np.ndarray]) -> Calibration:
        """Build from ``P2``, ``R0_rect`` and ``Tr_velo_to_cam``, in KITTI's shapes or padded to 4 x 4."""
        to_camera = _padded(parts["R0_rect"]) @ _padded(parts["Tr_velo_to_cam"])
        return cls(np.asarray(parts["P2"], dtype=np.float64)[:3], to_camera)

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """Move ``(N, 3)`` points from the LiDAR frame to the camera frame."""
        return points @ self.lidar_to_camera[:3, :3].T + self.lidar_to_camera[:3, 3]

    def to_lidar(self, points: np.ndarray) -> np.ndarray:
        """Move ``(N, 3)`` points from the camera frame to the LiDAR frame."""
        inverse = np.linalg.inv(self.lidar_to_camera)
        return points @ inverse[:3, :3].T + inverse[:3, 3]

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Project points of the camera frame.

        The divisor is the depth in the camera frame, as in OpenPCDet; the camera's own centre lies a few
        millimetres off. A point closer than 0.1 m, or behind, is taken as 0.1 m away, which sends it to the side
        of the image that it is on.

        Args:
            points: ``(N, 3)``, metres.

        Returns:
            ``(N, 2)`` u, v in pixels.
        """
        projected = points @ self.projection[:2, :3].T + self.projection[:2, 3]
        return projected / np.maximum(points[:, 2:3], NEAR)

    def in_image(self, points: np.ndarray, image_shape: np.ndarray) -> np.ndarray:
        """Tell which points of the LiDAR frame the image shows.

        Args:
            points: ``(N, 3)``, metres.
            image_shape: height and width in pixels.

        Returns:
            ``(N,)`` bool; a point behind the camera, whose depth is negative, satisfies no pair of the bounds.
        """
        matrix = self.projection.copy()
        matrix[2] = (0, 0, 1, 0)
        matrix = (matrix @ self.lidar_to_camera).astype(points.dtype)
        u, v, depth = matrix[:, :3] @ points[:, :3].T + matrix[:, 3:]
        height, width = map(float, image_shape)
        return (u >= 0) & (u < width * depth) & (v >= 0) & (v < height * depth)

    def plane_to_lidar(self, plane: np.ndarray) -> np.ndarray:
        """Express a plane ``a x + b y + c z + d = 0`` of the camera frame in the LiDAR frame."""
        return self.lidar_to_camera.T @ plane


def read_calibration_parts(path: Path) -> dict[str, np.ndarray]:
    """Read ``P2``, ``R0_rect`` and ``Tr_velo_to_cam`` of a KITTI calibration file.

    Args:
        path: the text file, one ``name: numbers`` a line.

    Returns:
        Float64 matrices in KITTI's shapes.

    Raises:
        ValueError: for a missing entry, or one of the wrong length or with something that is no number.
    """
    lines = dict(
        line.split(":", 1) for line in path.read_text(encoding="ascii", errors="replace").splitlines() if ":" in line
    )
    parts = {}
    for name, shape in ENTRIES.items():
        if name not in lines:
            raise ValueError(f"{path} has no entry {name}; it has {', '.join(lines) or 'none'}")
        try:
            parts[name] = np.array(lines[name].split(), dtype=np.float64).reshape(shape)
        except ValueError as error:
            raise ValueError(f"{path}: {name} must be {shape[0] * shape[1]} numbers, got {lines[name]!r}") from error
    return parts


def pad_parts(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pad every matrix to 4 x 4 in the dtypes of OpenPCDet's info files, whose values went through float32."""
    rounded = {name: _padded(matrix.astype(np.float32)) for name, matrix in parts.items()}
    return {**rounded, "R0_rect": rounded["R0_rect"].astype(np.float32)}


def _padded(matrix: np.ndarray) -> np.ndarray:
    padded = np.eye(4)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded
