"""From the range images of Waymo's LiDARs to points.

A range image is a full turn of one LiDAR: a row a beam, from the highest to the lowest, a column a direction, from
the one straight behind clockwise to itself. Source: Sun et al., CVPR 2020, and the comments in Waymo's dataset.proto.
"""

from __future__ import annotations

import numpy as np


def beam_inclinations(lowest: float, highest: float, num_rows: int) -> np.ndarray:
    """Spread beams evenly over an opening angle.

    Args:
        lowest: lower end of the opening, radians above the horizontal.
        highest: upper end.
        num_rows: beams; each sits in the middle of its share.

    Returns:
        ``(num_rows,)`` from the lowest to the highest, as calibrations list them.
    """
    return lowest + (np.arange(num_rows) + 0.5) / num_rows * (highest - lowest)


def rotations(angles: np.ndarray) -> np.ndarray:
    """Turn ``(..., 3)`` roll, pitch, yaw (about x, then y, then z, radians) into matrices ``(..., 3, 3)``."""
    (cx, cy, cz), (sx, sy, sz) = (np.moveaxis(f(angles), -1, 0) for f in (np.cos, np.sin))
    rows = (
        (cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz),
        (cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz),
        (-sy, sx * cy, cx * cy),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def to_vehicle(
    ranges: np.ndarray,
    inclinations: np.ndarray,
    extrinsic: np.ndarray,
    pixel_poses: np.ndarray | None = None,
    frame_pose: np.ndarray | None = None,
) -> np.ndarray:
    """Place every pixel in the vehicle's frame.

    Args:
        ranges: ``(H, W)`` metres.
        inclinations: ``(H,)`` radians above the horizontal, row by row.
        extrinsic: ``(4, 4)`` from the LiDAR's frame to the vehicle's.
        pixel_poses: ``(H, W, 6)`` roll, pitch, yaw, x, y, z of the vehicle in the world when each pixel was seen;
            None for a LiDAR whose turn counts as one moment.
        frame_pose: ``(4, 4)`` from the vehicle's frame to the world's at the frame's own moment; needed with
            ``pixel_poses``.

    Returns:
        ``(H, W, 3)`` metres.
    """
    width = ranges.shape[1]
    turned = np.arctan2(extrinsic[1, 0], extrinsic[0, 0])  # azimuths count from the vehicle's axis, not the LiDAR's
    azimuths = np.pi * (1 - (2 * np.arange(width) + 1) / width) - turned
    flat, steep = np.cos(inclinations)[:, None], np.sin(inclinations)[:, None]
    level = np.ones(width)
    beams = np.stack((flat * np.cos(azimuths), flat * np.sin(azimuths), steep * level), axis=-1)
    points = (ranges[..., None] * beams) @ extrinsic[:3, :3].T + extrinsic[:3, 3]
    if pixel_poses is None or frame_pose is None:
        return np.asarray(points)
    world = np.einsum("hwij,hwj->hwi", rotations(pixel_poses[..., :3]), points) + pixel_poses[..., 3:]
    return np.asarray((world - frame_pose[:3, 3]) @ np.linalg.inv(frame_pose[:3, :3]).T)
