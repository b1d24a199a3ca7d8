"""Missing and damaged files end in an error that names them."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from kitti_frames import IMAGE_SHAPE, write_kitti_frames

from cakdp_ext.datasets.kitti.raw import KittiFolder, read_points

READERS = {
    "velodyne": ("points", ".bin"),
    "calib": ("calibration", ".txt"),
    "label_2": ("labels", ".txt"),
    "image_2": ("image_shape", ".png"),
    "planes": ("road_plane", ".txt"),
}


@pytest.fixture
def folder(tmp_path):
    write_kitti_frames(tmp_path, ["000000"])
    return KittiFolder(tmp_path, "train")


def test_image_size_is_height_then_width(folder):
    assert folder.image_shape("000000").tolist() == list(IMAGE_SHAPE)
    assert folder.image_shape("000000").dtype == np.int32


@pytest.mark.parametrize("kind", READERS)
def test_a_missing_file_is_named(folder, kind):
    reader, suffix = READERS[kind]
    with pytest.raises(FileNotFoundError, match=rf"no file .*{kind}/123456\{suffix}, .*frame 123456; expected KITTI"):
        getattr(folder, reader)("123456")


@pytest.mark.parametrize("kind", READERS)
def test_a_missing_folder_is_named(folder, kind):
    shutil.rmtree(folder.frames_folder / kind)
    with pytest.raises(FileNotFoundError, match=rf"no folder .*training/{kind}, .*expected KITTI"):
        getattr(folder, READERS[kind][0])("000000")


def test_a_missing_root_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data folder .*nowhere; expected KITTI's layout: ImageSets"):
        KittiFolder(tmp_path / "nowhere", "train").frame_ids()


def test_a_missing_list_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no list of frames .*val\.txt"):
        KittiFolder(folder.root, "val").frame_ids()


def test_without_a_road_plane_the_switch_is_named(folder):
    (folder.frames_folder / "planes" / "000000.txt").unlink()
    with pytest.raises(FileNotFoundError, match="USE_ROAD_PLANE: False"):
        folder.road_plane("000000")


@pytest.mark.parametrize("text", ["", "# Matrix\n", "a b c d\n", "0 -1 0\n", "1 0 0 2\n", "0 nan 0 1\n"])
def test_a_bad_road_plane_is_named(folder, text):
    (folder.frames_folder / "planes" / "000000.txt").write_text(text)
    with pytest.raises(ValueError, match=r"planes/000000\.txt"):
        folder.road_plane("000000")


def test_a_file_that_is_no_image_is_named(folder):
    (folder.frames_folder / "image_2" / "000000.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"image_2/000000\.png is no image"):
        folder.image_shape("000000")


def test_a_truncated_cloud_is_refused_with_its_size(tmp_path):
    path = tmp_path / "000000.bin"
    path.write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match=r"000000\.bin is truncated.* 40 bytes are no multiple of 16"):
        read_points(path)


def test_an_empty_cloud_has_no_points(tmp_path):
    path = tmp_path / "000000.bin"
    path.touch()
    assert read_points(path).shape == (0, 4)


def test_points_that_are_not_finite_are_dropped_and_counted(tmp_path, caplog):
    path = tmp_path / "000000.bin"
    points = np.arange(20, dtype=np.float32).reshape(5, 4)
    points[1, 2], points[3, 3] = np.nan, np.inf
    points.tofile(path)
    with caplog.at_level(logging.WARNING):
        read = read_points(path)
    np.testing.assert_array_equal(read, points[[0, 2, 4]])
    assert "2 of 5 points are not finite" in caplog.text
