"""Frames are held out of OpenPCDet's training by info files, the same frames that the built-in engine holds out."""

from __future__ import annotations

import os
import pickle
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from easydict import EasyDict

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.splits import hold_out, require_infos, split_config
from cakdp_ext.pickles import dump_arrays

TRAIN = [f"{number:06d}" for number in range(8)]
HELD_OUT = ["000000", "000004", "000007"]


def info(frame):
    return {"point_cloud": {"lidar_idx": frame}, "image": {"image_idx": frame}, "annos": {"name": np.array(["Car"])}}


def entry(frame):
    return {"name": "Car", "path": f"gt_database/{frame}.bin", "image_idx": frame, "box3d_lidar": np.zeros(7)}


@pytest.fixture
def config(tmp_path):
    dump_arrays([info(frame) for frame in TRAIN[:5]], tmp_path / "infos_train.pkl")
    dump_arrays([info(frame) for frame in TRAIN[5:]], tmp_path / "more_train.pkl")
    for split in ("val", "mine"):
        dump_arrays([info(frame) for frame in ("000100", "000101")], tmp_path / f"infos_{split}.pkl")
        dump_arrays([], tmp_path / f"more_{split}.pkl")
    dump_arrays({"Car": [entry(frame) for frame in (*TRAIN, "000100")], "Cyclist": []}, tmp_path / "db_train.pkl")
    data = {
        "DATASET": "KittiDataset",
        "DATA_PATH": str(tmp_path),
        "DATA_SPLIT": {"train": "train", "test": "val"},
        "INFO_PATH": {"train": ["infos_train.pkl", "more_train.pkl"], "test": ["infos_val.pkl"]},
        "NUM_HELD_OUT": 3,
        "DATA_AUGMENTOR": {
            "DISABLE_AUG_LIST": ["placeholder"],
            "AUG_CONFIG_LIST": [
                {"NAME": "gt_sampling", "DB_INFO_PATH": ["db_train.pkl"]},
                {"NAME": "random_world_flip"},
            ],
        },
    }
    return EasyDict(DATA_CONFIG=data)


def frames(names):
    """What OpenPCDet reads: it joins a name to the data folder and unpickles."""
    infos = [each for name in names for each in pickle.loads(Path("/nowhere", name).read_bytes())]
    return [each["point_cloud"]["lidar_idx"] for each in infos]


def test_frames_held_out_are_neither_trained_on_nor_pasted(config, tmp_path):
    before = deepcopy(config)
    data = hold_out(config, tmp_path / "run" / "data").DATA_CONFIG
    kept = [frame for frame in TRAIN if frame not in HELD_OUT]
    assert frames(data.INFO_PATH["train"]) == kept
    (database,) = data.DATA_AUGMENTOR.AUG_CONFIG_LIST[0].DB_INFO_PATH
    assert [each["image_idx"] for each in pickle.loads(Path(database).read_bytes())["Car"]] == kept
    assert data.INFO_PATH["test"] == ["infos_val.pkl"]
    assert config == before


def test_nothing_held_out_changes_nothing(config, tmp_path):
    config.DATA_CONFIG.NUM_HELD_OUT = 0
    assert hold_out(config, tmp_path / "run") is config
    assert not (tmp_path / "run").exists()


def test_database_that_is_switched_off_need_not_be_there(config, tmp_path):
    (tmp_path / "db_train.pkl").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*db_train.pkl; make it with"):
        hold_out(config, tmp_path / "run")
    config.DATA_CONFIG.DATA_AUGMENTOR.DISABLE_AUG_LIST = ["gt_sampling"]
    hold_out(config, tmp_path / "run")


def test_augmentation_may_be_a_plain_list(config, tmp_path):
    config.DATA_CONFIG.DATA_AUGMENTOR = config.DATA_CONFIG.DATA_AUGMENTOR.AUG_CONFIG_LIST
    data = hold_out(config, tmp_path / "run").DATA_CONFIG
    assert os.path.isabs(data.DATA_AUGMENTOR[0].DB_INFO_PATH[0])


def test_every_split_can_be_tested(config, tmp_path):
    held_out, train = (split_config(config, split, tmp_path / "run").DATA_CONFIG for split in ("held_out", "train"))
    assert frames(held_out.INFO_PATH["test"]) == HELD_OUT
    assert held_out.DATA_SPLIT.test == "held_out"
    assert frames(train.INFO_PATH["test"]) == [frame for frame in TRAIN if frame not in HELD_OUT]
    assert split_config(config, "val").DATA_CONFIG == config.DATA_CONFIG
    mine = split_config(config, "mine").DATA_CONFIG
    assert (mine.DATA_SPLIT.test, mine.INFO_PATH["test"]) == ("mine", ["infos_mine.pkl", "more_mine.pkl"])
    config.DATA_CONFIG.INFO_PATH["other"] = ["named.pkl"]
    assert split_config(config, "other").DATA_CONFIG.INFO_PATH["test"] == ["named.pkl"]


def test_files_without_a_folder_of_their_own_do_not_meet(config):
    one = split_config(config, "held_out").DATA_CONFIG.INFO_PATH["test"]
    config.DATA_CONFIG.NUM_HELD_OUT = 1
    other = split_config(config, "held_out").DATA_CONFIG.INFO_PATH["test"]
    assert (frames(one), frames(other)) == (HELD_OUT, ["000000"])


def test_training_after_splits_holds_the_same_frames_out(config, tmp_path):
    once = hold_out(split_config(config, "train", tmp_path / "run"), tmp_path / "run").DATA_CONFIG.INFO_PATH
    assert frames(once["train"]) == frames(once["test"]) == [frame for frame in TRAIN if frame not in HELD_OUT]


def test_unknown_split_names_the_file_it_would_need(config):
    with pytest.raises(
        ConfigError, match=r"split gone has no info file .*infos_gone.pkl; .* DATA_CONFIG.INFO_PATH.gone"
    ):
        split_config(config, "gone")


def test_data_sets_of_another_kind_are_told_to_list_the_split(config, tmp_path):
    dump_arrays([{"point_cloud": {"lidar_idx": "000000"}}], tmp_path / "infos_train.pkl")
    with pytest.raises(ConfigError, match=r"info files of KITTI's kind, which KittiDataset has not; list the frames"):
        hold_out(config, tmp_path / "run")
    del config.DATA_CONFIG["INFO_PATH"]
    with pytest.raises(ConfigError, match="info files of KITTI's kind"):
        split_config(config, "held_out")
    assert split_config(config, "val").DATA_CONFIG.DATA_SPLIT.test == "val"


def test_database_that_does_not_name_frames_is_refused(config, tmp_path):
    dump_arrays({"Car": [{"name": "Car"}]}, tmp_path / "db_train.pkl")
    with pytest.raises(ConfigError, match=r"db_train.pkl does not say which frame an object is from"):
        hold_out(config, tmp_path / "run")


def test_missing_info_files_are_named_before_openpcdet_passes_over_them(config, tmp_path):
    require_infos(config, "train")
    config.DATA_CONFIG.INFO_PATH["test"] = ["gone.pkl"]
    with pytest.raises(FileNotFoundError, match=r"no info file .*gone.pkl \(INFO_PATH.test\).*tools/make_infos.py"):
        require_infos(config, "test")
    config.DATA_CONFIG.VERSION = "v1"
    (tmp_path / "v1").mkdir()
    dump_arrays([], tmp_path / "v1" / "gone.pkl")
    require_infos(config, "test")
    del config.DATA_CONFIG["INFO_PATH"]
    require_infos(config, "test")


# Segments


TAG = "waymo_processed_data_v0_5_0"


@pytest.fixture
def waymo(tmp_path):
    """Four segments of three sweeps to train on, one to test on."""
    root = tmp_path / "waymo"
    names = [f"segment-{number}" for number in range(5)]
    for name in names:
        sweeps = [
            {"point_cloud": {"lidar_sequence": name, "sample_idx": k}, "frame_id": f"{name}_{k:03d}"} for k in range(3)
        ]
        (root / TAG / name).mkdir(parents=True)
        dump_arrays(sweeps, root / TAG / name / f"{name}.pkl")
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("".join(f"{name}.tfrecord\n" for name in names[:4]))
    (root / "ImageSets" / "val.txt").write_text("segment-4.tfrecord\n")
    database = {"Vehicle": [{"name": "Vehicle", "sequence_name": name} for name in names]}
    dump_arrays(database, root / "several_sweeps.pkl")
    sampling = {
        "NAME": "gt_sampling",
        "DB_INFO_PATH": ["one_sweep.pkl"],
        "DB_DATA_PATH": ["one_sweep.npy"],
        "NUM_POINT_FEATURES": 5,
        "BACKUP_DB_INFO": {
            "DB_INFO_PATH": "several_sweeps.pkl", "DB_DATA_PATH": "several_sweeps.npy", "NUM_POINT_FEATURES": 6,
        },
    }  # fmt: skip
    data = {
        "DATASET": "WaymoDataset",
        "DATA_PATH": str(root),
        "PROCESSED_DATA_TAG": TAG,
        "DATA_SPLIT": {"train": "train", "test": "val"},
        "SAMPLED_INTERVAL": {"train": 2, "test": 1},
        "NUM_HELD_OUT": 3,
        "DATA_AUGMENTOR": {"DISABLE_AUG_LIST": ["placeholder"], "AUG_CONFIG_LIST": [sampling]},
    }
    return EasyDict(DATA_CONFIG=data)


def listed(data, split):
    """The segments that OpenPCDet finds for a split."""
    path = Path(data.DATA_PATH) / "ImageSets" / f"{split}.txt"
    names = [line.removesuffix(".tfrecord") for line in path.read_text().split()]
    assert all((Path(data.DATA_PATH) / TAG / name / f"{name}.pkl").is_file() for name in names)
    return names


def test_whole_segments_are_held_out_of_training(waymo, tmp_path):
    before = deepcopy(waymo)
    for _ in range(2):  # a second process, or the same run again
        data = hold_out(waymo, tmp_path / "run").DATA_CONFIG
    assert listed(data, "train") == ["segment-1", "segment-2"]
    assert listed(data, "val") == ["segment-4"]
    (step,) = data.DATA_AUGMENTOR.AUG_CONFIG_LIST
    (database,) = step.DB_INFO_PATH
    pasted = pickle.loads(Path(database).read_bytes())["Vehicle"]
    assert [each["sequence_name"] for each in pasted] == ["segment-1", "segment-2"]
    assert (step.NUM_POINT_FEATURES, step.DB_DATA_PATH) == (6, ["several_sweeps.npy"])  # the backup, as OpenPCDet would
    assert waymo == before
    assert listed(waymo.DATA_CONFIG, "train") == [f"segment-{number}" for number in range(4)]


@pytest.mark.parametrize(
    ("split", "count", "segments", "interval"),
    [
        ("held_out", 3, ["segment-0", "segment-3"], 2),
        ("train", 3, ["segment-1", "segment-2"], 2),
        ("train", 0, [f"segment-{number}" for number in range(4)], 2),
        ("val", 3, ["segment-4"], 1),
    ],
)
def test_segments_that_are_tested_on(waymo, tmp_path, split, count, segments, interval):
    waymo.DATA_CONFIG.NUM_HELD_OUT = count
    data = split_config(waymo, split, tmp_path / "run").DATA_CONFIG
    assert listed(data, data.DATA_SPLIT["test"]) == segments
    assert data.SAMPLED_INTERVAL["test"] == interval
    hold_out(EasyDict(DATA_CONFIG=data), tmp_path / "run")  # what training then does with it


def test_segments_that_cannot_be_held_out(waymo, tmp_path):
    waymo.DATA_CONFIG.NUM_HELD_OUT = 7
    with pytest.raises(ConfigError, match="NUM_HELD_OUT is 7, but the training split has 6 frames"):
        hold_out(waymo, tmp_path)
    waymo.DATA_CONFIG.NUM_HELD_OUT = 0
    with pytest.raises(ConfigError, match="split held_out is empty"):
        split_config(waymo, "held_out", tmp_path)
    waymo.DATA_CONFIG.NUM_HELD_OUT = 3
    waymo.DATA_CONFIG.DATA_AUGMENTOR.AUG_CONFIG_LIST[0].BACKUP_DB_INFO.DB_INFO_PATH = "nowhere.pkl"
    with pytest.raises(FileNotFoundError, match=r"no .*one_sweep.pkl; make it with"):
        hold_out(waymo, tmp_path)
