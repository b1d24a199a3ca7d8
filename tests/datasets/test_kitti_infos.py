"""Info files and ground-truth database: OpenPCDet's content, and nothing lost when something fails."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kitti_frames import P2, camera_points, random_objects, write_kitti_frames

from cakdp_ext.datasets import make_infos
from cakdp_ext.datasets.kitti.infos import frame_info, points_in_box
from cakdp_ext.datasets.kitti.raw import KittiFolder
from cakdp_ext.pickles import load_arrays

PROJECT = Path(__file__).resolve().parents[2]
POINTS_BY_CLASS = {
    "000000": {"Pedestrian": [376]},
    "000001": {"Car": [9], "Cyclist": [18], "Truck": [70]},
    "000002": {"Car": [67], "Misc": [1351]},
    "000003": {"Car": [680]},
    "000004": {"Car": [77, 26]},
    "000005": {"Pedestrian": [70]},
    "000006": {"Car": [9, 71, 331, 26]},
    "000007": {"Car": [191, 19, 5], "Cyclist": [25]},
    "000008": {"Car": [6237, 1940, 1041, 668, 53, 164]},
    "000009": {"Car": [219, 4, 1]},
    "000142": {
        "Car": [3261, 830, 286, 37, 44, 139, 1200, 451, 339],
        "Pedestrian": [334, 30, 21, 18],
        "Cyclist": [914],
    },
}
"""Of the real frames: how many points lie in each labelled box, in the order of the labels."""


def assert_equal(got, expected, where=""):
    if isinstance(expected, dict):
        assert set(got) == set(expected), where
        for key, value in expected.items():
            assert_equal(got[key], value, f"{where}/{key}")
    elif isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), where
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-6, err_msg=where)
    elif isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype, where
        np.testing.assert_array_equal(got, expected, err_msg=where)
    else:
        assert got == expected, where


@pytest.mark.real_data
def test_infos_equal_openpcdets(real_kitti):
    folder = KittiFolder(real_kitti, "train")
    expected = load_arrays(real_kitti / "openpcdet_infos" / "kitti_infos_train.pkl")
    assert len(expected) == 6
    for info in expected:
        frame_id = info["point_cloud"]["lidar_idx"]
        assert_equal(frame_info(folder, frame_id, has_labels=True), info, frame_id)
    bare = load_arrays(real_kitti / "openpcdet_infos" / "kitti_infos_test.pkl")[0]
    assert frame_info(folder, "000000", has_labels=False).keys() == bare.keys()


@pytest.mark.real_data
def test_database_equals_openpcdets(real_kitti, tmp_path):
    (tmp_path / "training").symlink_to(real_kitti / "training")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_text("".join(f"{i:06}\n" for i in range(6)))
    make_infos(tmp_path, num_workers=2)
    theirs = real_kitti / "openpcdet_infos"
    expected = load_arrays(theirs / "kitti_dbinfos_train.pkl")
    found = load_arrays(tmp_path / "kitti_dbinfos_train.pkl")
    assert set(found) == set(expected)
    for name, entries in expected.items():
        assert len(found[name]) == len(entries)
        for got, entry in zip(found[name], entries, strict=True):
            assert_equal(got, entry, entry["path"])
            points = np.fromfile(tmp_path / entry["path"], np.float32)
            np.testing.assert_allclose(points, np.fromfile(theirs / entry["path"], np.float32), atol=1e-5)
    names = {path.name for path in (theirs / "gt_database").iterdir()}
    assert {path.name for path in (tmp_path / "gt_database").iterdir()} == names


@pytest.mark.real_data
@pytest.mark.parametrize("frame_id", POINTS_BY_CLASS)
def test_real_points_in_labelled_boxes_counted_in_the_camera_frame(real_kitti, frame_id):
    folder = KittiFolder(real_kitti, "train")
    points = folder.calibration(frame_id).to_camera(folder.points(frame_id)[:, :3].astype(np.float64))
    counts: dict[str, list[int]] = {}
    for label in folder.labels(frame_id):
        if label.name == "DontCare":
            continue
        length, height, width = label.dimensions
        offset = points - label.location
        cos, sin = np.cos(label.rotation_y), np.sin(label.rotation_y)
        along = np.abs(cos * offset[:, 0] - sin * offset[:, 2]) <= length / 2
        across = np.abs(sin * offset[:, 0] + cos * offset[:, 2]) <= width / 2
        inside = along & across & (offset[:, 1] <= 0) & (offset[:, 1] >= -height)
        counts.setdefault(label.name, []).append(int(inside.sum()))
    assert counts == POINTS_BY_CLASS[frame_id]


def test_infos_of_a_generated_frame_say_what_was_written(tmp_path):
    objects = random_objects(np.random.default_rng(5))
    write_kitti_frames(tmp_path, ["000000"], objects=objects, points_per_object=33)
    annos = frame_info(KittiFolder(tmp_path, "train"), "000000", has_labels=True)["annos"]
    assert annos["name"].tolist() == [name for name, _ in objects] + ["DontCare"]
    assert annos["num_points_in_gt"].tolist() == [33] * 4 + [-1]
    boxes = annos["gt_boxes_lidar"]
    np.testing.assert_allclose(boxes[:, :6], [box[:6] for _, box in objects], atol=1e-5)
    np.testing.assert_allclose(np.cos(boxes[:, 6] - [box[6] for _, box in objects]), 1, atol=1e-9)


def test_points_beside_the_image_do_not_count(tmp_path):
    at_the_edge = [("Car", (6.0, 5.3, -0.95, 4.0, 1.6, 1.5, 0.4))]
    write_kitti_frames(tmp_path, ["000000"], objects=at_the_edge, points_per_object=100)
    folder = KittiFolder(tmp_path, "train")
    u, _, depth = P2 @ np.c_[camera_points(folder.points("000000")[-100:, :3]), np.ones(100)].T
    seen = int((u >= 0).sum())
    assert 10 < seen < 90
    assert (depth > 0).all()
    num_points = frame_info(folder, "000000", has_labels=True)["annos"]["num_points_in_gt"][0]
    assert num_points == pytest.approx(seen, abs=1)


def test_points_in_a_turned_box_by_hand():
    box = np.array((10.0, 5.0, 0.0, 4.0, 2.0, 2.0, np.pi / 2))
    points = np.array(((10, 6.99, 0), (10, 7.005, 0), (11.005, 5, 0), (10, 5, 1.005), (12, 5, 0)), dtype=np.float32)
    assert points_in_box(points, box).tolist() == [True, False, False, False, False]
    assert points_in_box(points, box, margin=0.01).tolist() == [True, True, True, False, False]


def test_every_file_of_openpcdet_is_written(kitti_root):
    frames = {
        split: [info["point_cloud"]["lidar_idx"] for info in load_arrays(kitti_root / f"kitti_infos_{split}.pkl")]
        for split in ("train", "val", "trainval", "test")
    }
    assert frames["train"] == ["000000", "000001", "000002", "000003"]
    assert frames["trainval"] == frames["train"] + frames["val"]
    assert frames["test"] == ["000006"]
    assert all("annos" not in info for info in load_arrays(kitti_root / "kitti_infos_test.pkl"))
    database = load_arrays(kitti_root / "kitti_dbinfos_train.pkl")
    assert {name: len(entries) for name, entries in database.items()} == dict.fromkeys(
        ("Car", "Pedestrian", "Cyclist", "Van"), 3
    )
    assert {entry["num_points_in_gt"] for entries in database.values() for entry in entries} == {40}
    assert not list(kitti_root.glob(".infos-*"))


def test_a_failure_leaves_what_was_there(tmp_path):
    write_kitti_frames(tmp_path, ["000000", "000001"])
    make_infos(tmp_path, num_workers=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "training" / "calib" / "000001.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"calib/000001\.txt"):
        make_infos(tmp_path, num_workers=2)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == {
        path: data for path, data in before.items() if path.name != "000001.txt" or "calib" not in path.parts
    }


def test_a_second_run_replaces_objects_that_are_gone(tmp_path):
    write_kitti_frames(tmp_path, ["000000", "000001"])
    make_infos(tmp_path, num_workers=1)
    (tmp_path / "ImageSets" / "train.txt").write_text("000000\n")
    make_infos(tmp_path, num_workers=1)
    assert {path.name.split("_")[0] for path in (tmp_path / "gt_database").iterdir()} == {"000000"}


def test_missing_splits_other_than_train_are_left_out_with_a_warning(tmp_path, caplog):
    write_kitti_frames(tmp_path, ["000000"])
    with caplog.at_level(logging.WARNING):
        summary = make_infos(tmp_path, num_workers=1)
    assert summary.num_frames == {"train": 1}
    assert "split val is left out" in caplog.text
    assert "split test is left out" in caplog.text


def test_without_a_train_list_nothing_is_made(tmp_path):
    write_kitti_frames(tmp_path, ["000000"], "val")
    with pytest.raises(FileNotFoundError, match=r"ImageSets/train\.txt"):
        make_infos(tmp_path, num_workers=1)
    assert not list(tmp_path.glob("*.pkl"))


def test_the_tool_makes_the_files(tmp_path):
    write_kitti_frames(tmp_path, ["000000"])
    command = [sys.executable, PROJECT / "tools" / "make_infos.py", "--cfg", PROJECT / "cfgs/datasets/kitti.yaml"]
    done = subprocess.run(
        [*command, "--data_path", tmp_path, "--workers", "1"], capture_output=True, text=True, cwd=PROJECT,
        env={"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 frames of train" in done.stdout
    assert "1 objects Car" in done.stdout
    assert (tmp_path / "kitti_dbinfos_train.pkl").is_file()
