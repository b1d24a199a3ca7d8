"""Where does a point of the LiDAR frame appear in the image?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cakdp_ext.datasets.scenes.shapes import Array

AXES = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
"""LiDAR (forward, left, up) to camera (right, down, forward)."""
NEAR = 0.1
EDGES = np.array([(i, j) for i in range(8) for j in range(i + 1, 8) if bin(i ^ j).count("1") == 1])


def _small_rotation(x: float, y: float, z: float) -> Array:
    """Rotate by small angles in radians about the three axes, x first."""
    cx, sx, cy, sy, cz, sz = np.cos(x), np.sin(x), np.cos(y), np.sin(y), np.cos(z), np.sin(z)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@dataclass(frozen=True)
class Camera:
    """A rig like KITTI's: four rectified cameras in front of and below the LiDAR.

    The camera is a little tilted against the LiDAR but not turned about the vertical, and the rotation is split over
    ``rectify`` and ``velo_to_cam`` so that a reader which forgets either is found out.

    Attributes:
        width: of the image in pixels.
        height: of the image in pixels.
        focal: focal length in pixels.
        principal: ``(2,)`` principal point in pixels.
        rectify: ``(3, 3)``, KITTI's R0_rect.
        velo_to_cam: ``(3, 4)``, KITTI's Tr_velo_to_cam.
    """

    width: int
    height: int
    focal: float
    principal: tuple[float, float]
    rectify: Array
    velo_to_cam: Array

    @property
    def projection(self) -> Array:
        """KITTI's P2 ``(3, 4)``."""
        return self._projection((45.0, 0.2, 0.003))

    def _projection(self, last: tuple[float, float, float]) -> Array:
        (u, v), f = self.principal, self.focal
        return np.array([[f, 0.0, u, last[0]], [0.0, f, v, last[1]], [0.0, 0.0, 1.0, last[2]]])

    @property
    def rotation(self) -> Array:
        """Rotation ``(3, 3)`` from the LiDAR frame to the rectified camera frame."""
        return np.asarray(self.rectify @ self.velo_to_cam[:, :3])

    @property
    def translation(self) -> Array:
        """Origin of the LiDAR frame in the rectified camera frame, ``(3,)`` metres."""
        return np.asarray(self.rectify @ self.velo_to_cam[:, 3])

    def to_rect(self, points: Array) -> Array:
        """Convert points ``(..., 3)`` of the LiDAR frame to the rectified camera frame."""
        return np.asarray(np.einsum("ij,...j->...i", self.rotation, points) + self.translation)

    def to_pixels(self, rect: Array) -> Array:
        """Project points ``(..., 3)`` of the rectified camera frame, depth above 0, to pixels ``(..., 2)``."""
        homogeneous = np.einsum("ij,...j->...i", self.projection[:, :3], rect) + self.projection[:, 3]
        return np.asarray(homogeneous[..., :2] / homogeneous[..., 2:])

    def sees(self, points: Array) -> NDArray[np.bool_]:
        """Tell which points ``(N, 3)`` of the LiDAR frame lie in front of the camera and inside the image."""
        rect = self.to_rect(points)
        ahead = rect[:, 2] > NEAR
        pixels = self.to_pixels(np.where(ahead[:, None], rect, 1.0))
        inside = (pixels >= 0).all(axis=1) & (pixels[:, 0] < self.width) & (pixels[:, 1] < self.height)
        return np.asarray(ahead & inside)

    def project_box(self, box: Array) -> Array | None:
        """Project a box ``(7,)`` of the LiDAR frame.

        Returns:
            ``(4,)`` left, top, right, bottom in pixels, not clipped to the image; None when it lies behind the camera.
        """
        rect = self.to_rect(box_corners(box))
        first, second = rect[EDGES[:, 0]], rect[EDGES[:, 1]]
        crossing = (first[:, 2] - NEAR) * (second[:, 2] - NEAR) < 0
        span = np.where(crossing, second[:, 2] - first[:, 2], 1.0)
        cut = first + ((NEAR - first[:, 2]) / span)[:, None] * (second - first)
        ahead = np.concatenate((rect[rect[:, 2] >= NEAR], cut[crossing]))
        if not len(ahead):
            return None
        pixels = self.to_pixels(ahead)
        return np.concatenate((pixels.min(axis=0), pixels.max(axis=0)))

    def plane_to_rect(self, normal: Array, height: float) -> Array:
        """Convert the plane ``normal @ p + height = 0`` of the LiDAR frame.

        Returns:
            ``(4,)`` coefficients a, b, c, d of ``a x + b y + c z + d = 0`` in the rectified camera frame.
        """
        turned = self.rotation @ normal
        return np.append(turned, height - turned @ self.translation)

    def calibration_text(self) -> str:
        """Give the content of a KITTI calibration file."""
        rows = {
            "P0": self._projection((0.0, 0.0, 0.0)),
            "P1": self._projection((-387.0, 0.0, 0.0)),
            "P2": self.projection,
            "P3": self._projection((-340.0, 2.2, 0.003)),
            "R0_rect": self.rectify,
            "Tr_velo_to_cam": self.velo_to_cam,
            "Tr_imu_to_velo": np.column_stack((np.eye(3), (-0.81, 0.32, -0.80))),
        }
        lines = [f"{name}: " + " ".join(f"{value:.12e}" for value in matrix.ravel()) for name, matrix in rows.items()]
        return "\n".join(lines) + "\n"


def kitti_camera() -> Camera:
    """Build the rig that all generated frames share: an image of 1242 x 375 pixels, 82 degrees wide."""
    rectify = _small_rotation(0.004, -0.007, 0.009)
    rotation = rectify.T @ _small_rotation(-0.002, 0.0, 0.001) @ AXES
    velo_to_cam = np.column_stack((rotation, (-0.004, -0.076, -0.272)))
    return Camera(1242, 375, 721.0, (610.0, 173.0), rectify, velo_to_cam)


def box_corners(box: Array) -> Array:
    """Give the corners ``(8, 3)`` of a box ``(7,)``; corners whose indices differ in one bit share an edge."""
    signs = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]) - 0.5
    x, y, z = (signs * box[3:6]).T
    c, s = np.cos(box[6]), np.sin(box[6])
    return np.stack((c * x - s * y, s * x + c * y, z), axis=1) + box[:3]
