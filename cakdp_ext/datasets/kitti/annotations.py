"""Detections in the terms of KITTI's evaluation and of its result files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cakdp_ext.datasets.described import wrap_angle
from cakdp_ext.datasets.kitti.calibration import Calibration
from cakdp_ext.datasets.kitti.labels import image_boxes, lidar_to_camera_boxes
from cakdp_ext.types import Detections


def to_annotation(
    detections: Detections, class_names: Sequence[str], calibration: Calibration, image_shape: np.ndarray
) -> dict[str, np.ndarray]:
    """Express the detections of one frame as KITTI describes objects.

    Args:
        detections: n boxes; n may be 0.
        class_names: names of the labels.
        calibration: of the frame.
        image_shape: height and width in pixels.

    Returns:
        name ``(n,)``, truncated and occluded (zeros), alpha, bbox ``(n, 4)``, dimensions ``(n, 3)`` length, height,
        width, location ``(n, 3)``, rotation_y, score, boxes_lidar ``(n, 7)``.
    """
    boxes = detections.boxes.detach().cpu().double().numpy().reshape(-1, 7)
    names = np.array(class_names, dtype=np.str_)[detections.labels.detach().cpu().numpy()]
    location, dimensions, rotation_y = lidar_to_camera_boxes(boxes, calibration)
    return {
        "name": names,
        "truncated": np.zeros(len(boxes)),
        "occluded": np.zeros(len(boxes)),
        "alpha": wrap_angle(rotation_y - np.arctan2(-boxes[:, 1], boxes[:, 0])),
        "bbox": image_boxes(location, dimensions, rotation_y, calibration, image_shape),
        "dimensions": dimensions,
        "location": location,
        "rotation_y": rotation_y,
        "score": detections.scores.detach().cpu().double().numpy(),
        "boxes_lidar": boxes,
    }


def write_kitti_labels(annotations: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write one text file a frame, as KITTI's server and its development kit read them.

    Args:
        annotations: one mapping a frame, with its ``frame_id``; a frame without detections gives an empty file.
        folder: made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for frame in annotations:
        lines = [_line(frame, i) for i in range(len(frame["name"]))]
        (folder / f"{frame['frame_id']}.txt").write_text("".join(lines), encoding="ascii")


def _line(frame: Mapping[str, Any], i: int) -> str:
    length, height, width = frame["dimensions"][i]
    numbers = [frame["alpha"][i], *frame["bbox"][i], height, width, length]
    numbers += [*frame["location"][i], frame["rotation_y"][i], frame["score"][i]]
    return " ".join((str(frame["name"][i]), "-1", "-1", *(f"{value:.4f}" for value in numbers))) + "\n"
