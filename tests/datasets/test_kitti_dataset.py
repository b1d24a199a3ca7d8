"""Frames come through whole, in order, and the same wherever they are loaded."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from kitti_frames import ROAD, random_objects, write_kitti_frames
from torch.utils.data import DataLoader

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets import Frame, LidarDataset, build_dataset, collate, make_infos, register_dataset
from cakdp_ext.datasets.kitti.infos import points_in_box
from cakdp_ext.pickles import dump_arrays, load_arrays

ORDER = [(1, 2), (0, 0), (1, 0), (3, 3)]


def assert_same_batch(one, other):
    assert one.frame_ids == other.frame_ids
    for name in ("voxels", "voxel_coords", "voxel_num_points", "gt_boxes", "gt_labels", "points"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_what_a_training_frame_holds(kitti):
    dataset = kitti(True)
    assert isinstance(dataset, LidarDataset)
    assert dataset.frame_ids == ["000000", "000001", "000002", "000003"]
    assert dataset.geometry.grid_size == (352, 400, 20)
    frame = dataset[(2, 1)]
    assert frame.frame_id == "000001"
    assert (frame.gt_boxes.dtype, frame.gt_labels.dtype) == (np.float32, np.int64)
    assert (frame.voxels.dtype, frame.voxel_coords.dtype, frame.points.dtype) == (np.float32, np.int32, np.float32)
    assert frame.gt_boxes.shape == (len(frame.gt_labels), 7)
    assert frame.voxel_num_points.sum() <= len(frame.points)
    assert (np.abs(frame.gt_boxes[:, 6]) <= np.pi + 1e-6).all()
    assert set(frame.meta) == {"calib", "image_shape"}


@pytest.mark.parametrize("index", range(3))
def test_augmented_objects_keep_the_points_that_were_in_them(kitti, index):
    full_of_points = 0
    for epoch in range(4):
        frame = kitti(True)[(epoch, index)]
        counts = np.array([points_in_box(frame.points, box).sum() for box in frame.gt_boxes.astype(float)])
        cut_by_the_range = np.abs(frame.gt_boxes[:, :2] - (0, 0)).max(axis=1) > 30
        assert ((counts == 40) | cut_by_the_range).all()
        full_of_points += (counts == 40).sum()
    assert full_of_points > 8


def test_pasted_objects_stand_on_the_frames_own_road(kitti, data_cfg):
    data_cfg.DATA_AUGMENTOR.DISABLE_AUG_LIST = [
        "random_world_flip", "random_world_rotation", "random_world_scaling",
    ]  # fmt: skip
    for index in range(4):
        boxes = kitti(True)[index].gt_boxes
        assert len(boxes) > 3
        np.testing.assert_allclose(boxes[:, 2] - boxes[:, 5] / 2, -ROAD, atol=1e-4)


def test_labels_follow_the_order_of_class_names_and_other_classes_are_dropped(kitti):
    names = ("Cyclist", "Car")
    dataset = kitti(False, class_names=names, split="train")
    for frame, truth in zip((dataset[i] for i in range(3)), dataset.ground_truth(), strict=False):
        expected = [names.index(name) for name in truth["name"] if name in names]
        assert frame.gt_labels.tolist() == expected
        assert sorted(expected) == [0, 1]


def test_ground_truth_is_raw_regions_to_ignore_included(kitti):
    truth = kitti(False).ground_truth()
    assert [frame["frame_id"] for frame in truth] == ["000004", "000005"]
    assert all("DontCare" in frame["name"] and "Van" in frame["name"] for frame in truth)


def test_in_evaluation_nothing_is_changed_and_boxes_out_of_range_stay(kitti):
    dataset = kitti(False, POINT_CLOUD_RANGE=[0, -4, -3, 70.4, 4, 1])
    frame, again = dataset[0], dataset[(5, 0)]
    np.testing.assert_array_equal(frame.voxels, again.voxels)
    np.testing.assert_array_equal(frame.points, again.points)
    truth = dataset.ground_truth()[0]
    boxes = truth["gt_boxes_lidar"][np.isin(truth["name"][:4], dataset.class_names)]
    np.testing.assert_allclose(frame.gt_boxes[:, :6], boxes[:, :6], atol=1e-5)
    assert np.abs(frame.gt_boxes[:, 1]).max() > 4
    assert np.abs(frame.points[:, 1]).max() <= 4


def test_in_training_boxes_out_of_range_go(kitti):
    dataset = kitti(True, POINT_CLOUD_RANGE=[0, -4, -3, 70.4, 4, 1])
    for epoch in range(3):
        boxes = dataset[(epoch, 0)].gt_boxes
        assert (np.abs(boxes[:, 1]) <= 4).all()


def test_boxes_by_corners_keep_those_that_reach_into_the_range(kitti, data_cfg):
    narrow = [0, -6.1, -3, 70.4, 6.1, 1]
    quiet = {"DATA_AUGMENTOR": {"AUG_CONFIG_LIST": []}, "POINT_CLOUD_RANGE": narrow}
    by_center = kitti(True, class_names=("Car", "Van"), **quiet)
    data_cfg.DATA_PROCESSOR[0].update(USE_CENTER_TO_FILTER=False, min_num_corners=5)
    by_corners = kitti(True, class_names=("Car", "Van"), **quiet)
    edge = [(i, box) for i in range(3) for box in by_center[i].gt_boxes if abs(abs(box[1]) - 6) < 0.05]
    assert edge
    for i, box in edge:
        assert not any(np.array_equal(box, other) for other in by_corners[i].gt_boxes)


def test_only_what_the_camera_sees(kitti):
    seen, all_round = kitti(False)[0].points, kitti(False, FOV_POINTS_ONLY=False)[0].points
    assert 0 < len(seen) < len(all_round)
    bearing = np.abs(np.arctan2(seen[:, 1], seen[:, 0]))
    assert bearing.max() < np.deg2rad(45) < np.abs(np.arctan2(all_round[:, 1], all_round[:, 0])).max()


def test_the_features_that_are_used_are_selected(kitti, data_cfg):
    encoding = {**data_cfg.POINT_FEATURE_ENCODING, "used_feature_list": ["x", "y", "z"]}
    dataset = kitti(False, POINT_FEATURE_ENCODING=encoding)
    assert dataset.geometry.num_point_features == 3
    assert dataset[0].voxels.shape[1:] == (5, 3)
    np.testing.assert_array_equal(dataset[0].points, kitti(False)[0].points[:, :3])


def test_points_are_kept_for_those_who_ask_only(kitti, data_cfg):
    assert len(collate([kitti(False)[0]]).points)
    del data_cfg["KEEP_POINTS"]
    batch = collate([kitti(False)[0]])
    assert batch.points is None
    assert len(batch.voxels)


def test_a_training_frame_depends_on_seed_epoch_and_index_only(kitti):
    one, other = kitti(True), kitti(True)
    expected = {key: collate([one[key]]) for key in ORDER}
    for key in reversed(ORDER):
        assert_same_batch(collate([other[key]]), expected[key])
    differing = [kitti(True, seed=1)[(1, 2)], one[(2, 2)]]
    for frame in differing:
        assert not np.array_equal(frame.points, one[(1, 2)].points)
    assert_same_batch(collate([one[2]]), collate([one[(0, 2)]]))


@pytest.mark.parametrize(("num_workers", "start"), [(1, "fork"), (2, "fork"), (1, "spawn")])
def test_workers_change_no_frame(kitti, num_workers, start):
    dataset = kitti(True)
    expected = collate([dataset[key] for key in ORDER])
    loader = DataLoader(
        dataset, batch_size=len(ORDER), sampler=ORDER, num_workers=num_workers, collate_fn=collate,
        multiprocessing_context=start,
    )  # fmt: skip
    (batch,) = loader
    assert_same_batch(batch, expected)


def test_a_pickled_copy_gives_the_same_frames(kitti):
    dataset = kitti(True)
    first = dataset[(1, 1)]
    assert_same_batch(collate([pickle.loads(pickle.dumps(dataset))[(1, 1)]]), collate([first]))


def test_a_frame_without_objects_is_kept_and_not_replaced(kitti, data_cfg):
    data_cfg.DATA_AUGMENTOR.DISABLE_AUG_LIST = ["gt_sampling"]
    dataset = kitti(True)
    frame = dataset[(0, 3)]
    assert frame.frame_id == "000003"
    assert frame.gt_boxes.shape == (0, 7)
    assert len(frame.voxels)


def test_a_batch_pads_frames_of_which_some_are_empty(kitti, data_cfg):
    data_cfg.DATA_AUGMENTOR.DISABLE_AUG_LIST = ["gt_sampling"]
    frames = [kitti(True)[3], kitti(True)[0], kitti(False, POINT_CLOUD_RANGE=[900, 0, -3, 970.4, 80, 1])[0]]
    batch = collate(frames)
    assert batch.gt_boxes.shape == (3, 3, 7)
    assert batch.gt_labels[0].tolist() == [-1, -1, -1]
    assert not batch.gt_boxes[0].any()
    assert sorted(batch.gt_labels[1].tolist()) == [0, 1, 2]
    assert len(frames[2].voxels) == 0
    assert batch.voxel_coords[:, 0].unique().tolist() == [0, 1]
    assert batch.voxel_coords.dtype == torch.int32
    assert [int((batch.points[:, 0] == i).sum()) for i in range(3)] == [len(frame.points) for frame in frames]
    np.testing.assert_array_equal(batch.points[batch.points[:, 0] == 1][:, 1:], frames[1].points)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_a_batch_of_empty_frames(num_frames):
    nothing = Frame(
        "x", np.zeros((0, 5, 4), np.float32), np.zeros((0, 3), np.int32), np.zeros(0, np.int32),
        np.zeros((0, 7), np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32),
    )  # fmt: skip
    batch = collate([nothing] * num_frames)
    assert batch.batch_size == num_frames
    assert batch.voxels.shape == (0, 5, 4)
    assert batch.voxel_coords.shape == (0, 4)
    assert batch.points.shape == (0, 5)
    assert batch.gt_boxes.shape == (num_frames, 0, 7)
    assert batch.gt_labels.shape == (num_frames, 0)


def test_a_batch_of_no_frames_is_an_error():
    with pytest.raises(ValueError, match="at least one frame"):
        collate([])


def test_a_cloud_without_points_comes_through(tmp_path, data_cfg):
    write_kitti_frames(tmp_path, ["000000", "000001"])
    make_infos(tmp_path, num_workers=1)
    (tmp_path / "training" / "velodyne" / "000000.bin").write_bytes(b"")
    for training in (True, False):
        dataset = build_dataset({**data_cfg, "DATA_PATH": "."}, ["Car"], training, tmp_path, split="train")
        batch = collate([dataset[0], dataset[1]])
        assert (batch.voxel_coords[:, 0] == 1).any()
        assert ((batch.points[:, 0] == 0).sum() == 0) or training


def test_the_last_frame_can_be_counted_from_the_end(kitti):
    assert_same_batch(collate([kitti(True)[(1, -1)]]), collate([kitti(True)[(1, 3)]]))
    with pytest.raises(IndexError):
        kitti(True)[4]


def test_a_subset_has_its_own_order_and_pastes_its_own_objects_only(kitti):
    whole = kitti(True)
    part = whole.subset(["000002", "000000"])
    assert part.frame_ids == ["000002", "000000"]
    assert whole.frame_ids == ["000000", "000001", "000002", "000003"]
    used = {entry["image_idx"] for entries in part._augmentors[0].database.values() for entry in entries}
    assert used == {"000000", "000002"}
    assert part[(0, 0)].frame_id == "000002"
    with pytest.raises(ValueError, match="split train has no frame 000009; it has 4 frames"):
        whole.subset(["000000", "000009"])


def test_a_split_can_be_asked_for(kitti):
    assert kitti(False, split="train").frame_ids == kitti(True).frame_ids
    assert kitti(False).split == "val"
    bare = kitti(False, split="test")
    assert bare.frame_ids == ["000006"]
    assert bare[0].gt_boxes.shape == (0, 7)
    with pytest.raises(ValueError, match="split test has no labels .frame 000006.; evaluation needs"):
        bare.ground_truth()
    with pytest.raises(ValueError, match="training needs another split"):
        kitti(True, split="test")


def test_info_files_of_both_splits_can_be_joined(kitti):
    both = kitti(True, INFO_PATH={"train": ["kitti_infos_train.pkl", "kitti_infos_val.pkl"]})
    assert len(both) == 6


def test_missing_info_files_say_how_to_make_them(tmp_path, data_cfg):
    write_kitti_frames(tmp_path, ["000000"])
    data_cfg.DATA_PATH = str(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no info file .*kitti_infos_train\.pkl; make it with: python tools/make_infos"
    ):
        build_dataset(data_cfg, ["Car"], True)
    with pytest.raises(FileNotFoundError, match=r"no data folder .*nowhere; expected KITTI's layout"):
        build_dataset({**data_cfg, "DATA_PATH": "nowhere"}, ["Car"], True, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DATASET": "NuScenes"}, "unknown DATASET 'NuScenes'; known data sets: .*KittiDataset"),
        ({"GET_ITEM_LIST": ["points", "images"]}, "GET_ITEM_LIST asks for images"),
        ({"POINT_CLOUD_RANGE": [0, 0, 0]}, "POINT_CLOUD_RANGE must be"),
        ({"POINT_CLOUD_RANGE": [0, 40, -3, 70, -40, 1]}, "each min below its max"),
        ({"DATA_SPLIT": {"train": "train"}}, "DATA_SPLIT has no entry 'test'; it has train"),
        ({"DATA_PROCESSOR": [{"NAME": "sample_points"}]}, "unknown processor 'sample_points'.*shuffle_points"),
        ({"DATA_PROCESSOR": []}, "needs transform_points_to_voxels"),
        ({"POINT_FEATURE_ENCODING": {"used_feature_list": ["x", "y", "z", "time"]}}, "names time"),
        ({"POINT_FEATURE_ENCODING": {"encoding_type": "relative"}}, "absolute_coordinates_encoding, got 'relative'"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(kitti, change, message):
    with pytest.raises(ConfigError, match=message):
        kitti(False, **change)


@pytest.mark.parametrize("key", ["DATASET", "DATA_PATH", "DATA_PROCESSOR", "POINT_CLOUD_RANGE", "DATA_SPLIT"])
def test_a_missing_key_is_named(kitti_root, data_cfg, key):
    del data_cfg[key]
    with pytest.raises(ConfigError, match=f"no {key}"):
        build_dataset({"DATA_PATH": ".", **data_cfg} if key != "DATA_PATH" else data_cfg, ["Car"], False, kitti_root)


def test_a_registered_name_is_not_replaced():
    with pytest.raises(ValueError, match="'KittiDataset' is registered already"):
        register_dataset("KittiDataset")(lambda *_, **__: None)


def test_a_missing_road_plane_names_the_switch(tmp_path, data_cfg):
    write_kitti_frames(tmp_path, ["000000"])
    make_infos(tmp_path, num_workers=1)
    (tmp_path / "training" / "planes" / "000000.txt").unlink()
    data_cfg.DATA_PATH = "."
    with pytest.raises(FileNotFoundError, match="USE_ROAD_PLANE: False"):
        build_dataset(data_cfg, ["Car"], True, tmp_path)[0]
    data_cfg.DATA_AUGMENTOR.AUG_CONFIG_LIST[0].USE_ROAD_PLANE = False
    assert len(build_dataset(data_cfg, ["Car"], True, tmp_path)[0].voxels)


def test_openpcdets_own_info_files_are_read(tmp_path, data_cfg):
    """Its database keeps NumPy scalars where ours keeps plain numbers."""
    write_kitti_frames(tmp_path, ["000000"], objects=random_objects(np.random.default_rng(1)))
    make_infos(tmp_path, num_workers=1)
    path = tmp_path / "kitti_dbinfos_train.pkl"
    stored = {
        np.str_(name): [{**entry, "difficulty": np.int32(entry["difficulty"])} for entry in entries]
        for name, entries in load_arrays(path).items()
    }
    data_cfg.DATA_PATH = "."
    expected = collate([build_dataset(data_cfg, ["Car"], True, tmp_path)[0]])
    dump_arrays(stored, path)
    assert_same_batch(collate([build_dataset(data_cfg, ["Car"], True, tmp_path)[0]]), expected)


@pytest.mark.real_data
def test_real_frames_come_through_in_both_modes(real_kitti_root, shipped_cfg):
    shipped_cfg.DATA_PATH = str(real_kitti_root)
    names = ["Car", "Pedestrian", "Cyclist"]
    for training, num_frames in ((True, 5), (False, 6)):
        dataset = build_dataset(shipped_cfg, names, training)
        batch = collate([dataset[i] for i in range(len(dataset))])
        assert batch.batch_size == num_frames
        assert torch.isfinite(batch.voxels).all()
        per_frame = torch.bincount(batch.voxel_coords[:, 0].long())
        assert (per_frame > 10000).all()
        assert per_frame.max() <= dataset.processor.voxelizer.max_voxels
    assert (batch.gt_labels >= 0).sum(dim=1).tolist() == [2, 1, 2, 1, 4, 6]


@pytest.mark.real_data
def test_real_training_objects_stand_on_the_road_and_hold_points(real_kitti_root, shipped_cfg):
    shipped_cfg.DATA_PATH = str(real_kitti_root)
    dataset = build_dataset(shipped_cfg, ["Car", "Pedestrian", "Cyclist"], True)
    pasted = 0
    for epoch in range(2):
        for i, truth in enumerate(dataset.ground_truth()):
            frame = dataset[(epoch, i)]
            own = sum(name in dataset.class_names for name in truth["name"])
            counts = [points_in_box(frame.points, box, 0.02).sum() for box in frame.gt_boxes[own:].astype(float)]
            assert all(count >= 4 for count in counts)
            pasted += len(counts)
    assert pasted > 20
