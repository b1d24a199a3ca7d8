"""What does the camera's picture look like? Cheap: it is there for its size, and for people to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cakdp_ext.datasets.scenes.camera import Camera
from cakdp_ext.datasets.scenes.lidar import Lidar, RangeImage
from cakdp_ext.datasets.scenes.shapes import Array

BLOCK = 6
SKY, UNKNOWN = 235, 60


class Painter:
    """Paints the depths of a range image as the camera would see them, in blocks of 6 x 6 pixels."""

    def __init__(self, camera: Camera, lidar: Lidar) -> None:
        self.camera = camera
        rows, columns = -(-camera.height // BLOCK), -(-camera.width // BLOCK)
        v, u = np.meshgrid(np.arange(rows) * BLOCK + BLOCK / 2, np.arange(columns) * BLOCK + BLOCK / 2, indexing="ij")
        (u0, v0), focal = camera.principal, camera.focal
        rays = np.stack(((u - u0) / focal, (v - v0) / focal, np.ones_like(u)), axis=-1)
        x, y, z = np.moveaxis(np.einsum("ji,...j->...i", camera.rotation, rays), -1, 0)
        self.row, above, below = _nearest(-np.arctan2(z, np.hypot(x, y)), -lidar.elevations)
        self.column, right, left = _nearest(np.arctan2(y, x), lidar.azimuths)
        self.sky, self.unknown = above, below | right | left

    def paint(self, image: RangeImage) -> NDArray[np.uint8]:
        """Give a grayscale picture ``(height, width)``: the nearer the darker, objects darkest."""
        depth = image.depth[self.row, self.column]
        shade = SKY - 170 * np.exp(-depth / 25.0)
        shade = np.where(image.owner[self.row, self.column] >= 0, shade * 0.55, shade)
        shade = np.where(self.sky, SKY, np.where(self.unknown, UNKNOWN, shade))
        blocks = (shade / 8).astype(np.uint8) * np.uint8(8)
        picture = np.repeat(np.repeat(blocks, BLOCK, axis=0), BLOCK, axis=1)
        return picture[: self.camera.height, : self.camera.width]


def _nearest(values: Array, ascending: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the index of the nearest entry, and what lies below the first and above the last one."""
    upper = np.searchsorted(ascending, values).clip(1, len(ascending) - 1)
    index = upper - (values - ascending[upper - 1] < ascending[upper] - values)
    return index, values < ascending[0] - 0.01, values > ascending[-1] + 0.01
