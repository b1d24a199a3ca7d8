"""A tiny generated data set and, where they are present, the real frames."""

from __future__ import annotations

from pathlib import Path

import pytest
from kitti_frames import write_kitti_frames

from cakdp_ext.config import load_config
from cakdp_ext.datasets import build_dataset, make_infos

PROJECT = Path(__file__).resolve().parents[2]
CLASS_NAMES = ("Car", "Pedestrian", "Cyclist")


@pytest.fixture(scope="session")
def kitti_root(tmp_path_factory):
    """Four frames of train (the last without objects), two of val, one of test; not to be changed."""
    root = tmp_path_factory.mktemp("kitti")
    write_kitti_frames(root, ["000000", "000001", "000002"])
    write_kitti_frames(root, ["000003"], objects=())
    write_kitti_frames(root, ["000004", "000005"], "val")
    write_kitti_frames(root, ["000006"], "test")
    make_infos(root, num_workers=1)
    return root


@pytest.fixture(scope="session")
def real_kitti_root(real_kitti, tmp_path_factory):
    """The real frames with info files beside them."""
    root = tmp_path_factory.mktemp("real_kitti")
    for name in ("training", "ImageSets"):
        (root / name).symlink_to(real_kitti / name)
    make_infos(root, num_workers=2)
    return root


@pytest.fixture
def shipped_cfg():
    """The configuration that the project ships, with the points kept; a test may change it."""
    config = load_config(PROJECT / "cfgs" / "datasets" / "kitti.yaml")
    config.KEEP_POINTS = True
    return config


@pytest.fixture
def data_cfg(shipped_cfg):
    """The same with voxels so large that tests take little memory."""
    shipped_cfg.DATA_PROCESSOR[-1].VOXEL_SIZE = [0.2, 0.2, 0.2]
    return shipped_cfg


@pytest.fixture
def kitti(kitti_root, data_cfg):
    """Build the generated data set: ``kitti(training, KEY=value, ...)``."""

    def build(training, *, class_names=CLASS_NAMES, seed=0, split=None, **changes):
        return build_dataset({**data_cfg, **changes}, class_names, training, kitti_root, seed, split=split)

    data_cfg.DATA_PATH = "."
    return build
