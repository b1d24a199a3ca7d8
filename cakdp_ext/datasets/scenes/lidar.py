"""What does the sensor return?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cakdp_ext.datasets.scenes.config import LidarConfig
from cakdp_ext.datasets.scenes.scene import Part, Scene
from cakdp_ext.datasets.scenes.shapes import Array

BACKGROUND = -1
Window = tuple[slice, slice]


@dataclass(frozen=True)
class RangeImage:
    """What every shot meets first, without noise; E beams, A azimuths.

    Attributes:
        depth: ``(E, A)`` metres along the ray, infinite where nothing is met.
        owner: ``(E, A)`` index of the object that is met, -1 for everything else.
        reflectance: ``(E, A)`` in [0, 1].
        absorption: ``(E, A)`` probability that the shot gives no return.
        rays_alone: ``(M,)`` shots that would meet each object if it stood alone.
        rays_visible: ``(M,)`` shots that do meet it.
    """

    depth: Array
    owner: NDArray[np.int64]
    reflectance: Array
    absorption: Array
    rays_alone: NDArray[np.int64]
    rays_visible: NDArray[np.int64]


@dataclass(frozen=True)
class Returns:
    """The point cloud.

    Attributes:
        points: ``(N, 4)`` float32 x, y, z in metres and intensity in [0, 1], LiDAR frame.
        owner: ``(N,)`` index of the object that each belongs to, -1 for everything else.
    """

    points: NDArray[np.float32]
    owner: NDArray[np.int64]


class Lidar:
    """A grid of shots that leave the origin: E beams from top to bottom, A azimuths from right to left."""

    def __init__(self, config: LidarConfig) -> None:
        self.config = config
        top, middle, bottom = config.elevations
        upper = config.beams // 2
        angles = (np.linspace(top, middle, upper, endpoint=False), np.linspace(middle, bottom, config.beams - upper))
        self.elevations: Array = np.deg2rad(np.concatenate(angles))
        count = int(round(config.field_of_view / config.azimuth_step))
        self.step = float(np.deg2rad(config.field_of_view / count))
        self.azimuths: Array = np.linspace(-0.5, 0.5, count) * (count - 1) * self.step
        flat, steep = np.cos(self.elevations)[:, None], np.sin(self.elevations)[:, None]
        level = np.ones(count)
        self.directions: Array = np.stack(
            (flat * np.cos(self.azimuths), flat * np.sin(self.azimuths), steep * level), axis=0
        )

    def windows(self, hull_points: Array) -> Iterator[Window]:
        """Find the part of the grid outside which no shot meets the convex hull of some points ``(V, 3)``.

        Yields:
            At most two windows (two where the hull lies behind the sensor, across the ends of the grid).
        """
        radius = np.hypot(hull_points[:, 0], hull_points[:, 1])
        bearing = float(np.arctan2(*hull_points[:, 1::-1].mean(axis=0)))
        nearest = _horizontal_distance(hull_points[:, :2], bearing)
        low, high = float(hull_points[:, 2].min()), float(hull_points[:, 2].max())
        farthest = float(radius.max())
        above = np.arctan2(high, nearest if high > 0 else farthest)
        below = np.arctan2(low, nearest if low < 0 else farthest)
        rows = slice(*np.searchsorted(-self.elevations, (-above - 1e-9, -below + 1e-9)).tolist())
        if rows.start == rows.stop:
            return
        if nearest <= 0:
            yield rows, slice(0, len(self.azimuths))
            return
        turn = np.arctan2(hull_points[:, 1], hull_points[:, 0]) - bearing
        turn -= 2 * np.pi * np.round(turn / (2 * np.pi))
        for lap in (-2 * np.pi, 0.0, 2 * np.pi):
            ends = (bearing + turn.min() + lap - 1e-9, bearing + turn.max() + lap + 1e-9)
            columns = slice(*np.searchsorted(self.azimuths, ends).tolist())
            if columns.start < columns.stop:
                yield rows, columns

    def cast(self, scene: Scene, rng: np.random.Generator) -> RangeImage:
        """Cast every shot at the whole scene, and at every object alone.

        Args:
            scene: what stands there.
            rng: decides how far shots get into leaves and spokes.
        """
        image = self._ground_image(scene)
        for part in scene.clutter:
            for window, depth in self._hits(part, rng):
                _keep_nearer(image, window, depth, part, BACKGROUND)
        for index, item in enumerate(scene.objects):
            alone = np.zeros(image.depth.shape, dtype=bool)
            for part in item.parts:
                for window, depth in self._hits(part, rng):
                    alone[window] |= np.isfinite(depth)
                    _keep_nearer(image, window, depth, part, index)
            image.rays_alone[index] = alone.sum()
        image.rays_visible[:] = np.bincount(image.owner[image.owner >= 0], minlength=len(scene.objects))
        return image

    def measure(self, image: RangeImage, rng: np.random.Generator) -> Returns:
        """Turn what the shots meet into a point cloud: noise, absorption, dropout and the limit of the range."""
        config = self.config
        near = image.depth < config.max_range
        depth = image.depth[near]
        lost = config.dropout * (1.0 + 3.0 * (depth / config.max_range) ** 2)
        kept = rng.random(depth.shape) >= 1.0 - (1.0 - lost) * (1.0 - image.absorption[near])
        depth, reflectance = depth[kept], image.reflectance[near][kept]
        depth = depth + config.range_noise * rng.standard_normal(depth.shape)
        faded = reflectance * (1.0 - 0.4 * depth / config.max_range)
        intensity = (faded + config.intensity_noise * rng.standard_normal(depth.shape)).clip(0.0, 1.0)
        positions = self.directions[:, near][:, kept] * depth
        points = np.concatenate((positions, intensity[None])).T.astype(np.float32)
        return Returns(np.ascontiguousarray(points), image.owner[near][kept])

    def _ground_image(self, scene: Scene) -> RangeImage:
        depth = scene.ground.intersect(self.directions)
        met = depth < self.config.max_range
        reflectance = np.zeros(depth.shape)
        x, y = self.directions[0][met] * depth[met], self.directions[1][met] * depth[met]
        reflectance[met] = scene.ground_reflectance(x, y)
        counts = np.zeros((2, len(scene.objects)), dtype=np.int64)
        owner = np.full(depth.shape, BACKGROUND, dtype=np.int64)
        return RangeImage(depth, owner, reflectance, np.zeros(depth.shape), counts[0], counts[1])

    def _hits(self, part: Part, rng: np.random.Generator) -> Iterator[tuple[Window, Array]]:
        for window in self.windows(part.shape.hull_points):
            enter, leave = part.shape.intersect(self.directions[:, window[0], window[1]])
            if part.free_path > 0:
                stop = enter + rng.exponential(part.free_path, size=enter.shape)
                enter = np.where(stop < leave, stop, np.inf)
            yield window, enter


def _keep_nearer(image: RangeImage, window: Window, depth: Array, part: Part, owner: int) -> None:
    nearer = depth < image.depth[window]
    image.depth[window][nearer] = depth[nearer]
    image.owner[window][nearer] = owner
    image.reflectance[window][nearer] = part.reflectance
    image.absorption[window][nearer] = part.absorption


def _horizontal_distance(points: Array, bearing: float) -> float:
    """Bound from below how far the convex hull of ``points (V, 2)`` is from the origin; 0 where it may hold it."""
    angles = bearing + np.linspace(-np.pi / 2, np.pi / 2, 17)
    along = points @ np.stack((np.cos(angles), np.sin(angles)))
    return max(float(along.min(axis=0).max()), 0.0)
