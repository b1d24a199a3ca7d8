"""Sweeps of a segment, written in the layout that OpenPCDet's processing leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cakdp_ext.files import atomic_path
from cakdp_ext.pickles import dump_arrays
from cakdp_ext.waymo_layout import NUM_FEATURES, STORED

TYPES = ("unknown", "Vehicle", "Pedestrian", "Sign", "Cyclist")
"""Class of each number that Waymo's records give to a label's type."""


@dataclass(frozen=True)
class WaymoLabel:
    """One object of a sweep, in the vehicle's frame.

    Attributes:
        name: one of ``TYPES``.
        box: ``(7,)`` geometric centre, full sizes, heading.
        speed: along x and y of the world, metres a second.
        acceleration: likewise.
        difficulty: 2 where the annotators called it hard to detect, 1 for easy, 0 for neither.
        tracking_difficulty: likewise.
        num_points: returns inside.
        identity: the same for one object in all sweeps of a segment.
    """

    name: str
    box: np.ndarray
    speed: tuple[float, float] = (0.0, 0.0)
    acceleration: tuple[float, float] = (0.0, 0.0)
    difficulty: int = 0
    tracking_difficulty: int = 0
    num_points: int = 0
    identity: str = ""


@dataclass(frozen=True)
class WaymoSweep:
    """One sweep and all that is known of it.

    Attributes:
        points: ``(N, 6)`` in the vehicle's frame, see ``STORED``.
        pose: ``(4, 4)`` from the vehicle's frame to the world's.
        labels: None for a sweep without labels.
        context_name: of the segment, as Waymo's servers know it.
        timestamp_micros: of the sweep.
        points_of_lidars: how many of the points each LiDAR gave, in order.
        image_shapes: height and width of each camera's pictures.
    """

    points: np.ndarray
    pose: np.ndarray
    labels: tuple[WaymoLabel, ...] | None
    context_name: str
    timestamp_micros: int
    points_of_lidars: tuple[int, ...] = ()
    image_shapes: tuple[tuple[int, int], ...] = field(default=())


def write_segment(folder: Path, name: str, sweeps: Iterable[WaymoSweep]) -> list[dict[str, Any]]:
    """Write a segment: one array a sweep, and, when all are there, the pickle that describes them.

    Args:
        folder: ``PROCESSED_DATA_TAG`` below the data's root.
        name: of the segment; ``folder/name`` is made.
        sweeps: all of them, in order; they are taken one at a time.

    Returns:
        What the pickle holds.

    Raises:
        ValueError: for points of another shape.
    """
    (folder / name).mkdir(parents=True, exist_ok=True)
    infos = []
    for number, sweep in enumerate(sweeps):
        if sweep.points.ndim != 2 or sweep.points.shape[1] != len(STORED):
            raise ValueError(f"a sweep has points (N, {len(STORED)}), got {sweep.points.shape} in {name}, {number}")
        np.save(folder / name / f"{number:04d}.npy", sweep.points.astype(np.float32, copy=False))
        infos.append(_info(name, number, sweep))
    with atomic_path(folder / name / f"{name}.pkl") as path:
        dump_arrays(infos, path)
    return infos


def _info(name: str, number: int, sweep: WaymoSweep) -> dict[str, Any]:
    info: dict[str, Any] = {
        "point_cloud": {"num_features": NUM_FEATURES, "lidar_sequence": name, "sample_idx": number},
        "frame_id": f"{name}_{number:03d}",
        "metadata": {"context_name": sweep.context_name, "timestamp_micros": sweep.timestamp_micros},
        "image": {f"image_shape_{camera}": shape for camera, shape in enumerate(sweep.image_shapes)},
        "pose": np.asarray(sweep.pose, dtype=np.float32).reshape(4, 4),
        "num_points_of_each_lidar": list(sweep.points_of_lidars or (len(sweep.points),)),
    }
    if sweep.labels is not None:
        info["annos"] = label_columns(sweep.labels, sweep.pose)
    return info


def label_columns(labels: Iterable[WaymoLabel], pose: np.ndarray) -> Mapping[str, np.ndarray]:
    """Turn labels into columns, in the names and shapes of OpenPCDet's infos; ``unknown`` objects are left out.

    Args:
        labels: of one sweep.
        pose: ``(4, 4)`` from the vehicle's frame to the world's: speeds of the boxes are in the vehicle's.

    Returns:
        name, difficulty, dimensions ``(n, 3)``, location ``(n, 3)``, heading_angles, obj_ids, tracking_difficulty,
        num_points_in_gt, speed_global ``(n, 2)``, accel_global ``(n, 2)``, gt_boxes_lidar ``(n, 9)``: the box and its
        speed along x and y.
    """
    known = [label for label in labels if label.name != TYPES[0]]
    boxes = np.array([label.box for label in known], dtype=np.float64).reshape(-1, 7)
    speed = np.array([label.speed for label in known], dtype=np.float64).reshape(-1, 2)
    of_vehicle = np.pad(speed, ((0, 0), (0, 1))) @ np.linalg.inv(np.asarray(pose, dtype=np.float64)[:3, :3]).T
    return {
        "name": np.array([label.name for label in known], dtype=np.str_),
        "difficulty": np.array([label.difficulty for label in known], dtype=np.int64),
        "dimensions": boxes[:, 3:6],
        "location": boxes[:, :3],
        "heading_angles": boxes[:, 6],
        "obj_ids": np.array([label.identity for label in known], dtype=np.str_),
        "tracking_difficulty": np.array([label.tracking_difficulty for label in known], dtype=np.int64),
        "num_points_in_gt": np.array([label.num_points for label in known], dtype=np.int64),
        "speed_global": speed,
        "accel_global": np.array([label.acceleration for label in known], dtype=np.float64).reshape(-1, 2),
        "gt_boxes_lidar": np.concatenate((boxes, of_vehicle[:, :2]), axis=1),
    }
