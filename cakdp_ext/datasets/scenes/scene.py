"""What stands in a scene?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cakdp_ext.datasets.scenes.shapes import Array, Shape, yaw_matrix


@dataclass(frozen=True)
class Part:
    """A solid and what it does to a ray.

    Attributes:
        shape: where it is.
        reflectance: share of the light that comes back, in [0, 1].
        free_path: mean way in metres that a ray goes inside before it is stopped; 0 for opaque surfaces, above 0 for
            leaves and spokes, which rays may pass.
        absorption: share of the rays that are stopped without a return, as by windows.
    """

    shape: Shape
    reflectance: float
    free_path: float = 0.0
    absorption: float = 0.0


def placed_parts(parts: tuple[Part, ...], position: Array, heading: float) -> tuple[Part, ...]:
    """Move parts from their own frame to a position ``(3,)`` and a heading in radians."""
    rotation = yaw_matrix(heading)
    return tuple(
        Part(part.shape.placed(rotation, position), part.reflectance, part.free_path, part.absorption) for part in parts
    )


@dataclass(frozen=True)
class SceneObject:
    """An object that KITTI would label.

    Attributes:
        name: KITTI's type, e.g. ``Car``.
        box: ``(7,)`` x, y, z of the centre, dx, dy, dz, heading; LiDAR frame.
        parts: in the LiDAR frame.
    """

    name: str
    box: Array
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Ground:
    """A tilted plane with a little unevenness.

    Attributes:
        normal: ``(3,)`` unit vector pointing up, LiDAR frame.
        height: metres of the sensor above the plane, along the normal.
        waves: ``(W, 4)`` amplitude in metres, wave numbers along x and y in radians a metre, phase.
    """

    normal: Array
    height: float
    waves: Array

    def elevation_at(self, x: float, y: float) -> float:
        """Give z of the plane, without its unevenness, under a point of the LiDAR frame."""
        return float(-(self.height + self.normal[0] * x + self.normal[1] * y) / self.normal[2])

    def intersect(self, directions: Array) -> Array:
        """Cast rays ``(3, ...)`` from the origin; distances ``(...)``, infinite for rays that point up."""
        slope = np.einsum("i,i...->...", self.normal, directions)
        slope = np.where(slope < -1e-6, slope, np.nan)
        flat = -self.height / slope
        x, y = flat * directions[0], flat * directions[1]
        bump = np.zeros_like(flat)
        for amplitude, along_x, along_y, phase in self.waves:
            bump += amplitude * np.sin(along_x * x + along_y * y + phase)
        return np.nan_to_num(flat + bump / slope, nan=np.inf)


@dataclass(frozen=True)
class Scene:
    """One frame before the sensor looks at it; everything in the LiDAR frame, the sensor at the origin.

    Attributes:
        ground: the plane that everything stands on.
        ground_reflectance: gives the reflectance at x, y (arrays of one shape).
        objects: what is labelled.
        clutter: everything else.
    """

    ground: Ground
    ground_reflectance: Callable[[Array, Array], Array]
    objects: tuple[SceneObject, ...]
    clutter: tuple[Part, ...]
