"""Small Waymo segments made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from cakdp_ext.config import load_config
from cakdp_ext.datasets.waymo import WaymoLabel, WaymoSweep, write_segment

TAG = "waymo_processed_data_v0_5_0"
CLASSES = ["Vehicle", "Pedestrian", "Cyclist"]
SIZES = {"Vehicle": (4.6, 2.0, 1.7), "Pedestrian": (0.9, 0.8, 1.7), "Cyclist": (1.8, 0.8, 1.8), "Sign": (0.1, 0.6, 0.6)}


def pose_of(number, speed=5.0, turn=0.05):
    """Vehicle to world: straight ahead and turning, somewhere far from the world's origin."""
    pose = np.eye(4)
    cos, sin = np.cos(0.7 + turn * number), np.sin(0.7 + turn * number)
    pose[:2, :2] = ((cos, -sin), (sin, cos))
    pose[:3, 3] = (900.0 + 0.1 * speed * number, -1200.0, 20.0)
    return pose


def label(name, x, y, heading=0.3, **more):
    length, width, height = SIZES[name]
    return WaymoLabel(name, np.array((x, y, height / 2, length, width, height, heading)), **more)


LABELS = (
    label("Vehicle", 10.0, 2.0, num_points=40, identity="a"),
    label("Sign", 6.0, -4.0, num_points=9, identity="b"),
    label("Pedestrian", -8.0, 3.0, num_points=7, identity="c", speed=(1.0, 0.5)),
    label("Cyclist", 5.0, 8.0, num_points=0, identity="d", difficulty=2),
    WaymoLabel("unknown", np.ones(7)),
)


def labels_of(number, seed):
    """The same objects, each sweep and each segment with them elsewhere."""
    step = np.array((10.0 * seed, 5.0 * number, 0, 0, 0, 0, 0))
    return tuple(replace(each, box=each.box + step) for each in LABELS)


def points_around(boxes, rng, per_box=30, elsewhere=200):
    """Points inside every box and on the ground, with features and no zone flag."""
    parts = [np.column_stack((rng.uniform(-30, 30, (elsewhere, 2)), np.zeros(elsewhere)))]
    for box in boxes:
        local = rng.uniform(-0.45, 0.45, (per_box, 3)) * box[3:6]
        cos, sin = np.cos(box[6]), np.sin(box[6])
        turned = np.column_stack((local[:, 0] * cos - local[:, 1] * sin, local[:, 0] * sin + local[:, 1] * cos))
        parts.append(np.column_stack((turned, local[:, 2])) + box[:3])
    xyz = np.concatenate(parts)
    return np.column_stack((xyz, rng.gamma(1.0, 1.0, len(xyz)), rng.uniform(0, 1, len(xyz)), -np.ones(len(xyz))))


def sweep(number=0, labels=None, points=None, seed=0):
    labels = labels_of(number, seed) if labels is None else labels
    boxes = [each.box for each in labels if each.name != "unknown" and each.num_points]
    rng = np.random.default_rng((seed, number))
    points = points_around(boxes, rng) if points is None else points
    return WaymoSweep(points.astype(np.float32), pose_of(number), labels, "context", 1000 + number)


def segment_name(index):
    return f"segment-{index}_with_camera_labels"


def write_waymo(root, train=(4, 3), val=(2,)):
    """Segments of so many sweeps, and their lists."""
    sizes = {"train": train, "val": val}
    (root / "ImageSets").mkdir(parents=True)
    index = 0
    for split, counts in sizes.items():
        names = []
        for count in counts:
            write_segment(root / TAG, segment_name(index), [sweep(k, seed=index) for k in range(count)])
            names.append(f"{segment_name(index)}.tfrecord")
            index += 1
        (root / "ImageSets" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def waymo_config(root, **changes):
    """What ``cfgs/datasets/waymo.yaml`` says, without augmentation."""
    config = load_config("cfgs/datasets/waymo.yaml")
    tree = json.loads(json.dumps(config))
    plain = {"DATA_PATH": str(root), "DATA_AUGMENTOR": None, "KEEP_POINTS": True}
    tree["DATA_PROCESSOR"][1]["SHUFFLE_ENABLED"] = {"train": False, "test": False}
    return {**tree, **plain, **changes}
