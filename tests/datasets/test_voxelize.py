"""Voxels hold the points that a dictionary puts into them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cakdp_ext.datasets.voxelize import Voxelizer
from cakdp_ext.types import LidarGeometry

GEOMETRY = LidarGeometry((0, -4, -3, 8, 4, 1), (0.5, 0.25, 1.0))


def by_dictionary(points, geometry, max_points, max_voxels):
    """Fill voxels point by point, in the order of the points."""
    low, size = np.array(geometry.point_cloud_range[:3], np.float32), np.array(geometry.voxel_size, np.float32)
    voxels: dict[tuple[int, ...], list[np.ndarray]] = {}
    for point in points:
        index = np.floor((point[:3] - low) / size).astype(int)
        if (index < 0).any() or (index >= geometry.grid_size).any():
            continue
        key = tuple(index[::-1].tolist())
        if key not in voxels and len(voxels) == max_voxels:
            continue
        held = voxels.setdefault(key, [])
        if len(held) < max_points:
            held.append(point)
    return voxels


def assert_same(found, expected, max_points, features):
    voxels, coords, num_points = found
    assert voxels.shape == (len(expected), max_points, features)
    assert coords.shape == (len(expected), 3)
    assert (voxels.dtype, coords.dtype, num_points.dtype) == (np.float32, np.int32, np.int32)
    rows = dict(zip(map(tuple, coords.tolist()), zip(voxels, num_points, strict=True), strict=True))
    assert rows.keys() == expected.keys()
    for key, held in expected.items():
        voxel, count = rows[key]
        assert count == len(held)
        np.testing.assert_array_equal(voxel[:count], held)
        assert not voxel[count:].any()


@pytest.mark.parametrize(("max_points", "max_voxels"), [(5, 10000), (1, 10000), (5, 60), (200, 1)])
def test_agrees_with_a_dictionary(max_points, max_voxels):
    points = np.random.default_rng(0).uniform((-1, -5, -4, 0), (9, 5, 2, 1), (3000, 4)).astype(np.float32)
    found = Voxelizer(GEOMETRY, max_points, max_voxels)(points)
    assert_same(found, by_dictionary(points, GEOMETRY, max_points, max_voxels), max_points, 4)


def test_more_features_than_coordinates():
    geometry = LidarGeometry(GEOMETRY.point_cloud_range, GEOMETRY.voxel_size, num_point_features=6)
    points = np.random.default_rng(1).uniform((0, -4, -3, 0, 0, 0), (8, 4, 1, 1, 1, 1), (500, 6)).astype(np.float32)
    assert_same(Voxelizer(geometry, 5, 9999)(points), by_dictionary(points, geometry, 5, 9999), 5, 6)


@pytest.mark.parametrize("points", [np.zeros((0, 4), np.float32), np.full((7, 4), 99, np.float32)])
def test_no_point_in_range_gives_no_voxels(points):
    voxels, coords, num_points = Voxelizer(GEOMETRY, 5, 100)(points)
    assert (voxels.shape, coords.shape, num_points.shape) == ((0, 5, 4), (0, 3), (0,))
    assert (voxels.dtype, coords.dtype, num_points.dtype) == (np.float32, np.int32, np.int32)


def test_a_frame_does_not_change_the_one_before():
    voxelizer = Voxelizer(GEOMETRY, 5, 100)
    rng = np.random.default_rng(2)
    first, second = (rng.uniform((0, -4, -3, 0), (8, 4, 1, 1), (300, 4)).astype(np.float32) for _ in range(2))
    voxels, coords, _ = voxelizer(first)
    kept = voxels.copy(), coords.copy()
    voxelizer(second)
    np.testing.assert_array_equal(voxels, kept[0])
    np.testing.assert_array_equal(coords, kept[1])


def test_a_copy_in_another_process_makes_its_own_generator():
    voxelizer = Voxelizer(GEOMETRY, 5, 100)
    points = np.random.default_rng(3).uniform((0, -4, -3, 0), (8, 4, 1, 1), (300, 4)).astype(np.float32)
    before = voxelizer(points)
    for found, expected in zip(pickle.loads(pickle.dumps(voxelizer))(points), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.real_data
def test_agrees_with_a_dictionary_on_a_real_frame(real_kitti):
    points = np.fromfile(real_kitti / "training" / "velodyne" / "000008.bin", np.float32).reshape(-1, 4)
    points = points[(points[:, 0] > 0) & (np.abs(points[:, 1]) < 10)][:5000]
    geometry = LidarGeometry((0, -40, -3, 70.4, 40, 1), (0.05, 0.05, 0.1))
    assert_same(Voxelizer(geometry, 5, 1500)(points), by_dictionary(points, geometry, 5, 1500), 5, 4)
