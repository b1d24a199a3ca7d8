"""Generated scenes in Waymo's layout."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from cakdp_ext import ops
from cakdp_ext.config import ConfigError
from cakdp_ext.datasets.scenes import (
    LidarConfig,
    SceneConfig,
    SequenceConfig,
    StreetConfig,
    TrafficConfig,
    write_scenes,
)
from cakdp_ext.datasets.scenes.segments import PROCESSED_DATA_TAG, SegmentGenerator, segments_of
from cakdp_ext.datasets.waymo import WaymoFolder

CONFIG = SceneConfig(
    num_train=7,
    num_val=3,
    lidar=LidarConfig(beams=32, azimuth_step=1.0, field_of_view=360.0, range_noise=0.0, dropout=0.0),
    traffic=TrafficConfig(cars=(3, 6), pedestrians=(2, 4), cyclists=(2, 4), far_cars=(0, 1), reach=20.0),
    street=StreetConfig(clutter=0.5),
    sequence=SequenceConfig(frames=4, ego_speed=(4.0, 8.0), moving=0.7),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder and summary."""
    out = tmp_path_factory.mktemp("scenes") / "set"
    return out, write_scenes(CONFIG, out, layout="waymo", progress=False)


@pytest.fixture(scope="module")
def infos(written):
    """Infos of train."""
    return WaymoFolder(written[0], PROCESSED_DATA_TAG).split_infos("train")


def points_of(written, info):
    cloud = info["point_cloud"]
    return WaymoFolder(written[0], PROCESSED_DATA_TAG).points(cloud["lidar_sequence"], cloud["sample_idx"])


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_sweeps_fall_into_segments(written, infos):
    assert [(segment.split, segment.num_sweeps) for segment in segments_of(CONFIG)] == [
        ("train", 4), ("train", 3), ("val", 3),
    ]  # fmt: skip
    assert [info["point_cloud"]["sample_idx"] for info in infos] == [0, 1, 2, 3, 0, 1, 2]
    assert written[1].num_frames == 10
    assert set(written[1].objects) == {"Vehicle", "Pedestrian", "Cyclist"}


def test_labels_hold_their_points(written, infos):
    for info in infos:
        points, annos = points_of(written, info), info["annos"]
        boxes = annos["gt_boxes_lidar"][:, :7].astype(np.float32)
        boxes[:, 3:6] += 0.02
        owner = ops.points_in_boxes(torch.from_numpy(points[:, :3].copy()), torch.from_numpy(boxes)).numpy()
        inside = np.bincount(owner[owner >= 0], minlength=len(boxes))
        assert (inside >= annos["num_points_in_gt"]).all()
        assert annos["num_points_in_gt"].sum() > 100
        assert (
            inside[annos["num_points_in_gt"] > 20] < 1.5 * annos["num_points_in_gt"][annos["num_points_in_gt"] > 20] + 9
        ).all()


def test_objects_stand_on_the_ground_of_the_vehicles_frame(infos):
    boxes = np.concatenate([info["annos"]["gt_boxes_lidar"] for info in infos])
    near = np.hypot(boxes[:, 0], boxes[:, 1]) < 15
    bottoms = (boxes[:, 2] - boxes[:, 5] / 2)[near]
    assert np.abs(bottoms).max() < 0.6  # the ground is tilted by a degree or two
    assert (boxes[:, 0] < -3).any()
    assert (boxes[:, 0] > 3).any()


def to_world(info, xyz):
    return xyz @ info["pose"][:3, :3].T.astype(float) + info["pose"][:3, 3]


def test_what_stands_still_stays_in_the_world(infos):
    first, last = infos[0], infos[3]
    speeds = np.hypot(*first["annos"]["speed_global"].T)
    assert 0 < (speeds > 0).sum() < len(speeds)
    moved = to_world(last, last["annos"]["location"]) - to_world(first, first["annos"]["location"])
    np.testing.assert_allclose(np.hypot(moved[:, 0], moved[:, 1]), 0.3 * speeds, atol=2e-3)
    np.testing.assert_allclose(moved[:, :2], 0.3 * first["annos"]["speed_global"], atol=2e-3)
    assert np.linalg.norm(last["pose"][:2, 3] - first["pose"][:2, 3]) > 1.0
    for info in (first, last):
        np.testing.assert_allclose(info["pose"][:3, :3] @ info["pose"][:3, :3].T, np.eye(3), atol=1e-6)


NOBODY = TrafficConfig((0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), reach=20.0)


@pytest.fixture(scope="module")
def empty_street():
    """First and last sweep of a segment in which only the sensor moves."""
    lidar = replace(CONFIG.lidar, azimuth_step=0.5, beams=64)
    config = replace(CONFIG, traffic=NOBODY, street=StreetConfig(clutter=0.0, roughness=0.0, max_tilt=4.0), lidar=lidar)
    first, *_, last = SegmentGenerator(config).sweeps(segments_of(config)[0])
    return first, last


def world_points(sweep, mask=slice(None), pose=None):
    pose = sweep.pose if pose is None else pose
    return sweep.points[mask, :3] @ pose[:3, :3].T + pose[:3, 3]


def lane(sweep):
    x, y = sweep.points[:, :2].T
    return (np.abs(y) < 1.5) & (x > 4) & (x < 12)


def test_ground_of_all_sweeps_is_one_plane_in_the_world(empty_street):
    first, last = empty_street
    seen = world_points(first, lane(first))
    middle = seen.mean(axis=0)
    normal = np.linalg.svd(seen - middle)[2][2]
    assert abs(normal[2]) < 0.9999  # tilted
    assert lane(last).sum() > 100
    assert np.abs((world_points(last, lane(last)) - middle) @ normal).max() < 2e-3


def test_walls_of_all_sweeps_coincide_in_the_world(empty_street):
    first, last = empty_street
    seen = torch.from_numpy(world_points(first))
    high = (last.points[:, 2] > 1.0) & (np.hypot(last.points[:, 0], last.points[:, 1]) < 15)
    assert high.sum() > 100
    with_pose, without = (
        torch.cdist(torch.from_numpy(world_points(last, high, pose)), seen).amin(dim=1).mean()
        for pose in (None, first.pose)
    )
    assert with_pose < 0.6 * without


def test_nobody_meets_anybody(infos):
    for info in infos:
        boxes = torch.from_numpy(info["annos"]["gt_boxes_lidar"][:, :7])
        overlap = ops.boxes_overlap_bev(boxes, boxes).fill_diagonal_(0)
        assert overlap.max() == 0
        car = torch.tensor([[0.0, 0.0, 1.0, 4.0, 1.8, 1.5, 0.0]], dtype=torch.float64)
        assert ops.boxes_overlap_bev(car, boxes).max() == 0


def test_files_do_not_depend_on_the_number_of_workers(written, tmp_path):
    write_scenes(CONFIG, tmp_path / "set", layout="waymo", workers=2, progress=False)
    assert digest(tmp_path / "set") == digest(written[0])
    assert write_scenes(CONFIG, tmp_path / "set", layout="waymo", progress=False) == replace(written[1], reused=True)


def test_another_layout_or_sequence_is_another_data_set(written):
    with pytest.raises(ConfigError, match="LAYOUT is waymo there and kitti here"):
        write_scenes(CONFIG, written[0], progress=False)
    with pytest.raises(ConfigError, match="SEQUENCE.FRAMES is 4 there and 5 here"):
        write_scenes(replace(CONFIG, sequence=SequenceConfig(5, (4.0, 8.0), moving=0.7)), written[0], layout="waymo")
    with pytest.raises(ConfigError, match="layout must be one of kitti, waymo, got 'nuscenes'"):
        write_scenes(CONFIG, written[0], layout="nuscenes")


@pytest.mark.parametrize("bad", [{"frames": 0}, {"ego_speed": (3.0, 1.0)}, {"max_turn": 90.0}, {"moving": 2.0}])
def test_sequences_that_make_no_sense(bad):
    with pytest.raises(ValueError, match="must be in|must be .slowest, fastest.|is a share"):
        SequenceConfig(**bad)
