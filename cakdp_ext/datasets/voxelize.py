"""Points to voxels, by spconv's own generator."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from cakdp_ext.types import LidarGeometry, MissingSpconvError

Voxels = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Voxelizer:
    """Cuts points into voxels.

    spconv's generator holds buffers that can be neither pickled nor shared, so each process makes its own when it
    first needs it.

    Attributes:
        geometry: range and voxel size.
        max_points: points kept a voxel; the first ones, in the order of the points.
        max_voxels: voxels kept; points that would open another one are dropped.
    """

    geometry: LidarGeometry
    max_points: int
    max_voxels: int

    def __post_init__(self) -> None:
        self._owner: int | None = None
        self._generator: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_owner": None, "_generator": None}

    def __call__(self, points: np.ndarray) -> Voxels:
        """Cut one frame.

        Args:
            points: ``(N, F)`` float32; those outside the range are ignored.

        Returns:
            ``(V, P, F)`` float32 points of each voxel, zero-padded; ``(V, 3)`` int32 z, y, x; ``(V,)`` int32 counts.
            V is 0 when no point lies in range.
        """
        if len(points) == 0:
            return self._no_voxels()
        generator, from_numpy = self._generator_of_process()
        voxels, coords, num_points = generator.point_to_voxel(from_numpy(np.ascontiguousarray(points, np.float32)))
        return voxels.numpy().copy(), coords.numpy().copy(), num_points.numpy().copy()

    def _no_voxels(self) -> Voxels:
        features = self.geometry.num_point_features
        return (
            np.zeros((0, self.max_points, features), dtype=np.float32),
            np.zeros((0, 3), dtype=np.int32),
            np.zeros(0, dtype=np.int32),
        )

    def _generator_of_process(self) -> tuple[Any, Any]:
        if self._owner != os.getpid():
            self._generator, self._owner = _make_generator(self), os.getpid()
        return self._generator


def _make_generator(settings: Voxelizer) -> tuple[Any, Any]:
    try:
        from cumm import tensorview
        from spconv.utils import Point2VoxelCPU3d
    except ImportError as error:
        raise MissingSpconvError.because(error) from error
    generator = Point2VoxelCPU3d(
        vsize_xyz=list(settings.geometry.voxel_size),
        coors_range_xyz=list(settings.geometry.point_cloud_range),
        num_point_features=settings.geometry.num_point_features,
        max_num_voxels=settings.max_voxels,
        max_num_points_per_voxel=settings.max_points,
    )
    return generator, tensorview.from_numpy
