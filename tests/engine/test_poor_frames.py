"""Frames without objects, without points, or with an object that no point hits are no mistake: they train and test."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from tiny_world import scalars

from cakdp_ext.datasets import make_infos
from cakdp_ext.engine.data import build_split

pytestmark = pytest.mark.xdist_group("engine")

NO_POINT_IN_OBJECT = "Car 0.00 0 0.0 10 10 80 60 1.50 1.60 3.90 0.50 1.60 9.00 0.00\n"


def without_objects(data, frame):
    (data / "training" / "label_2" / f"{frame}.txt").write_text("")


def without_points_in_range(data, frame):
    path = data / "training" / "velodyne" / f"{frame}.bin"
    points = np.fromfile(path, dtype=np.float32).reshape(-1, 4)
    points[:, 0] += 40
    points.tofile(path)


def without_points(data, frame):
    (data / "training" / "velodyne" / f"{frame}.bin").write_bytes(b"")


def with_an_object_that_no_point_hits(data, frame):
    path = data / "training" / "velodyne" / f"{frame}.bin"
    points = np.fromfile(path, dtype=np.float32).reshape(-1, 4)
    is_near = (points[:, 0] < 13) & (np.abs(points[:, 1]) < 3)
    points[~is_near].tofile(path)
    (data / "training" / "label_2" / f"{frame}.txt").write_text(NO_POINT_IN_OBJECT)


POOR = [without_objects, without_points_in_range, without_points, with_an_object_that_no_point_hits]
FRAMES = ("000001", "000002", "000010")
NO_PASTING = ("--set", "DATA_CONFIG.NUM_HELD_OUT", 0, "DATA_CONFIG.DATA_AUGMENTOR.DISABLE_AUG_LIST", "[gt_sampling]")


@pytest.fixture(scope="module", params=POOR, ids=lambda spoil: spoil.__name__)
def poor(request, world, tmp_path_factory):
    """Data whose train and val splits begin with poor frames: two of train, one of val."""
    data = world.copy_data(tmp_path_factory.mktemp("poor"))
    (data / "ImageSets" / "train.txt").write_text("000001\n000002\n000004\n")
    (data / "ImageSets" / "val.txt").write_text("000010\n000011\n")
    for frame in FRAMES:
        request.param(data, frame)
    make_infos(data, 1)
    return data, request.param


def test_frames_are_as_poor_as_they_should_be(world, poor):
    data, spoil = poor
    dataset = build_split(world.config("second", "DATA_CONFIG.DATA_PATH", str(data)), "val")
    lacking, whole = dataset[0], dataset[1]
    assert len(whole.voxels) > 100
    assert len(whole.gt_boxes) > 0
    assert (len(lacking.voxels) == 0) == (spoil in (without_points, without_points_in_range))
    assert (len(lacking.gt_boxes) == 0) == (spoil is without_objects)
    if spoil is with_an_object_that_no_point_hits:
        (truth, _) = dataset.ground_truth()
        assert truth["num_points_in_gt"].tolist() == [0]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["second_cakdp", "voxel_rcnn"])
def test_poor_frames_train_and_test_alone_and_mixed(compressed, poor, name, batch_size):
    data, spoil = poor
    tag = f"{spoil.__name__}_{batch_size}"
    paths = ["DATA_CONFIG.DATA_PATH", data]
    if name == "second_cakdp":
        paths += ["MODEL.PRUNING.PLAN", compressed.run(name).plan]
    common = ["--batch_size", batch_size, *NO_PASTING, *paths]
    outcome = compressed.command("train", name, "--num_epochs_to_eval", 0, *common, tag=tag)
    assert outcome.code == 0, outcome.err
    run = compressed.run(name, tag)
    assert all(np.isfinite(value) for found in scalars(run.tensorboard).values() for _, value in found)
    outcome = compressed.command("test", name, *common, tag=tag)
    assert outcome.code == 0, outcome.err
    folder = run.evaluation("1", "val", "default")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert np.isfinite(metrics["recall/rcnn_0.3"])
    first, second = pickle.loads((folder / "result.pkl").read_bytes())
    assert (first["frame_id"], second["frame_id"]) == ("000010", "000011")
    assert len(second["name"]) > 0
    assert np.isfinite(first["boxes_lidar"]).all()
