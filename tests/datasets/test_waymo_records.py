"""The converter on stand-ins of Waymo's messages: the real package is not needed here."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from types import SimpleNamespace as Message

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets.waymo import WaymoFolder
from cakdp_ext.datasets.waymo.range_image import beam_inclinations, rotations, to_vehicle
from cakdp_ext.datasets.waymo.records import convert_segment, message_types, read_records

HEIGHT, WIDTH = 6, 40
INCLINATIONS = np.deg2rad(np.linspace(-20, 5, HEIGHT))
FRAME_POSE = np.eye(4)
FRAME_POSE[:3, :3] = Rotation.from_euler("xyz", (0.01, 0.02, 0.8)).as_matrix()
FRAME_POSE[:3, 3] = (300.0, -50.0, 7.0)
EXTRINSIC = np.eye(4)
EXTRINSIC[:3, :3] = Rotation.from_euler("z", 2.6).as_matrix()
EXTRINSIC[:3, 3] = (1.4, 0.0, 2.2)


class FakeMatrix:
    """Parses what ``packed`` writes."""

    @staticmethod
    def FromString(data):  # noqa: N802
        tree = json.loads(data)
        return Message(data=tree["data"], shape=Message(dims=tree["dims"]))


def packed(array):
    return zlib.compress(json.dumps({"data": array.ravel().tolist(), "dims": array.shape}).encode())


def loop_points(ranges, inclinations, extrinsic, poses=None, frame=None):
    """One pixel at a time, with homogeneous coordinates and scipy's rotations."""
    points = np.zeros((*ranges.shape, 3))
    yaw = np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
    for row in range(ranges.shape[0]):
        for column in range(ranges.shape[1]):
            middle = (column + 0.5) / ranges.shape[1]
            azimuth = np.pi - 2 * np.pi * middle - yaw
            spin = Rotation.from_euler("yz", (-inclinations[row], azimuth)).as_matrix()
            point = extrinsic @ (*(spin @ (ranges[row, column], 0, 0)), 1)
            if poses is not None:
                pixel = np.eye(4)
                pixel[:3, :3] = Rotation.from_euler("xyz", poses[row, column, :3]).as_matrix()
                pixel[:3, 3] = poses[row, column, 3:]
                point = np.linalg.inv(frame) @ pixel @ point
            points[row, column] = point[:3]
    return points


def pixel_poses(rng):
    """Where the vehicle was while the roof's LiDAR turned: within a metre of the frame's pose."""
    poses = np.zeros((HEIGHT, WIDTH, 6))
    poses[..., :3] = (0.01, 0.02, 0.8) + rng.normal(0, 0.01, 3)
    poses[..., 3:] = FRAME_POSE[:3, 3] + np.linspace(-0.5, 0.5, WIDTH)[None, :, None]
    return poses


@pytest.mark.parametrize("with_poses", [False, True])
def test_pixels_are_placed_as_one_by_one(with_poses):
    rng = np.random.default_rng(0)
    ranges = rng.uniform(1, 60, (HEIGHT, WIDTH))
    more = (pixel_poses(rng), FRAME_POSE) if with_poses else ()
    points = to_vehicle(ranges, INCLINATIONS[::-1], EXTRINSIC, *more)
    np.testing.assert_allclose(points, loop_points(ranges, INCLINATIONS[::-1], EXTRINSIC, *more), atol=1e-9)


def test_middle_column_looks_ahead_and_the_first_row_up():
    points = to_vehicle(np.full((2, 101), 10.0), np.array((0.1, -0.1)), np.eye(4))
    np.testing.assert_allclose(points[0, 50], (10 * np.cos(0.1), 0, 10 * np.sin(0.1)), atol=1e-9)
    assert points[0, 25, 1] > 9  # left of it is left


def test_rotations_are_those_of_scipy():
    angles = np.random.default_rng(1).uniform(-3, 3, (5, 4, 3))
    expected = Rotation.from_euler("xyz", angles.reshape(-1, 3)).as_matrix().reshape(5, 4, 3, 3)
    np.testing.assert_allclose(rotations(angles), expected, atol=1e-12)


def test_beams_sit_in_the_middle_of_their_shares():
    np.testing.assert_allclose(beam_inclinations(-0.3, 0.1, 4), (-0.25, -0.15, -0.05, 0.05))


def range_image(rng):
    image = rng.uniform(1, 40, (HEIGHT, WIDTH, 4))
    image[..., 3] = rng.choice((-1.0, 1.0), (HEIGHT, WIDTH))
    image[rng.random((HEIGHT, WIDTH)) < 0.4] = -1.0  # no return
    return image


def frame_message(rng):
    images = {name: (range_image(rng), range_image(rng)) for name in (2, 1)}
    poses = pixel_poses(rng)
    lasers = [
        Message(
            name=name,
            ri_return1=Message(range_image_compressed=packed(pair[0]), range_image_pose_compressed=packed(poses)),
            ri_return2=Message(range_image_compressed=packed(pair[1])),
        )
        for name, pair in images.items()
    ]
    calibrations = [
        Message(name=2, beam_inclinations=[], beam_inclination_min=-0.4, beam_inclination_max=0.2,
                extrinsic=Message(transform=np.eye(4).ravel().tolist())),
        Message(name=1, beam_inclinations=INCLINATIONS.tolist(),
                extrinsic=Message(transform=EXTRINSIC.ravel().tolist())),
    ]  # fmt: skip
    box = Message(center_x=5.0, center_y=1.0, center_z=1.0, length=4.0, width=2.0, height=1.5, heading=0.2)
    label = Message(
        box=box, type=1, id="car", detection_difficulty_level=2, tracking_difficulty_level=1,
        num_lidar_points_in_box=12,
        metadata=Message(speed_x=1.0, speed_y=2.0, accel_x=0.1, accel_y=0.2),
    )  # fmt: skip
    context = Message(
        name="context", laser_calibrations=calibrations,
        camera_calibrations=[Message(name=2, width=1920, height=886), Message(name=1, width=1920, height=1280)],
    )  # fmt: skip
    frame = Message(context=context, lasers=lasers, laser_labels=[label], timestamp_micros=7,
                    pose=Message(transform=FRAME_POSE.ravel().tolist()))  # fmt: skip
    return frame, images, poses


def write_records(path, records):
    framed = (struct.pack("<Q", len(data)) + bytes(4) + data + bytes(4) for data in records)
    path.write_bytes(b"".join(framed))
    return path


@pytest.fixture
def converted(tmp_path):
    """A record file of two frames, converted; the frames, and what the converter said."""
    frames = {b"first": frame_message(np.random.default_rng(2)), b"second": frame_message(np.random.default_rng(3))}
    messages = Message(MatrixFloat=FakeMatrix, Frame=Message(FromString=lambda data: frames[data][0]))
    file = write_records(tmp_path / "segment-1.tfrecord", frames)
    return tmp_path, frames, [convert_segment(file, tmp_path / "tag", messages) for _ in range(2)]


def test_points_of_all_lidars_and_returns(converted):
    root, frames, said = converted
    assert said == [2, 0]  # converted once, and left as it is
    frame, images, poses = frames[b"second"]
    stored = WaymoFolder(root, "tag").points("segment-1", 1)
    parts = []
    for name, beams, extrinsic, more in (
        (1, INCLINATIONS[::-1], EXTRINSIC, (poses, FRAME_POSE)),
        (2, beam_inclinations(-0.4, 0.2, HEIGHT)[::-1], np.eye(4), ()),
    ):
        for image in images[name]:
            points = loop_points(image[..., 0], beams, extrinsic, *more)
            parts.append(np.concatenate((points, image[..., 1:]), axis=-1)[image[..., 0] > 0])
    np.testing.assert_allclose(stored, np.concatenate(parts), atol=1e-4)
    assert set(stored[:, 5].tolist()) == {-1.0, 1.0}


def test_what_is_told_of_a_sweep(converted):
    root = converted[0]
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("segment-1.tfrecord")
    info = WaymoFolder(root, "tag").split_infos("train")[1]
    assert info["frame_id"] == "segment-1_001"
    assert info["metadata"] == {"context_name": "context", "timestamp_micros": 7}
    assert info["image"] == {"image_shape_0": (1280, 1920), "image_shape_1": (886, 1920)}
    np.testing.assert_allclose(info["pose"], FRAME_POSE, atol=1e-5)
    assert sum(info["num_points_of_each_lidar"]) == len(WaymoFolder(root, "tag").points("segment-1", 1))
    annos = info["annos"]
    assert (annos["name"].tolist(), annos["difficulty"].tolist(), annos["num_points_in_gt"].tolist()) == (
        ["Vehicle"],
        [2],
        [12],
    )
    np.testing.assert_allclose(annos["gt_boxes_lidar"][0, :7], (5, 1, 1, 4, 2, 1.5, 0.2))
    world = FRAME_POSE[:3, :3] @ (*annos["gt_boxes_lidar"][0, 7:], 0)
    assert np.hypot(*world[:2]) == pytest.approx(np.hypot(1, 2), rel=1e-2)


def test_truncated_records(tmp_path):
    file = write_records(tmp_path / "s.tfrecord", [b"one", b"another"])
    assert list(read_records(file)) == [b"one", b"another"]
    file.write_bytes(file.read_bytes()[:-6])
    with pytest.raises(ValueError, match="s.tfrecord is truncated; download it again"):
        list(read_records(file))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "waymo_open_dataset", None)
    with pytest.raises(ConfigError, match="make an environment of its own .* pip install waymo-open-dataset"):
        message_types()
