"""Changes of the whole frame move points and boxes together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kitti_frames import box_points

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets.augmentation import build_augmentors, flip, rotate, scale, translate
from cakdp_ext.datasets.frame import RawFrame

UNIT_CORNERS = np.array([(a, b, c) for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)])
CHANGES = {
    "flip x": lambda frame: flip(frame, "x"),
    "flip y": lambda frame: flip(frame, "y"),
    "rotate": lambda frame: rotate(frame, 0.7),
    "scale": lambda frame: scale(frame, 1.05),
    "translate": lambda frame: translate(frame, np.array((1.0, -2.0, 0.5))),
}
WORLD = [
    {"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["x", "y"]},
    {"NAME": "random_world_rotation", "WORLD_ROT_ANGLE": [-0.78, 0.78]},
    {"NAME": "random_world_scaling", "WORLD_SCALE_RANGE": [0.95, 1.05]},
    {"NAME": "random_world_translation", "NOISE_TRANSLATE_STD": [0.5, 0.5, 0.2]},
]


def frame_of(rng, num_boxes=6):
    boxes = rng.uniform((5, -20, -1, 1, 1, 1, -3), (60, 20, 0, 5, 3, 3, 3), (num_boxes, 7))
    points = np.concatenate([rng.uniform((0, -30, -3), (60, 30, 1), (500, 3)), *(inner(box, rng) for box in boxes)])
    points = np.c_[points, rng.random(len(points))].astype(np.float32)
    return RawFrame(points, boxes, np.array(["Car"] * num_boxes), np.array((0, 0, 1, 1.7)))


def inner(box, rng):
    return box_points(box, rng.uniform(-0.45, 0.45, (30, 3)))


def membership(frame, margin):
    rows = []
    for x, y, z, dx, dy, dz, heading in frame.boxes:
        offset = frame.points[:, :3] - np.array((x, y, z))
        cos, sin = np.cos(heading), np.sin(heading)
        local = np.stack(
            (offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin, offset[:, 2])
        )
        rows.append((np.abs(local).T - np.array((dx, dy, dz)) / 2).max(axis=1) < margin)
    return np.array(rows)


@pytest.mark.parametrize("name", CHANGES)
def test_points_stay_in_their_boxes(name):
    frame = frame_of(np.random.default_rng(0))
    changed = CHANGES[name](frame)
    inside, undecided = membership(frame, 0), membership(frame, -1e-3) ^ membership(frame, 1e-3)
    assert inside.sum() > 6 * 30 - 1
    np.testing.assert_array_equal(membership(changed, 0)[~undecided], inside[~undecided])


@pytest.mark.parametrize("name", CHANGES)
def test_corners_of_boxes_move_as_points_do(name):
    frame = frame_of(np.random.default_rng(1))
    corners = np.concatenate([box_points(box, UNIT_CORNERS) for box in frame.boxes])
    moved = CHANGES[name](RawFrame(corners, frame.boxes, frame.names))
    expected = moved.points.reshape(-1, 8, 3)
    found = np.array([box_points(box, UNIT_CORNERS) for box in moved.boxes])
    nearest = np.linalg.norm(found[:, :, None] - expected[:, None], axis=-1).min(axis=2)
    np.testing.assert_allclose(nearest, 0, atol=1e-9)
    fronts = np.concatenate([box_points(box, [(0.5, 0, 0)]) for box in frame.boxes])
    moved_fronts = CHANGES[name](RawFrame(fronts, frame.boxes, frame.names)).points
    np.testing.assert_allclose([box_points(box, [(0.5, 0, 0)])[0] for box in moved.boxes], moved_fronts, atol=1e-9)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_flipping_twice_changes_nothing(axis):
    frame = frame_of(np.random.default_rng(2))
    twice = flip(flip(frame, axis), axis)
    np.testing.assert_array_equal(twice.points, frame.points)
    np.testing.assert_allclose(twice.boxes, frame.boxes)


def test_turning_by_90_degrees_by_hand():
    frame = RawFrame(np.array(((1, 0, 2, 0.5),), np.float32), np.array(((1.0, 0, 2, 4, 2, 1, 0),)), np.array(["Car"]))
    turned = rotate(frame, np.pi / 2)
    np.testing.assert_allclose(turned.points, [(0, 1, 2, 0.5)], atol=1e-7)
    np.testing.assert_allclose(turned.boxes, [(0, 1, 2, 4, 2, 1, np.pi / 2)], atol=1e-12)


@pytest.mark.parametrize("name", CHANGES)
def test_the_frame_given_is_left_as_it_is_and_its_road_is_forgotten(name):
    frame = frame_of(np.random.default_rng(3))
    points, boxes = frame.points.copy(), frame.boxes.copy()
    changed = CHANGES[name](frame)
    np.testing.assert_array_equal(frame.points, points)
    np.testing.assert_array_equal(frame.boxes, boxes)
    np.testing.assert_array_equal(changed.points[:, 3], points[:, 3])
    assert changed.points.dtype == np.float32
    assert changed.ground is None


@pytest.mark.parametrize("name", CHANGES)
def test_an_empty_frame_comes_through(name):
    empty = RawFrame(np.zeros((0, 4), np.float32), np.zeros((0, 7)), np.zeros(0, dtype=str))
    changed = CHANGES[name](empty)
    assert changed.points.shape == (0, 4)
    assert changed.boxes.shape == (0, 7)


def run(entries, seed, frame):
    rng = np.random.default_rng(seed)
    for augment in build_augmentors({"AUG_CONFIG_LIST": entries}, ["Car"], Path()):
        frame = augment(frame, rng)
    return frame


def test_what_is_drawn_stays_in_the_configured_limits_and_varies():
    frame = RawFrame(np.array(((10, 0, 0, 0),), np.float32), np.zeros((0, 7)), np.zeros(0, dtype=str))
    turned = np.array([run(WORLD[1:3], seed, frame).points[0] for seed in range(300)])
    angle, radius = np.arctan2(turned[:, 1], turned[:, 0]), np.hypot(turned[:, 0], turned[:, 1])
    assert -0.78 <= angle.min() < -0.7
    assert 0.7 < angle.max() <= 0.7801
    assert 9.5 <= radius.min() + 1e-5
    assert radius.min() < 9.55
    assert 10.45 < radius.max() <= 10.5 + 1e-5
    flipped = [
        run(WORLD[:1], seed, RawFrame(np.array(((3, 2, 0),), np.float32), frame.boxes, frame.names))
        for seed in range(400)
    ]
    signs = np.array([np.sign(each.points[0, :2]) for each in flipped])
    shares = [((signs == (a, b)).all(axis=1)).mean() for a in (1, -1) for b in (1, -1)]
    np.testing.assert_allclose(shares, 0.25, atol=0.09)


def test_one_angle_means_both_directions():
    frame = RawFrame(np.array(((10, 0, 0, 0),), np.float32), np.zeros((0, 7)), np.zeros(0, dtype=str))
    entry = {"NAME": "random_world_rotation", "WORLD_ROT_ANGLE": 0.5}
    angles = [np.arctan2(*run([entry], seed, frame).points[0, 1::-1]) for seed in range(50)]
    assert -0.5 <= min(angles) < 0 < max(angles) <= 0.5


def test_disabled_augmentors_are_left_out_even_without_their_files():
    entries = [{"NAME": "gt_sampling"}, *WORLD]
    node = {"AUG_CONFIG_LIST": entries, "DISABLE_AUG_LIST": ["gt_sampling", "random_world_flip"]}
    assert len(build_augmentors(node, ["Car"], Path())) == 3
    assert build_augmentors(None, ["Car"], Path()) == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"NAME": "random_local_noise"}, "unknown augmentor 'random_local_noise'.*gt_sampling, random_world_flip"),
        ({"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["z"]}, "ALONG_AXIS_LIST may hold x and y, got z"),
        ({"NAME": "random_world_flip", "AXES": ["x"]}, "unknown key AXES.*valid keys: ALONG_AXIS_LIST"),
        ({"NAME": "random_world_flip"}, "along_axis_list"),
        ({"NAME": "random_world_scaling", "WORLD_SCALE_RANGE": [1.05, 0.95]}, "smallest, largest"),
        ({"NAME": "random_world_rotation", "WORLD_ROT_ANGLE": [0.1]}, "smallest, largest"),
        ({"NAME": "random_world_translation", "NOISE_TRANSLATE_STD": [0.1]}, "three numbers"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(entry, message):
    with pytest.raises(ConfigError, match=message):
        build_augmentors({"AUG_CONFIG_LIST": [entry]}, ["Car"], Path())
