"""OpenPCDet's KITTI data on CPU: infos, objects, augmentation and average precision, against ours."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

pytestmark = pytest.mark.real_data


def read_pickle(path):
    with path.open("rb") as file:
        return pickle.load(file)


def test_infos_are_those_that_it_wrote_elsewhere(kitti, real_kitti):
    """The stored ones were made with its own compiled ops."""
    stored = real_kitti / "openpcdet_infos"
    mine = {info["point_cloud"]["lidar_idx"]: info for info in read_pickle(kitti / "kitti_infos_train.pkl")}
    theirs = read_pickle(stored / "kitti_infos_train.pkl")
    for info in theirs:
        annotations = mine[info["point_cloud"]["lidar_idx"]]["annos"]
        for name in ("num_points_in_gt", "name", "difficulty"):
            assert annotations[name].tolist() == info["annos"][name].tolist()
        np.testing.assert_allclose(annotations["gt_boxes_lidar"], info["annos"]["gt_boxes_lidar"], atol=1e-6)
    for path in (stored / "gt_database").iterdir():
        assert (kitti / "gt_database" / path.name).read_bytes() == path.read_bytes()


def test_objects_are_pasted_in_workers(run_program, kitti):
    results, _ = run_program("gt_sampling.py", kitti)
    assert [result["method"] for result in results] == ["fork", "spawn"]
    for result in results:
        assert result["boxes"] > 2 * result["labelled"]
        assert result["voxels"] > 10_000 * result["frames"]


@pytest.fixture(scope="module")
def evaluation(run_program, kitti):
    (result,), _ = run_program("evaluate.py", kitti)
    return result


def test_average_precision_is_ours(evaluation):
    theirs, ours = evaluation["theirs"], evaluation["ours"]
    assert len(theirs) == 36
    assert len([value for value in theirs.values() if 1 < value < 99]) > 30
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-3), name


def test_table_with_the_looser_overlaps_is_ours(evaluation):
    blocks = [dict(blocks_of(evaluation[which])) for which in ("text_theirs", "text_ours")]
    assert len(blocks[0]) == 12
    for title, values in blocks[0].items():
        assert blocks[1][title] == pytest.approx(values, abs=0.0101), title  # aos has two decimals there


def blocks_of(text):
    """Titles and the twelve numbers below each: image, bev, 3d, aos."""
    for title, body in re.findall(r"^(\w+ AP\S*@.*):\n((?:\w+ +AP:.*\n?){4})", text, flags=re.MULTILINE):
        yield title, [float(number) for number in re.findall(r"-?\d+\.\d+", body)]
