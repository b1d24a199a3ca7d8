"""OpenPCDet's own WaymoDataset on generated segments: what it reads, makes and holds out is what we read, make and
hold out.
"""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from easydict import EasyDict
from tiny_world import PROJECT

from cakdp_ext.config import ConfigError, load_config
from cakdp_ext.datasets import build_dataset, make_waymo_infos
from cakdp_ext.datasets.scenes import LidarConfig, SceneConfig, SequenceConfig, TrafficConfig, write_scenes
from cakdp_ext.openpcdet.splits import hold_out, require_infos, split_config
from cakdp_ext.pickles import load_arrays

CLASSES = ["Vehicle", "Pedestrian", "Cyclist"]
TAG = "waymo_processed_data_v0_5_0"
SCENES = SceneConfig(
    num_train=12,
    num_val=3,
    lidar=LidarConfig(beams=32, azimuth_step=1.0, field_of_view=360.0),
    traffic=TrafficConfig(cars=(3, 6), pedestrians=(2, 4), cyclists=(2, 4), far_cars=(0, 0), reach=20.0),
    sequence=SequenceConfig(frames=3, ego_speed=(3.0, 8.0)),
)
SWEEPS = {
    "SEQUENCE_CONFIG": {"ENABLED": True, "SAMPLE_OFFSET": [-2, 0]},
    "POINT_FEATURE_ENCODING": {
        "encoding_type": "absolute_coordinates_encoding",
        "used_feature_list": ["x", "y", "z", "intensity", "elongation", "timestamp"],
        "src_feature_list": ["x", "y", "z", "intensity", "elongation", "timestamp"],
    },
}


@pytest.fixture(scope="module")
def waymo(tmp_path_factory):
    """Four segments of three sweeps to train on, one to test on, with our database. Not to be changed."""
    root = tmp_path_factory.mktemp("waymo") / "data"
    write_scenes(SCENES, root, layout="waymo", progress=False)
    make_waymo_infos({"PROCESSED_DATA_TAG": TAG}, root, num_workers=1)
    return root


def whole_config(root, **changes):
    config = load_config(PROJECT / "cfgs" / "waymo" / "second.yaml")
    config.DATA_CONFIG.update(EasyDict(DATA_PATH=str(root), SAMPLED_INTERVAL={"train": 2, "test": 1}, NUM_HELD_OUT=2))
    config.DATA_CONFIG.update(EasyDict(changes))
    processors = {entry.NAME: entry for entry in config.DATA_CONFIG.DATA_PROCESSOR}
    processors["shuffle_points"].SHUFFLE_ENABLED = EasyDict(train=False, test=False)
    return config


def theirs_of(config, training=False):
    from pcdet.datasets import WaymoDataset

    return WaymoDataset(config.DATA_CONFIG, CLASSES, training, logger=logging.getLogger("waymo"))


def ours_of(config, split=None, training=False):
    return build_dataset({**config.DATA_CONFIG, "KEEP_POINTS": True}, CLASSES, training, split=split)


@pytest.mark.parametrize("sweeps", [{}, SWEEPS], ids=["one", "three"])
def test_points_boxes_and_voxels(waymo, openpcdet, sweeps):
    config = whole_config(waymo, **sweeps)
    theirs, ours = theirs_of(config), ours_of(config)
    assert [info["frame_id"] for info in theirs.infos] == ours.frame_ids
    for index in range(3):
        got, frame = theirs[index], ours[index]
        np.testing.assert_allclose(frame.points, got["points"], atol=2e-4)
        assert frame.points.shape[1] == 5 + bool(sweeps)
        np.testing.assert_allclose(frame.gt_boxes[:, :6], got["gt_boxes"][:, :6], atol=1e-5)
        np.testing.assert_array_equal(frame.gt_labels, got["gt_boxes"][:, 7] - 1)
        turn = frame.gt_boxes[:, 6] - got["gt_boxes"][:, 6]
        np.testing.assert_allclose(np.cos(turn), 1.0, atol=1e-6)
        if not sweeps:
            np.testing.assert_array_equal(frame.voxel_coords, got["voxel_coords"])
            np.testing.assert_array_equal(frame.voxels, got["voxels"])
        assert len(frame.voxels) == pytest.approx(len(got["voxels"]), rel=0.01)
        assert frame.meta["metadata"] == got["metadata"]
    assert len(frame.gt_boxes) > 5


def test_sampled_frames_and_boxes_of_training(waymo, openpcdet):
    config = whole_config(waymo)
    config.DATA_CONFIG.DATA_AUGMENTOR = EasyDict(DISABLE_AUG_LIST=[], AUG_CONFIG_LIST=[])
    theirs, ours = theirs_of(config, True), ours_of(config, training=True)
    assert [info["frame_id"] for info in theirs.infos] == ours.frame_ids
    for index in range(len(ours)):
        got, frame = theirs[index], ours[index]
        np.testing.assert_allclose(frame.gt_boxes[:, :6], got["gt_boxes"][:, :6], atol=1e-5)
        np.testing.assert_allclose(frame.points, got["points"], atol=1e-6)


@pytest.mark.parametrize("sweeps", [{}, {"SEQUENCE_CONFIG": {"ENABLED": True, "SAMPLE_OFFSET": [-2, 0]}}])
def test_database(waymo, openpcdet, tmp_path, sweeps):
    """Its own function, on its own reading of the infos that we wrote."""
    ending = "train_sampled_1" + ("_multiframe_-4_to_0" if sweeps else "")
    root = tmp_path / "data"
    shutil.copytree(waymo, root)
    make_waymo_infos({"PROCESSED_DATA_TAG": TAG, **sweeps}, root, num_workers=1)
    ours = load_arrays(root / f"{TAG}_waymo_dbinfos_{ending}.pkl")
    bins = {path.name: path.read_bytes() for path in (root / f"{TAG}_gt_database_{ending}").iterdir()}
    points = np.load(root / f"{TAG}_gt_database_{ending}_global.npy")
    config = whole_config(root, **({**SWEEPS, **sweeps} if sweeps else {}))
    theirs = theirs_of(config)
    theirs.set_split("train")
    theirs.create_groundtruth_database(
        root / f"{TAG}_infos_train.pkl", root, used_classes=CLASSES, sampled_interval=1, processed_data_tag=TAG
    )
    made = load_arrays(root / f"{TAG}_waymo_dbinfos_{ending}.pkl")
    assert {name: len(entries) for name, entries in made.items()} == {name: len(e) for name, e in ours.items()}
    for name, entries in made.items():
        for got, want in zip(ours[name], entries, strict=True):
            np.testing.assert_allclose(got["box3d_lidar"], want["box3d_lidar"])
            counted = {"num_points_in_gt", "global_data_offset"}
            assert {k: got[k] for k in got if k not in {*counted, "box3d_lidar"}} == {
                k: want[k] for k in want if k not in {*counted, "box3d_lidar"}
            }
            assert abs(got["num_points_in_gt"] - want["num_points_in_gt"]) <= 2 * bool(sweeps)  # it moves in float32
            if not sweeps:
                assert bins[want["path"].rpartition("/")[2]] == (root / want["path"]).read_bytes()
                assert got["global_data_offset"] == want["global_data_offset"]
    if not sweeps:
        np.testing.assert_array_equal(points, np.load(root / f"{TAG}_gt_database_{ending}_global.npy"))


def test_segments_held_out_are_neither_trained_on_nor_pasted(waymo, openpcdet, tmp_path):
    config = whole_config(waymo)
    theirs = theirs_of(hold_out(config, tmp_path), True)
    held = theirs_of(split_config(config, "held_out", tmp_path))
    names = [{info["point_cloud"]["lidar_sequence"] for info in each.infos} for each in (theirs, held)]
    assert [len(each) for each in names] == [3, 1]
    assert not names[0] & names[1]
    (sampler,) = [step for step in theirs.data_augmentor.data_augmentor_queue if hasattr(step, "db_infos")]
    pasted = {entry["sequence_name"] for entries in sampler.db_infos.values() for entry in entries}
    assert pasted <= names[0]
    assert len(theirs[0]["gt_boxes"]) > 10
    ours = ours_of(config, split="train")
    assert {name for name, frame in zip(ours.segment_ids, ours.frame_ids, strict=True)} == names[0] | names[1]


def test_split_of_its_own_is_the_training_one_without_the_rest(waymo, openpcdet, tmp_path):
    config = whole_config(waymo)
    trained_on = theirs_of(split_config(config, "train", tmp_path))
    assert len(trained_on.infos) == 5  # every second of nine sweeps
    assert len(theirs_of(split_config(whole_config(waymo, NUM_HELD_OUT=0), "train", tmp_path)).infos) == 6


def test_frames_under_the_protocol_of_the_engine(waymo, openpcdet, monkeypatch):
    from cakdp_ext.openpcdet import segments
    from cakdp_ext.openpcdet.frames import build_split

    frames = build_split(whole_config(waymo), "held_out")
    assert frames.frame_ids == frames.frame_ids[:2]
    assert frames.collate([frames[0], frames[1]]).gt_boxes.shape[0] == 2
    monkeypatch.setattr(segments.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="Waymo evaluation needs tensorflow and waymo-open-dataset.*ENGINE=builtin"):
        frames.ground_truth()


def test_segments_that_are_not_there(waymo, tmp_path):
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "val.txt").write_text("segment-9\n")
    with pytest.raises(
        FileNotFoundError, match=r"none of the 1 segments of ImageSets/val.txt lies in .*first: segment-9"
    ):
        require_infos(whole_config(tmp_path), "test")
    require_infos(whole_config(waymo), "test")
