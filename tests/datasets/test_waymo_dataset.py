from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from waymo_frames import CLASSES, LABELS, TAG, labels_of, pose_of, segment_name, sweep, waymo_config, write_waymo

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets import build_dataset, collate
from cakdp_ext.datasets.waymo import WaymoSweep, make_waymo_infos, write_segment
from cakdp_ext.types import Detections

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def waymo(tmp_path_factory):
    """Segments 0 (4 sweeps) and 1 (3) to train on, 2 (2 sweeps) to test on. Not to be changed."""
    return write_waymo(tmp_path_factory.mktemp("waymo"))


def dataset(root, training=False, split=None, **changes):
    return build_dataset(waymo_config(root, **changes), CLASSES, training, split=split)


def stored(root, segment, number):
    return np.load(root / TAG / segment_name(segment) / f"{number:04d}.npy")


def rewrite(root, segment, number, points):
    np.save(root / TAG / segment_name(segment) / f"{number:04d}.npy", points)


def one_sweep(root, **changes):
    """A data set of one sweep with these fields."""
    (root / "ImageSets").mkdir(parents=True)
    (root / "ImageSets" / "val.txt").write_text(segment_name(0))
    write_segment(root / TAG, segment_name(0), [replace(sweep(), **changes)])
    return root


def test_points_and_boxes_of_a_frame(waymo):
    frames = dataset(waymo)
    assert frames.frame_ids == [f"{segment_name(2)}_000", f"{segment_name(2)}_001"]
    frame = frames[1]
    expected = stored(waymo, 2, 1)[:, :5]
    expected[:, 3] = np.tanh(expected[:, 3])
    np.testing.assert_array_equal(frame.points, expected)
    np.testing.assert_allclose(frame.gt_boxes, np.float32([labels_of(1, 2)[i].box for i in (0, 2, 3)]))
    assert frame.gt_labels.tolist() == [0, 1, 2]  # neither the sign nor the unknown object
    assert frame.meta["metadata"] == {"context_name": "context", "timestamp_micros": 1001}
    assert frame.voxels.shape[1:] == (5, 5)
    assert len(frame.voxels) > 100


@pytest.mark.parametrize(("interval", "taken"), [(1, [0, 1, 2, 3, 0, 1, 2]), (2, [0, 2, 0, 2]), (5, [0, 1])])
def test_sampled_interval_counts_on_across_segments(waymo, interval, taken):
    ids = dataset(waymo, split="train", SAMPLED_INTERVAL={"train": interval, "test": 1}).frame_ids
    assert [int(name[-3:]) for name in ids] == taken


def test_interval_of_a_split_is_that_of_its_mode(waymo):
    intervals = {"SAMPLED_INTERVAL": {"train": 2, "test": 1}}
    assert len(dataset(waymo, split="train", **intervals)) == 4
    assert len(dataset(waymo, split="val", **intervals)) == 2


@pytest.mark.parametrize(("training", "empty_too"), [(True, 3), (False, 3)])
def test_empty_boxes_are_left_out_in_training_where_asked(waymo, training, empty_too):
    kept = dataset(waymo, training, FILTER_EMPTY_BOXES_FOR_TRAIN=True)[0]
    every = dataset(waymo, training, FILTER_EMPTY_BOXES_FOR_TRAIN=False)[0]
    assert len(every.gt_boxes) == empty_too
    assert kept.gt_labels.tolist() == ([0, 1] if training else [0, 1, 2])


@pytest.mark.parametrize(("disabled", "share"), [(True, 1.0), (False, 0.5)])
def test_points_of_no_label_zones(tmp_path, disabled, share):
    points = sweep().points.copy()
    points[::2, 5] = 1
    frame = dataset(one_sweep(tmp_path / "w", points=points), DISABLE_NLZ_FLAG_ON_POINTS=disabled)[0]
    assert len(frame.points) == pytest.approx(share * len(points), abs=1)


def test_tanh_of_other_columns(waymo):
    frame = dataset(waymo, POINTS_TANH_DIM=[3, 4])[0]
    np.testing.assert_allclose(frame.points[:, 3:5], np.tanh(stored(waymo, 2, 0)[:, 3:5]), rtol=1e-6)
    with pytest.raises(ConfigError, match=r"POINTS_TANH_DIM takes columns 0 to 4, got \[5\]"):
        dataset(waymo, POINTS_TANH_DIM=[5])


# Several sweeps


SWEEPS = {
    "SEQUENCE_CONFIG": {"ENABLED": True, "SAMPLE_OFFSET": [-2, 0]},
    "POINT_FEATURE_ENCODING": {
        "encoding_type": "absolute_coordinates_encoding",
        "used_feature_list": ["x", "y", "z", "intensity", "elongation", "timestamp"],
        "src_feature_list": ["x", "y", "z", "intensity", "elongation", "timestamp"],
    },
}


def test_earlier_sweeps_are_moved_into_the_frame_of_the_last(waymo):
    frame = dataset(waymo, split="train", **SWEEPS)[3]
    ages = frame.points[:, 5]
    assert sorted(set((10 * ages).round().tolist())) == [0, 1, 2]
    expected = stored(waymo, 0, 1)[:, :3].astype(np.float64)
    world = expected @ pose_of(1)[:3, :3].T + pose_of(1)[:3, 3]
    inverse = np.linalg.inv(pose_of(3))
    expected = world @ inverse[:3, :3].T + inverse[:3, 3]
    expected = expected[(np.abs(expected[:, :2]) >= 1).any(axis=1)]
    np.testing.assert_allclose(frame.points[ages > 0.15][:, :3], expected, atol=1e-3)


def test_points_of_the_car_itself_are_left_out_of_earlier_sweeps_only(tmp_path):
    here = np.float32([[0.5, 0.5, 1, 0.1, 0.1, -1], [0.5, 5, 1, 0.1, 0.1, -1]])
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "val.txt").write_text(segment_name(0))
    sweeps = [replace(sweep(k, points=here), pose=np.eye(4)) for k in range(2)]
    write_segment(tmp_path / TAG, segment_name(0), sweeps)
    assert len(dataset(tmp_path, **SWEEPS)[1].points) == 2 + 1 + 1


def test_first_sweep_stands_in_for_those_before_it(waymo):
    points = dataset(waymo, split="train", **SWEEPS)[0].points
    assert set(points[:, 5].tolist()) == {0.0}
    alone = len(stored(waymo, 0, 0))
    assert 2.9 * alone < len(points) <= 3 * alone


def test_earlier_sweeps_are_found_between_sampled_ones_and_in_a_subset(waymo):
    frames = dataset(waymo, split="train", SAMPLED_INTERVAL={"train": 3, "test": 1}, **SWEEPS)
    every = dataset(waymo, split="train", **SWEEPS)
    one = frames.subset([f"{segment_name(0)}_003"])
    np.testing.assert_array_equal(one[0].points, every[3].points)


def test_one_hot_columns_tell_sweeps_apart(waymo):
    names = [*SWEEPS["POINT_FEATURE_ENCODING"]["src_feature_list"][:5], "now", "before", "earlier"]
    encoding = {**SWEEPS["POINT_FEATURE_ENCODING"], "src_feature_list": names, "used_feature_list": names}
    sequence = {**SWEEPS["SEQUENCE_CONFIG"], "ONEHOT_TIMESTAMP": True}
    frames = dataset(waymo, split="train", SEQUENCE_CONFIG=sequence, POINT_FEATURE_ENCODING=encoding)
    marks, ages = frames[3].points[:, 5:], dataset(waymo, split="train", **SWEEPS)[3].points[:, 5]
    np.testing.assert_array_equal(marks.argmax(axis=1), (ages * 10).round())
    assert set(marks.sum(axis=1)) == {1.0}


def test_columns_must_have_names(waymo):
    with pytest.raises(ConfigError, match=r"src_feature_list names 5 values, the points have 6 \(SEQUENCE_CONFIG"):
        dataset(waymo, SEQUENCE_CONFIG=SWEEPS["SEQUENCE_CONFIG"])


@pytest.mark.parametrize("offset", [[-1], [0, -1], [-1, 1]])
def test_sweeps_lie_in_the_past(waymo, offset):
    with pytest.raises(ConfigError, match="SAMPLE_OFFSET must be .first, end. with first <= end <= 0"):
        dataset(waymo, SEQUENCE_CONFIG={"ENABLED": True, "SAMPLE_OFFSET": offset})


# Poor data


def test_nan_intensities_and_lost_points_survive(tmp_path, caplog):
    points = sweep().points.copy()
    points[:10, 3], points[10:15, 4], points[15:18, 0] = np.nan, np.inf, np.nan
    frame = dataset(one_sweep(tmp_path / "w", points=points))[0]
    assert len(frame.points) == len(points) - 3
    assert np.isfinite(frame.voxels).all()
    assert (frame.points[:10, 3] == 0).all()
    assert "0000.npy: 3 of" in caplog.text


@pytest.mark.parametrize("training", [True, False])
def test_a_sweep_without_points(tmp_path, training):
    root = one_sweep(tmp_path / "w", points=np.zeros((0, 6)))
    (root / "ImageSets" / "train.txt").write_text(segment_name(0))
    frame = dataset(root, training)[0]
    assert frame.voxels.shape == (0, 5, 5)
    batch = collate([frame, frame])
    assert len(batch.voxels) == 0


def test_a_sweep_without_objects(tmp_path):
    frame = dataset(one_sweep(tmp_path / "w", labels=()))[0]
    assert frame.gt_boxes.shape == (0, 7)


def test_a_split_without_labels_is_for_testing_only(tmp_path):
    root = one_sweep(tmp_path / "w", labels=None)
    frames = dataset(root)
    assert len(frames[0].gt_boxes) == 0
    with pytest.raises(ValueError, match=r"split val has no labels \(frame segment-0_with_camera_labels_000\)"):
        frames.ground_truth()
    (root / "ImageSets" / "train.txt").write_text(segment_name(0))
    with pytest.raises(ValueError, match="training needs another split"):
        dataset(root, True)


@pytest.mark.parametrize("content", [np.zeros((4, 5), np.float32), np.zeros(6, np.float32)])
def test_another_shape_of_points(tmp_path, content):
    root = one_sweep(tmp_path / "w")
    rewrite(root, 0, 0, content)
    with pytest.raises(ValueError, match=r"0000.npy holds an array \(.*expected \(N, 6\) with x, y, z, intensity"):
        dataset(root)[0]


def test_damaged_files(tmp_path):
    root = one_sweep(tmp_path / "w")
    file = root / TAG / segment_name(0) / "0000.npy"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="0000.npy is truncated or no array"):
        dataset(root)[0]
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no sweep .*0000.npy; expected OpenPCDet's layout"):
        dataset(root)[0]
    info = file.with_name(f"{segment_name(0)}.pkl")
    info.write_bytes(info.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged or no pickle"):
        dataset(root)


def test_missing_segments(tmp_path, caplog):
    root = write_waymo(tmp_path / "w")
    (root / "ImageSets" / "val.txt").write_text(f"{segment_name(7)}.tfrecord\n{segment_name(2)}.tfrecord\n")
    assert len(dataset(root)) == 2
    assert "1 of 2 segments of val are not in" in caplog.text
    (root / "ImageSets" / "val.txt").write_text(segment_name(7))
    with pytest.raises(
        FileNotFoundError, match=r"none of the 1 segments of ImageSets/val.txt lies in .*first: segment-7"
    ):
        dataset(root)
    (root / "ImageSets" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no list of segments .*val.txt; expected OpenPCDet's layout"):
        dataset(root)


@pytest.mark.parametrize("stored_as", ["training_segment-2_with_camera_labels", "segment-2"])
def test_names_of_other_releases(tmp_path, stored_as):
    root = write_waymo(tmp_path / "w")
    (root / "ImageSets" / "val.txt").write_text("segment-2_with_camera_labels.tfrecord")
    folder = root / TAG / "segment-2_with_camera_labels"
    (folder / f"{folder.name}.pkl").unlink()
    write_segment(root / TAG, stored_as, [sweep()])
    assert dataset(root).frame_ids == [f"{stored_as}_000"]
    assert len(dataset(root)[0].points) > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SAMPLED_INTERVAL": {"train": 1}}, "SAMPLED_INTERVAL has no entry 'test'"),
        ({"SAMPLED_INTERVAL": {"train": 1, "test": 0}}, "SAMPLED_INTERVAL must be at least 1, got 0"),
        ({"TRAIN_WITH_SPEED": True}, "TRAIN_WITH_SPEED must be False: the detectors here predict no speed"),
        ({"USE_PREDBOX": True}, "USE_PREDBOX must be False"),
        (
            {"SEQUENCE_CONFIG": {"ENABLE": True}},
            "unknown key ENABLE in DATA_CONFIG.SEQUENCE_CONFIG; valid keys: ENABLED",
        ),
    ],
)
def test_values_that_cannot_be_honoured(waymo, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataset(waymo, **changes)


# Ground-truth sampling


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The same data with its database."""
    root = write_waymo(tmp_path_factory.mktemp("prepared"))
    make_waymo_infos({"DATA_PATH": str(root), "PROCESSED_DATA_TAG": TAG}, num_workers=1)
    return root


def sampling(**changes):
    return {
        "AUG_CONFIG_LIST": [
            {
                "NAME": "gt_sampling",
                "DB_INFO_PATH": [f"{TAG}_waymo_dbinfos_train_sampled_1.pkl"],
                "DB_DATA_PATH": [f"{TAG}_gt_database_train_sampled_1_global.npy"],
                "SAMPLE_GROUPS": ["Vehicle:6", "Pedestrian:6", "Cyclist:6"],
                "PREPARE": {"filter_by_min_points": ["Vehicle:5"], "filter_by_difficulty": [-1]},
                "NUM_POINT_FEATURES": 5,
                **changes,
            }
        ]
    }


def turned(root):
    """A frame's objects stand elsewhere than those of the database, so that there is room to paste these."""
    labels = tuple(replace(each, box=np.array((*each.box[:2] * (1, -1), *each.box[2:]))) for each in LABELS)
    write_segment(root / TAG, segment_name(3), [sweep(labels=labels, seed=9)])
    (root / "ImageSets" / "train.txt").write_text("\n".join(map(segment_name, (0, 3))))
    return root


@pytest.mark.parametrize("shared", [True, False])
def test_objects_are_pasted_from_files_or_from_one_array(prepared, shared):
    frames = dataset(turned(prepared), True, DATA_AUGMENTOR=sampling(USE_SHARED_MEMORY=shared))
    plain = dataset(prepared, True)
    before, after = plain[4], frames[4]
    assert len(after.gt_boxes) > len(before.gt_boxes)
    database = np.load(prepared / f"{TAG}_gt_database_train_sampled_1_global.npy")
    assert len(after.points) > len(before.points)
    pasted = after.points[: len(after.points) - len(before.points)]
    assert np.isin(pasted[:, 3], database[:, 3]).all()  # intensity was squashed when the object was cut out


def test_objects_of_segments_held_out_are_not_pasted(prepared):
    frames = dataset(turned(prepared), True, DATA_AUGMENTOR=sampling())
    assert len(frames[4].gt_boxes) > 2
    alone = frames.subset([f"{segment_name(3)}_000"])
    assert len(alone[0].gt_boxes) == 2
    assert len(frames.subset([f"{segment_name(3)}_000", f"{segment_name(0)}_001"])[0].gt_boxes) > 2


def test_database_of_several_sweeps_serves_single_ones(tmp_path):
    root = write_waymo(tmp_path / "w")
    still = [replace(sweep(number, labels=LABELS), pose=np.eye(4)) for number in range(3)]
    sweeps = [replace(each, labels=LABELS if number == 2 else ()) for number, each in enumerate(still)]
    write_segment(root / TAG, segment_name(0), sweeps)
    (root / "ImageSets" / "train.txt").write_text(segment_name(0))
    cfg = {"DATA_PATH": str(root), "PROCESSED_DATA_TAG": TAG, "SEQUENCE_CONFIG": SWEEPS["SEQUENCE_CONFIG"]}
    make_waymo_infos(cfg, num_workers=1)
    ending = "train_sampled_1_multiframe_-4_to_0"
    backup = {
        "DB_INFO_PATH": f"{TAG}_waymo_dbinfos_{ending}.pkl",
        "DB_DATA_PATH": f"{TAG}_gt_database_{ending}_global.npy",
        "NUM_POINT_FEATURES": 6,
    }
    augmentor = sampling(BACKUP_DB_INFO=backup)
    frame = dataset(turned(root), True, DATA_AUGMENTOR=augmentor)[3]
    assert frame.gt_labels.tolist() == [0, 1, 1, 2]
    assert frame.points.shape[1] == 5
    stored_points = np.load(root / backup["DB_DATA_PATH"])
    old = stored_points[stored_points[:, 5] > 0][:, 3]
    assert len(old) > 10
    assert not np.isin(frame.points[:, 3], old).any()
    with pytest.raises(ConfigError, match="BACKUP_DB_INFO takes DB_INFO_PATH, DB_DATA_PATH, NUM_POINT_FEATURES"):
        dataset(root, True, DATA_AUGMENTOR=sampling(BACKUP_DB_INFO={"DB_INFO_PATH": "x"}))


# Results


def test_detections_in_the_terms_of_the_evaluation(waymo):
    frames = dataset(waymo)
    boxes = torch.arange(14.0).reshape(2, 7)
    found = [
        Detections(boxes, torch.tensor([0.9, 0.4]), torch.tensor([2, 0])),
        Detections(*map(torch.empty, ((0, 7), 0, 0))),
    ]
    found[1] = replace(found[1], labels=found[1].labels.long())
    first, second = frames.to_annotations(collate([frames[0], frames[1]]), found)
    assert first["name"].tolist() == ["Cyclist", "Vehicle"]
    assert first["pred_labels"].tolist() == [3, 1]
    np.testing.assert_array_equal(first["boxes_lidar"], boxes.numpy())
    assert first["frame_id"] == f"{segment_name(2)}_000"
    assert second["boxes_lidar"].shape == (0, 7)
    assert second["metadata"]["timestamp_micros"] == 1001
    truths = frames.ground_truth()
    assert [each["frame_id"] for each in truths] == frames.frame_ids
    assert truths[0]["num_points_in_gt"].tolist() == [40, 9, 7, 0]


def test_speed_of_a_box_is_in_the_frame_of_the_vehicle(waymo):
    boxes = dataset(waymo).ground_truth()[1]["gt_boxes_lidar"]
    assert boxes.shape == (4, 9)
    np.testing.assert_allclose(pose_of(1)[:2, :2] @ boxes[2, 7:9], (1.0, 0.5), atol=1e-6)


def test_a_sweep_of_another_shape_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"a sweep has points \(N, 6\), got \(3, 5\)"):
        write_segment(tmp_path, "segment", [WaymoSweep(np.zeros((3, 5)), np.eye(4), (), "", 0)])
