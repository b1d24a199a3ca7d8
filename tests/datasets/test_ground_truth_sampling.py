"""Pasted objects stand free, on the road, and nothing of the scene remains inside them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from kitti_frames import ROAD, SIZES, write_kitti_frames
from shapely.geometry import Polygon

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets import make_infos
from cakdp_ext.datasets.frame import RawFrame
from cakdp_ext.datasets.ground_truth_sampling import GroundTruthSampler, free_of_collision, lift_onto_ground
from cakdp_ext.pickles import dump_arrays, load_arrays

CLASSES = ["Car", "Pedestrian", "Cyclist"]
SETTINGS = {
    "USE_ROAD_PLANE": True,
    "DB_INFO_PATH": ["kitti_dbinfos_train.pkl"],
    "PREPARE": {"filter_by_min_points": ["Car:5"], "filter_by_difficulty": [-1]},
    "SAMPLE_GROUPS": ["Car:5", "Pedestrian:4", "Cyclist:3"],
    "LIMIT_WHOLE_SCENE": True,
}


@pytest.fixture(scope="module")
def database_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("database")
    write_kitti_frames(root, [f"{i:06}" for i in range(12)])
    make_infos(root, num_workers=1)
    return root


@pytest.fixture
def sampler(database_root):
    return GroundTruthSampler.from_node(SETTINGS, CLASSES, database_root)


def scene(names=(), boxes=(), ground=(0.0, 0.0, 1.0, ROAD)):
    rng = np.random.default_rng(9)
    points = rng.uniform((0, -30, -ROAD, 0), (40, 30, 1.5, 1), (4000, 4)).astype(np.float32)
    return RawFrame(
        points, np.array(boxes, dtype=np.float64).reshape(-1, 7), np.array(names, dtype=str), np.array(ground)
    )


def footprint(box):
    cos, sin = np.cos(box[6]), np.sin(box[6])
    corners = [(a * box[3] / 2, b * box[4] / 2) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    return Polygon([(box[0] + a * cos - b * sin, box[1] + a * sin + b * cos) for a, b in corners])


def local(points, box):
    offset = points[:, :3] - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    turned = np.stack((offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin, offset[:, 2]))
    return np.abs(turned).T / (box[3:6] / 2)


@pytest.mark.parametrize("seed", range(5))
def test_pasted_objects_overlap_nothing(sampler, seed):
    van = (18.0, 0.0, -0.6, *SIZES["Van"], 0.3)
    frame = sampler(scene(["Van"], [van]), np.random.default_rng(seed))
    shapes = [footprint(box) for box in frame.boxes]
    assert len(shapes) > 3
    for i, shape in enumerate(shapes):
        assert all(shape.intersection(other).area < 1e-9 for other in shapes[:i])


def test_counts_include_the_objects_that_are_there(sampler):
    far = [(60.0 + 6 * i, 35.0, -1.0, *SIZES["Car"], 0.0) for i in range(4)]
    for seed in range(10):
        frame = sampler(scene(["Car"] * 4, far), np.random.default_rng(seed))
        counts = {name: int((frame.names == name).sum()) for name in CLASSES}
        assert counts["Car"] <= 5
        assert counts["Pedestrian"] <= 4
        assert counts["Cyclist"] <= 3
        np.testing.assert_array_equal(frame.boxes[:4], far)
    full = sampler(scene(["Car"] * 9, np.tile(far[0], (9, 1))), np.random.default_rng(0))
    assert (full.names == "Car").sum() == 9


def test_without_the_limit_the_count_comes_on_top(database_root):
    node = {**SETTINGS, "LIMIT_WHOLE_SCENE": False, "SAMPLE_GROUPS": ["Car:12"]}
    sampler = GroundTruthSampler.from_node(node, CLASSES, database_root)
    far = [(60.0 + 6 * i, 35.0, -1.0, *SIZES["Car"], 0.0) for i in range(13)]
    most = max((sampler(scene(["Car"] * 13, far), np.random.default_rng(s)).names == "Car").sum() for s in range(5))
    assert most > 13


def test_a_frame_without_objects_or_points_gets_some(sampler):
    frame = sampler(scene(), np.random.default_rng(0))
    assert len(frame.boxes) == len(frame.names) > 0
    nothing = RawFrame(
        np.zeros((0, 4), np.float32), np.zeros((0, 7)), np.zeros(0, dtype=str), np.array((0, 0, 1, ROAD))
    )
    pasted = sampler(nothing, np.random.default_rng(0))
    assert len(pasted.points) == 40 * len(pasted.boxes)


def test_points_in_pasted_boxes_are_the_objects_own(sampler):
    before = scene()
    frame = sampler(before, np.random.default_rng(1))
    num_objects = len(frame.boxes)
    assert num_objects > 0
    pasted, rest = frame.points[: 40 * num_objects], frame.points[40 * num_objects :]
    for i, box in enumerate(frame.boxes):
        assert (local(pasted[40 * i : 40 * i + 40], box) < 0.81).all()
        assert not (local(rest, box) < 0.9999).all(axis=1).any()
    removed = sum(((local(before.points, box) < 1).all(axis=1)).sum() for box in frame.boxes)
    assert len(before.points) - len(rest) == pytest.approx(removed, abs=1)
    assert removed > 0


def test_a_wider_box_can_be_cleared(database_root):
    node = {**SETTINGS, "REMOVE_EXTRA_WIDTH": [2.0, 2.0, 0.0]}
    frame = GroundTruthSampler.from_node(node, CLASSES, database_root)(scene(), np.random.default_rng(1))
    rest = frame.points[40 * len(frame.boxes) :]
    for box in frame.boxes:
        assert not (local(rest, box + (0, 0, 0, 1.999, 1.999, 0, 0)) < 0.9999).all(axis=1).any()


def test_objects_are_put_on_a_sloping_road(sampler):
    slope = np.array((0.1, -0.05, 1.0, 2.0))
    frame = sampler(scene(ground=slope), np.random.default_rng(2))
    x, y, z, _, _, height, _ = frame.boxes.T
    np.testing.assert_allclose(z - height / 2, -0.1 * x + 0.05 * y - 2.0)
    for i, box in enumerate(frame.boxes):
        assert (local(frame.points[40 * i : 40 * i + 40], box) < 0.81).all()


def test_without_the_road_plane_objects_keep_their_height(database_root):
    node = {**SETTINGS, "USE_ROAD_PLANE": False}
    sampler = GroundTruthSampler.from_node(node, CLASSES, database_root)
    stored = {round(float(e["box3d_lidar"][2]), 6) for entries in sampler.database.values() for e in entries}
    frame = sampler(scene(ground=(0.3, 0, 1, 5)), np.random.default_rng(3))
    assert {round(float(z), 6) for z in frame.boxes[:, 2]} <= stored


def test_a_missing_road_plane_is_an_error(sampler):
    frame = scene()
    with pytest.raises(ValueError, match="put it first in AUG_CONFIG_LIST"):
        sampler(RawFrame(frame.points, frame.boxes, frame.names, None), np.random.default_rng(0))


def test_lift_by_hand():
    boxes = np.array(((10.0, 2.0, 0.0, 4, 2, 1.5, 0.3),))
    np.testing.assert_allclose(lift_onto_ground(boxes, np.array((0.0, 0.0, 2.0, 3.4))), [-1.7 + 0.75])


def test_of_two_candidates_that_overlap_neither_is_free():
    boxes = np.array([(x, 0.0, 0.0, 4.0, 2.0, 1.5, 0.2) for x in (0, 1, 10, 20, 24.5)])
    existing = np.array(((21.0, 0.5, 9.0, 1, 1, 1, 0),))
    assert free_of_collision(boxes, existing).tolist() == [False, False, True, False, True]
    assert free_of_collision(boxes, np.zeros((0, 7))).tolist() == [False, False, True, True, True]
    assert free_of_collision(np.zeros((0, 7)), existing).shape == (0,)


def test_objects_with_few_points_or_of_a_refused_difficulty_are_left_out(tmp_path):
    box = np.array((10.0, 0, 0, 4, 2, 2, 0))
    stored = [
        {"name": "Car", "num_points_in_gt": n, "difficulty": d, "image_idx": str(i), "box3d_lidar": box}
        for i, (n, d) in enumerate([(4, 0), (5, 0), (50, -1), (50, 2)])
    ]
    dump_arrays({"Car": stored, "Van": stored}, tmp_path / "kitti_dbinfos_train.pkl")
    sampler = GroundTruthSampler.from_node(SETTINGS, CLASSES, tmp_path)
    assert [entry["image_idx"] for entry in sampler.database["Car"]] == ["1", "3"]
    assert sampler.database.keys() == set(CLASSES)
    only = sampler.restricted_to({"3"})
    assert [entry["image_idx"] for entry in only.database["Car"]] == ["3"]


def test_a_class_that_is_not_detected_is_not_pasted(database_root):
    sampler = GroundTruthSampler.from_node(SETTINGS, ["Pedestrian"], database_root)
    assert set(sampler(scene(), np.random.default_rng(0)).names) == {"Pedestrian"}


def test_the_same_draw_gives_the_same_frame(sampler):
    first, again, other = (sampler(scene(), np.random.default_rng(s)) for s in (7, 7, 8))
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert first.boxes.shape != other.boxes.shape or not np.array_equal(first.boxes, other.boxes)


def test_a_database_that_does_not_match_its_files_is_an_error(database_root, tmp_path):
    shutil.copytree(database_root / "gt_database", tmp_path / "gt_database")
    stored = load_arrays(database_root / "kitti_dbinfos_train.pkl")
    for entries in stored.values():
        for entry in entries:
            entry["num_points_in_gt"] += 1
    dump_arrays(stored, tmp_path / "kitti_dbinfos_train.pkl")
    sampler = GroundTruthSampler.from_node(SETTINGS, CLASSES, tmp_path)
    with pytest.raises(ValueError, match=r"holds 160 numbers, the database says 41 points of 4; run tools/make_infos"):
        sampler(scene(), np.random.default_rng(0))


def test_a_missing_database_says_how_to_make_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"kitti_dbinfos_train\.pkl: run tools/make_infos\.py.*DISABLE_AUG_LIST"
    ):
        GroundTruthSampler.from_node(SETTINGS, CLASSES, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SAMPLE_GROUPS": ["Car"]}, "SAMPLE_GROUPS of gt_sampling takes class:count, got 'Car'"),
        ({"PREPARE": {"filter_by_colour": []}}, "unknown PREPARE filter_by_colour"),
        ({"IMG_AUG_TYPE": "kitti"}, "unknown key IMG_AUG_TYPE"),
        ({"DATABASE_WITH_FAKELIDAR": True}, "make the database again"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(database_root, change, message):
    with pytest.raises(ConfigError, match=message):
        GroundTruthSampler.from_node({**SETTINGS, **change}, CLASSES, database_root)
