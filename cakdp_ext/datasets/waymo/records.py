"""Waymo's own records (``.tfrecord``), turned into the processed layout.

Only the messages' definitions are needed of Waymo's package, and only when this is used; TensorFlow is not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets.waymo.range_image import beam_inclinations, to_vehicle
from cakdp_ext.datasets.waymo.writer import TYPES, WaymoLabel, WaymoSweep, write_segment

TOP = 1
"""Number of the LiDAR on the roof, the only one whose pixels have poses of their own."""
INSTALL = (
    "converting Waymo's records needs its package, which pins old versions of much else: make an environment of its "
    "own with Python 3.10 and there pip install waymo-open-dataset-tf-2-12-0, then pip install --no-deps this project"
)


def message_types() -> Any:
    """Import the definitions of Waymo's messages.

    Raises:
        ConfigError: where they are missing; says what to install.
    """
    try:
        return import_module("waymo_open_dataset.dataset_pb2")
    except ImportError as error:
        raise ConfigError(f"{INSTALL} ({error})") from error


def convert_segment(file: Path, folder: Path, messages: Any) -> int:
    """Write one record file as a processed segment.

    Args:
        file: the ``.tfrecord``.
        folder: ``PROCESSED_DATA_TAG`` below the data's root.
        messages: of :func:`message_types`.

    Returns:
        How many sweeps it has; 0 for a segment that was there already.

    Raises:
        ValueError: for a file that is truncated or holds something else.
    """
    if (folder / file.stem / f"{file.stem}.pkl").is_file():
        return 0
    sweeps = (sweep_of(messages.Frame.FromString(record), messages) for record in read_records(file))
    return len(write_segment(folder, file.stem, sweeps))


def read_records(file: Path) -> Iterator[bytes]:
    """Give the records of a TFRecord file: each is framed by its length, a checksum of that, and one of itself.

    Raises:
        ValueError: when the file ends within a record.
    """
    with file.open("rb") as stream:
        while header := stream.read(12):
            size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
            record = stream.read(size) if len(header) == 12 else b""
            if len(header) < 12 or len(record) < size or len(stream.read(4)) < 4:
                raise ValueError(f"{file} is truncated; download it again")
            yield record


def sweep_of(frame: Any, messages: Any) -> WaymoSweep:
    """Read one frame: points of all LiDARs, both returns of each, and labels.

    Args:
        frame: a ``Frame`` message.
        messages: of :func:`message_types`.
    """
    pose = _matrix(frame.pose.transform)
    clouds = [_cloud(frame, calibration, pose, messages) for calibration in _in_order(frame.context.laser_calibrations)]
    cameras = _in_order(frame.context.camera_calibrations)
    return WaymoSweep(
        points=np.concatenate([np.zeros((0, 6), dtype=np.float32), *clouds]),
        pose=pose,
        labels=tuple(map(_label, frame.laser_labels)),
        context_name=str(frame.context.name),
        timestamp_micros=int(frame.timestamp_micros),
        points_of_lidars=tuple(map(len, clouds)),
        image_shapes=tuple((int(camera.height), int(camera.width)) for camera in cameras),
    )


def _in_order(named: Any) -> list[Any]:
    return sorted(named, key=lambda item: item.name)


def _cloud(frame: Any, calibration: Any, pose: np.ndarray, messages: Any) -> np.ndarray:
    """Points ``(N, 6)`` of one LiDAR, first returns before second ones."""
    laser = next(laser for laser in frame.lasers if laser.name == calibration.name)
    poses = None
    if calibration.name == TOP:
        poses = _image(laser.ri_return1.range_image_pose_compressed, messages)
    parts = []
    for returned in (laser.ri_return1, laser.ri_return2):
        image = _image(returned.range_image_compressed, messages)
        beams = np.array(calibration.beam_inclinations, dtype=np.float64)
        if not len(beams):
            beams = beam_inclinations(calibration.beam_inclination_min, calibration.beam_inclination_max, len(image))
        points = to_vehicle(image[..., 0], beams[::-1], _matrix(calibration.extrinsic.transform), poses, pose)
        seen = image[..., 0] > 0
        parts.append(np.concatenate((points[seen], image[seen][:, 1:4]), axis=1))
    return np.concatenate(parts).astype(np.float32)


def _image(compressed: bytes, messages: Any) -> np.ndarray:
    matrix = messages.MatrixFloat.FromString(zlib.decompress(compressed))
    return np.array(matrix.data, dtype=np.float64).reshape(tuple(matrix.shape.dims))


def _matrix(transform: Any) -> np.ndarray:
    return np.array(transform, dtype=np.float64).reshape(4, 4)


def _label(label: Any) -> WaymoLabel:
    box, metadata = label.box, label.metadata
    return WaymoLabel(
        name=TYPES[label.type],
        box=np.array((box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading)),
        speed=(metadata.speed_x, metadata.speed_y),
        acceleration=(metadata.accel_x, metadata.accel_y),
        difficulty=int(label.detection_difficulty_level),
        tracking_difficulty=int(label.tracking_difficulty_level),
        num_points=int(label.num_lidar_points_in_box),
        identity=str(label.id),
    )
