"""Labels are read as KITTI means them, and their boxes move between camera and LiDAR."""

from __future__ import annotations

import numpy as np
import pytest
from kitti_frames import IMAGE_SHAPE, P2, R0, TR, box_points, camera_points

from cakdp_ext.datasets.kitti.calibration import Calibration
from cakdp_ext.datasets.kitti.labels import (
    ObjectLabel,
    camera_to_lidar_boxes,
    image_boxes,
    label_columns,
    lidar_to_camera_boxes,
    read_labels,
)

CALIBRATION = Calibration.from_parts({"P2": P2, "R0_rect": R0, "Tr_velo_to_cam": TR})
LINE = "Car 0.10 1 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"
DONT_CARE = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"


def test_every_field_of_a_line():
    label = ObjectLabel.from_line(LINE)
    assert label == ObjectLabel(
        "Car", 0.1, 1.0, 1.85, (387.63, 181.54, 423.81, 203.12), (3.69, 1.67, 1.87), (-16.53, 2.39, 58.49), 1.57
    )
    assert ObjectLabel.from_line(LINE + " 0.75").score == 0.75


@pytest.mark.parametrize(
    ("height", "occluded", "truncated", "level"),
    [
        (40, 0, 0.15, 0),
        (39, 0, 0.0, 0),  # a box of edges 39 apart is 40 pixels high
        (38.9, 0, 0.0, 1),
        (60, 1, 0.0, 1),
        (60, 0, 0.30, 1),
        (24, 1, 0.30, 1),
        (60, 2, 0.0, 2),
        (60, 0, 0.5, 2),
        (23.9, 0, 0.0, -1),
        (60, 3, 0.0, -1),
        (60, 0, 0.51, -1),
    ],
)
def test_difficulty_at_the_limits(height, occluded, truncated, level):
    line = f"Car {truncated} {occluded} 0 100 100 150 {100 + height} 1.5 1.6 3.9 1 1.6 20 0"
    assert ObjectLabel.from_line(line).difficulty == level


def test_regions_to_ignore_come_last_and_have_no_index(tmp_path):
    path = tmp_path / "label.txt"
    path.write_text(f"{DONT_CARE}\n{LINE}\n\n{LINE.replace('Car', 'Van')}\n")
    columns = label_columns(read_labels(path))
    assert columns["name"].tolist() == ["Car", "Van", "DontCare"]
    assert columns["index"].tolist() == [0, 1, -1]


def test_a_frame_without_objects_has_empty_columns_of_the_right_shape(tmp_path):
    path = tmp_path / "label.txt"
    path.write_text("")
    columns = label_columns(read_labels(path))
    assert columns["bbox"].shape == (0, 4)
    assert columns["dimensions"].shape == columns["location"].shape == (0, 3)
    assert {len(column) for column in columns.values()} == {0}
    assert columns["name"].dtype.kind == "U"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Car 0.10 1 1.85", "expected 15 fields, or 16 with a score, got 4"),
        (LINE + " 0.5 0.5", "got 17"),
        (LINE.replace("58.49", "far"), "far"),
        (LINE.replace("58.49", "nan"), "finite"),
        (LINE.replace("58.49", "58\xff49"), "could not convert"),
    ],
)
def test_a_malformed_line_is_named_with_its_number(tmp_path, line, message):
    path = tmp_path / "000007.txt"
    path.write_text(f"{LINE}\n\n{line}\n", encoding="latin-1")
    with pytest.raises(ValueError, match=rf"000007\.txt:3: .*{message}"):
        read_labels(path)


def test_a_car_that_drives_to_the_right_of_the_image_heads_for_minus_y():
    axes_only = Calibration.from_parts(
        {"P2": P2, "R0_rect": np.eye(3), "Tr_velo_to_cam": np.array(((0, -1, 0, 0), (0, 0, -1, 0), (1, 0, 0, 0.0)))}
    )
    box = camera_to_lidar_boxes(
        np.array(((2.0, 1.6, 20.0),)), np.array(((3.9, 1.5, 1.6),)), np.array((0.0,)), axes_only
    )
    np.testing.assert_allclose(box, [(20, -2, -1.6 + 0.75, 3.9, 1.6, 1.5, -np.pi / 2)])


def test_lidar_boxes_survive_the_way_to_the_camera_and_back():
    boxes = np.random.default_rng(0).uniform((5, -20, -2, 1, 1, 1, -3), (60, 20, 0, 5, 3, 3, 3), (50, 7))
    again = camera_to_lidar_boxes(*lidar_to_camera_boxes(boxes, CALIBRATION), CALIBRATION)
    np.testing.assert_allclose(again[:, :6], boxes[:, :6], atol=1e-9)
    np.testing.assert_allclose(np.cos(again[:, 6] - boxes[:, 6]), 1)
    rotation_y = lidar_to_camera_boxes(boxes, CALIBRATION)[2]
    assert (-np.pi <= rotation_y).all()
    assert (rotation_y < np.pi).all()


def test_image_boxes_are_bounds_of_the_projected_corners():
    axes_only = Calibration.from_parts({"P2": P2, "R0_rect": np.eye(3), "Tr_velo_to_cam": TR})
    boxes = np.random.default_rng(1).uniform((8, -8, -1.5, 1, 1, 1, -3), (40, 8, 0, 5, 2, 2, 3), (20, 7))
    units = [(a, b, c) for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)]
    found = image_boxes(*lidar_to_camera_boxes(boxes, axes_only), axes_only, np.array(IMAGE_SHAPE))
    for box, got in zip(boxes, found, strict=True):
        pixels = []
        for corner in box_points(box, units):
            a, b, depth = TR @ (*corner, 1)
            pixels.append((P2[0] @ (a, b, depth, 1) / depth, P2[1] @ (a, b, depth, 1) / depth))
        u, v = np.clip(np.array(pixels), 0, (IMAGE_SHAPE[1] - 1, IMAGE_SHAPE[0] - 1)).T
        np.testing.assert_allclose(got, (u.min(), v.min(), u.max(), v.max()), atol=1e-6)


def test_a_box_beside_the_camera_reaches_the_edge_it_leaves_by():
    left_beside = np.array(((1.0, 3.0, -0.9, 4.0, 1.6, 1.5, 0.0),))
    box = image_boxes(*lidar_to_camera_boxes(left_beside, CALIBRATION), CALIBRATION, np.array(IMAGE_SHAPE))[0]
    assert camera_points(left_beside[:, :3] - (2, 0, 0))[0, 2] < 0
    assert box[0] == 0
    assert box[2] < IMAGE_SHAPE[1] / 2
