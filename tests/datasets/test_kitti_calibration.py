"""Calibration agrees with numbers worked out by hand and with a point-by-point reference."""

from __future__ import annotations

import numpy as np
import pytest
from kitti_frames import IMAGE_SHAPE, P2, R0, TO_CAMERA, TR

from cakdp_ext.datasets.kitti.calibration import Calibration, pad_parts, read_calibration_parts

GENERAL = Calibration.from_parts({"P2": P2, "R0_rect": R0, "Tr_velo_to_cam": TR})
AXES_ONLY = Calibration.from_parts(
    {
        "P2": np.array(((700.0, 0, 600, 45), (0, 700, 180, 0.2), (0, 0, 1, 0.003))),
        "R0_rect": np.eye(3),
        "Tr_velo_to_cam": np.array(((0.0, -1, 0, 0), (0, 0, -1, -0.08), (1, 0, 0, -0.27))),
    }
)


def test_a_point_ahead_left_and_below_by_hand():
    point = np.array(((10.0, 2.0, -1.0),))
    in_camera = np.array(((-2.0, 0.92, 9.73),))
    np.testing.assert_allclose(AXES_ONLY.to_camera(point), in_camera)
    np.testing.assert_allclose(AXES_ONLY.to_lidar(in_camera), point)
    pixel = ((700 * -2 + 600 * 9.73 + 45) / 9.73, (700 * 0.92 + 180 * 9.73 + 0.2) / 9.73)
    np.testing.assert_allclose(AXES_ONLY.to_image(in_camera), [pixel])


def test_lidar_to_camera_and_back():
    points = np.random.default_rng(0).uniform(-50, 50, (100, 3))
    np.testing.assert_allclose(GENERAL.to_lidar(GENERAL.to_camera(points)), points, atol=1e-9)
    np.testing.assert_allclose(GENERAL.to_camera(points), (np.c_[points, np.ones(100)] @ TO_CAMERA.T)[:, :3])


def test_field_of_view_point_by_point_points_behind_included():
    points = np.random.default_rng(1).uniform((-30, -30, -3), (40, 30, 3), (3000, 3)).astype(np.float32)
    expected = []
    for x, y, z in points.astype(float):
        a, b, depth = (R0 @ (TR @ (x, y, z, 1))).tolist()
        u, v = (P2[0] @ (a, b, depth, 1)) / depth, (P2[1] @ (a, b, depth, 1)) / depth
        expected.append(depth > 0 and 0 <= u < IMAGE_SHAPE[1] and 0 <= v < IMAGE_SHAPE[0])
    assert 0 < sum(expected) < 3000
    np.testing.assert_array_equal(GENERAL.in_image(points, np.array(IMAGE_SHAPE, np.int32)), expected)


def test_no_points():
    assert GENERAL.in_image(np.zeros((0, 3), np.float32), np.array(IMAGE_SHAPE)).shape == (0,)
    assert GENERAL.to_image(np.zeros((0, 3))).shape == (0, 2)


def test_a_plane_holds_the_same_points_in_both_frames():
    plane = np.array((0.02, -0.999, 0.01, 1.65))
    x, z = np.random.default_rng(2).uniform(-20, 20, (2, 50))
    on_plane = np.stack((x, -(plane[0] * x + plane[2] * z + plane[3]) / plane[1], z), axis=1)
    a, b, c, d = GENERAL.plane_to_lidar(plane)
    np.testing.assert_allclose(GENERAL.to_lidar(on_plane) @ (a, b, c) + d, 0, atol=1e-9)


def test_padded_parts_describe_the_same_transforms():
    padded = pad_parts({"P2": P2, "R0_rect": R0, "Tr_velo_to_cam": TR})
    again = Calibration.from_parts(padded)
    assert {matrix.shape for matrix in padded.values()} == {(4, 4)}
    np.testing.assert_allclose(again.lidar_to_camera, GENERAL.lidar_to_camera, atol=1e-6)
    np.testing.assert_allclose(again.projection, GENERAL.projection, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P2: 1 2 3\n", r"P2 must be 12 numbers"),
        ("P2: " + "x " * 12 + "\n", r"P2 must be 12 numbers"),
        ("P0: 1\n", r"no entry P2; it has P0"),
        ("", r"no entry P2; it has none"),
        ("P2: " + "1 " * 12 + "\nR0_rect: " + "1 " * 9, "no entry Tr_velo_to_cam"),
    ],
)
def test_a_bad_calibration_file_is_named(tmp_path, text, message):
    path = tmp_path / "000000.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"000000\.txt.*{message}"):
        read_calibration_parts(path)
