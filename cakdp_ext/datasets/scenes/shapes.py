"""Where does a ray from the sensor enter and leave a solid?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
HEXAHEDRON = ((0, 1, 2), (4, 5, 6), (0, 1, 5), (1, 2, 6), (2, 3, 7), (3, 0, 4))


def yaw_matrix(yaw: float) -> Array:
    """Give the ``(3, 3)`` rotation about +z, counter-clockwise, by ``yaw`` radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


class Shape(Protocol):
    """A convex solid that rays from the origin can be cast against."""

    @property
    def hull_points(self) -> Array:
        """Points ``(V, 3)`` whose convex hull holds the solid."""
        ...

    def placed(self, rotation: Array, translation: Array) -> Shape:
        """Give the solid rotated by ``(3, 3)`` and then moved by ``(3,)``."""
        ...

    def intersect(self, directions: Array) -> tuple[Array, Array]:
        """Cast rays from the origin.

        Args:
            directions: ``(3, ...)`` unit vectors.

        Returns:
            Distances ``(...)`` in metres where each ray enters and leaves; both infinite for a ray that misses, or
            when the origin lies inside.
        """
        ...


@dataclass(frozen=True)
class Polyhedron:
    """A convex polyhedron as an intersection of half-spaces ``normals @ p <= offsets``.

    Attributes:
        vertices: ``(V, 3)`` metres.
        normals: ``(F, 3)`` unit vectors pointing out.
        offsets: ``(F,)`` metres.
    """

    vertices: Array
    normals: Array
    offsets: Array

    @classmethod
    def from_faces(cls, vertices: Array, faces: Sequence[Sequence[int]]) -> Polyhedron:
        """Build from vertices ``(V, 3)`` and, for every face, the indices of three of its vertices."""
        corners = vertices[np.array(faces)]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        to_face = corners[:, 0] - vertices.mean(axis=0)
        normals *= np.sign(np.sum(normals * to_face, axis=1, keepdims=True))
        return cls(vertices, normals, np.sum(normals * corners[:, 0], axis=1))

    @property
    def hull_points(self) -> Array:
        """Its vertices ``(V, 3)``."""
        return self.vertices

    def placed(self, rotation: Array, translation: Array) -> Polyhedron:
        """Give the solid rotated by ``(3, 3)`` and then moved by ``(3,)``."""
        normals = self.normals @ rotation.T
        return Polyhedron(self.vertices @ rotation.T + translation, normals, self.offsets + normals @ translation)

    def intersect(self, directions: Array) -> tuple[Array, Array]:
        """Cast rays from the origin along ``directions (3, ...)``; see ``Shape.intersect``."""
        enter = np.full(directions.shape[1:], -np.inf)
        leave = np.full(directions.shape[1:], np.inf)
        for normal, offset in zip(self.normals, self.offsets, strict=True):
            slope = normal[0] * directions[0] + normal[1] * directions[1] + normal[2] * directions[2]
            slope[np.abs(slope) < 1e-12] = 1e-12
            crossing = offset / slope
            outward = slope > 0
            np.minimum(leave, np.where(outward, crossing, np.inf), out=leave)
            np.maximum(enter, np.where(outward, -np.inf, crossing), out=enter)
        return _without_misses(enter, leave, (enter <= leave) & (enter > 0))


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid: the unit ball stretched along three perpendicular half axes.

    Attributes:
        center: ``(3,)`` metres.
        half_axes: ``(3, 3)``, one half axis a column, metres.
    """

    center: Array
    half_axes: Array

    @property
    def hull_points(self) -> Array:
        """The corners ``(8, 3)`` of its oriented bounding box."""
        signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
        return self.center + signs @ self.half_axes.T

    def placed(self, rotation: Array, translation: Array) -> Ellipsoid:
        """Give the solid rotated by ``(3, 3)`` and then moved by ``(3,)``."""
        return Ellipsoid(rotation @ self.center + translation, rotation @ self.half_axes)

    def intersect(self, directions: Array) -> tuple[Array, Array]:
        """Cast rays from the origin along ``directions (3, ...)``; see ``Shape.intersect``."""
        to_ball = (self.half_axes / np.sum(self.half_axes**2, axis=0)).T
        rays = np.einsum("ij,j...->i...", to_ball, directions)
        center = to_ball @ self.center
        along = np.einsum("i,i...->...", center, rays)
        squared = np.einsum("i...,i...->...", rays, rays)
        discriminant = along**2 - squared * (center @ center - 1.0)
        root = np.sqrt(np.maximum(discriminant, 0.0))
        enter, leave = (along - root) / squared, (along + root) / squared
        return _without_misses(enter, leave, (discriminant >= 0) & (enter > 0))


def _without_misses(enter: Array, leave: Array, hit: NDArray[np.bool_]) -> tuple[Array, Array]:
    return np.where(hit, enter, np.inf), np.where(hit, leave, np.inf)


def cuboid(center: Sequence[float], size: Sequence[float]) -> Polyhedron:
    """Build an axis-aligned box from its centre and its full sizes, metres."""
    half_x, half_y, half_z = np.asarray(size, dtype=float) / 2
    x, y, z = center
    return frustum((x - half_x, x + half_x, half_y), z - half_z, (x - half_x, x + half_x, half_y), z + half_z, y)


def frustum(
    bottom: tuple[float, float, float],
    z_bottom: float,
    top: tuple[float, float, float],
    z_top: float,
    y_center: float = 0.0,
) -> Polyhedron:
    """Build a solid between two rectangles, each ``(x_rear, x_front, half_width)`` at its height, metres."""
    rows = []
    for (rear, front, half), z in ((bottom, z_bottom), (top, z_top)):
        rows += [(rear, -half, z), (front, -half, z), (front, half, z), (rear, half, z)]
    return Polyhedron.from_faces(np.array(rows) + (0.0, y_center, 0.0), HEXAHEDRON)


def extrusion(profile: Array, thickness: float) -> Polyhedron:
    """Extrude a convex polygon ``(K, 2)`` of the xz plane, corners in order, by ``thickness`` metres about y = 0."""
    count = len(profile)
    sides = [(i, (i + 1) % count, count + i) for i in range(count)]
    layers = [np.insert(profile, 1, y, axis=1) for y in (-thickness / 2, thickness / 2)]
    return Polyhedron.from_faces(np.concatenate(layers), [*sides, (0, 1, 2), (count, count + 1, count + 2)])


def column(x: float, y: float, radius: float, z_bottom: float, z_top: float) -> Polyhedron:
    """Build a vertical eight-sided column."""
    angles = np.arange(8) * (np.pi / 4)
    ring = np.stack((x + radius * np.cos(angles), y + radius * np.sin(angles)), axis=1)
    layers = [np.insert(ring, 2, z, axis=1) for z in (z_bottom, z_top)]
    sides = [(i, (i + 1) % 8, 8 + i) for i in range(8)]
    return Polyhedron.from_faces(np.concatenate(layers), [*sides, (0, 1, 2), (8, 9, 10)])


def ellipsoid(center: Sequence[float], half_sizes: Sequence[float]) -> Ellipsoid:
    """Build an axis-aligned ellipsoid from its centre and half sizes, metres."""
    return Ellipsoid(np.asarray(center, dtype=float), np.diag(np.asarray(half_sizes, dtype=float)))


def limb(start: Sequence[float], end: Sequence[float], radius: float, radius_y: float | None = None) -> Ellipsoid:
    """Build a long ellipsoid whose tips are ``start`` and ``end``.

    Args:
        start: ``(3,)`` metres.
        end: ``(3,)`` metres, another point.
        radius: half width in metres.
        radius_y: half width across, towards y, where it differs.
    """
    first, last = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    half = (last - first) / 2
    axis = half / np.linalg.norm(half)
    away = np.array([0.0, 1.0, 0.0]) if abs(axis[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    across = away - axis * (away @ axis)
    across /= np.linalg.norm(across)
    width = radius if radius_y is None else radius_y
    half_axes = np.stack((half, across * width, np.cross(axis, across) * radius), axis=1)
    return Ellipsoid((first + last) / 2, half_axes)
