from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from waymo_frames import TAG, label, segment_name, sweep, write_waymo

from cakdp_ext.datasets.waymo import make_waymo_infos, write_segment
from cakdp_ext.pickles import load_arrays

CFG = {"PROCESSED_DATA_TAG": TAG}
ENDING = "train_sampled_1"


def database(root, ending=ENDING):
    return load_arrays(root / f"{TAG}_waymo_dbinfos_{ending}.pkl")


def test_what_is_written(tmp_path):
    root = write_waymo(tmp_path / "w")
    summary = make_waymo_infos(CFG, root, num_workers=2)
    assert summary.num_frames == {"train": 7, "val": 2}
    assert summary.num_objects == {"Vehicle": 2, "Pedestrian": 4, "Cyclist": 7}  # of every 4th, 2nd and each sweep
    assert [len(load_arrays(root / f"{TAG}_infos_{split}.pkl")) for split in ("train", "val")] == [7, 2]
    made = database(root)
    points = np.load(root / f"{TAG}_gt_database_{ENDING}_global.npy")
    assert [entry["sample_idx"] for entry in made["Vehicle"]] == [0, 0]
    assert [entry["sequence_name"] for entry in made["Vehicle"]] == [segment_name(0), segment_name(1)]
    for entry in (entry for entries in made.values() for entry in entries):
        inside = np.fromfile(root / entry["path"], dtype=np.float32).reshape(-1, 5)
        assert len(inside) == entry["num_points_in_gt"]
        np.testing.assert_array_equal(points[slice(*entry["global_data_offset"])], inside)
        name = f"{entry['sequence_name']}_{entry['sample_idx']:04d}_{entry['name']}_{entry['gt_idx']}.bin"
        assert Path(entry["path"]) == Path(f"{TAG}_gt_database_{ENDING}", name)


def test_points_of_an_object_are_squashed_and_centred(tmp_path):
    root = write_waymo(tmp_path / "w")
    make_waymo_infos(CFG, root, num_workers=1)
    entry = database(root)["Vehicle"][0]
    inside = np.fromfile(root / entry["path"], dtype=np.float32).reshape(-1, 5)
    stored = np.load(root / TAG / segment_name(0) / "0000.npy")
    box = entry["box3d_lidar"]
    apart = stored[:, :3] - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    along, across = apart[:, 0] * cos + apart[:, 1] * sin, apart[:, 1] * cos - apart[:, 0] * sin
    mask = (np.abs(np.stack((along, across, apart[:, 2]))) < box[3:6, None] / 2).all(axis=0)
    assert mask.sum() >= 30
    np.testing.assert_allclose(inside[:, :3], apart[mask], atol=1e-5)
    np.testing.assert_allclose(inside[:, 3], np.tanh(stored[mask, 3]), rtol=1e-6)


def test_point_in_two_boxes_belongs_to_the_first(tmp_path):
    root = write_waymo(tmp_path / "w", train=(1,))
    pair = tuple(label("Cyclist", 5.0 + shift, 0.0, 0.0, num_points=3) for shift in (0.0, 0.4))
    points = np.float32([[5.2, 0, 0.9, 0.1, 0.1, -1], [6.2, 0, 0.9, 0.1, 0.1, -1]])
    write_segment(root / TAG, segment_name(0), [replace(sweep(points=points), labels=pair)])
    make_waymo_infos(CFG, root, num_workers=1)
    assert [entry["num_points_in_gt"] for entry in database(root)["Cyclist"]] == [1, 1]


@pytest.mark.parametrize(("offset", "first"), [([-1, 0], -4), ([-6, 0], -6)])
def test_database_of_several_sweeps_holds_five_at_least(tmp_path, offset, first):
    root = write_waymo(tmp_path / "w", train=(8,))
    make_waymo_infos({**CFG, "SEQUENCE_CONFIG": {"ENABLED": True, "SAMPLE_OFFSET": offset}}, root, num_workers=1)
    ending = f"{ENDING}_multiframe_{first}_to_0"
    points = np.load(root / f"{TAG}_gt_database_{ending}_global.npy")
    assert points.shape[1] == 6
    assert 0 <= points[:, 5].min() <= points[:, 5].max() <= -0.1 * first + 1e-6
    assert sum(entry["num_points_in_gt"] for entries in database(root, ending).values() for entry in entries) == len(
        points
    )


def test_sampled_interval_counts_sweeps(tmp_path):
    root = write_waymo(tmp_path / "w")
    make_waymo_infos(CFG, root, num_workers=1, sampled_interval=3)
    made = database(root, "train_sampled_3")
    assert [entry["sample_idx"] for entry in made["Cyclist"]] == [0, 3, 2]  # sweeps 0, 3, 6 of all


def test_made_again_over_what_is_there(tmp_path):
    root = write_waymo(tmp_path / "w")
    for _ in range(2):
        make_waymo_infos(CFG, root, num_workers=1)
    assert not [path for path in root.iterdir() if path.name.startswith(".")]
    assert len(list((root / f"{TAG}_gt_database_{ENDING}").iterdir())) == 13


def test_a_failure_leaves_what_was_there(tmp_path):
    root = write_waymo(tmp_path / "w")
    make_waymo_infos(CFG, root, num_workers=1)
    before = {path.name: path.stat().st_mtime_ns for path in root.iterdir()}
    (root / TAG / segment_name(1) / "0001.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="0001.npy is truncated or no array"):
        make_waymo_infos(CFG, root, num_workers=1)
    assert {path.name: path.stat().st_mtime_ns for path in root.iterdir()} == before
