"""The configurations that ship: read once, told apart by the network they describe, and made small."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cakdp_ext.config import load_config, merge
from cakdp_ext.datasets import Frame, collate
from cakdp_ext.datasets.processing import PointProcessor
from cakdp_ext.detectors import build_detector
from cakdp_ext.types import Batch, LidarGeometry

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "cfgs").rglob("*.yaml"))
SMALL = {"KittiDataset": [0, -6.4, -3, 12.8, 6.4, 1], "WaymoDataset": [-6.4, -6.4, -2, 6.4, 6.4, 4]}
NARROW = {"LAYER_NUMS": [1, 1], "NUM_FILTERS": [16, 24], "NUM_UPSAMPLE_FILTERS": [16, 16]}


@cache
def config_of(path: Path) -> Any:
    """Read a YAML; not to be changed."""
    config = load_config(ROOT / path)
    config["CONFIG_FILE"] = str(path)
    return config


def is_model(path: Path) -> bool:
    """Tell whether a YAML describes a detector."""
    return {"MODEL", "CLASS_NAMES"} <= set(config_of(path))


def processor_of(config: Any) -> PointProcessor:
    """Give what cuts the points of a YAML's data."""
    return PointProcessor.from_config(config["DATA_CONFIG"], training=True)


def geometry_of(config: Any) -> LidarGeometry:
    """Give range and voxels of a YAML's data."""
    return processor_of(config).voxelizer.geometry


def network_of(config: Any) -> str:
    """Describe the network of a YAML: the same text for the same network before any cut."""
    sections = {key: value for key, value in config["MODEL"].items() if key not in ("PRUNING", "DISTILL")}
    return json.dumps([sections, list(config["CLASS_NAMES"]), str(geometry_of(config))], default=str)


_BUILT: dict[str, Any] = {}


def built(config: Any) -> Any:
    """Build the network of a YAML, or give the one built before; not to be changed."""
    key = network_of(config)
    if key not in _BUILT:
        _BUILT[key] = build_detector(config["MODEL"], config["CLASS_NAMES"], geometry_of(config))
    return _BUILT[key]


def small(config: Any) -> dict[str, Any]:
    """Give the same configuration with a small range, narrow layers, and few rois and keypoints."""
    limits, model = SMALL[config["DATA_CONFIG"]["DATASET"]], config["MODEL"]
    changed: dict[str, Any] = {"BACKBONE_2D": NARROW}
    if "SHARED_CONV_CHANNEL" in model["DENSE_HEAD"]:
        changed["DENSE_HEAD"] = {"SHARED_CONV_CHANNEL": 12, "POST_PROCESSING": {"POST_CENTER_LIMIT_RANGE": limits}}
    if "PFE" in model:
        changed["PFE"] = {"NUM_KEYPOINTS": 64}
    if "ROI_HEAD" in model:
        size = {"ROI_AWARE_POOL": {"POOL_SIZE": 3, "NUM_FEATURES": 16}} if "ROI_AWARE_POOL" in model["ROI_HEAD"] else {
            "ROI_GRID_POOL": {"GRID_SIZE": 3}
        }  # fmt: skip
        changed["ROI_HEAD"] = {
            "SHARED_FC": [16] * len(model["ROI_HEAD"]["SHARED_FC"]), "CLS_FC": [16, 16], "REG_FC": [16, 16],
            "NMS_CONFIG": {"TRAIN": {"NMS_POST_MAXSIZE": 48}, "TEST": {"NMS_POST_MAXSIZE": 12}},
            "TARGET_CONFIG": {"ROI_PER_IMAGE": 12}, **size,
        }  # fmt: skip
    return merge(config, {"DATA_CONFIG": {"POINT_CLOUD_RANGE": limits}, "MODEL": changed})


@cache
def batch_of(dataset: str, path: Path) -> Batch:
    """Make two frames with an object of each class, some points on each, and few elsewhere."""
    processor = processor_of(small(config_of(path)))
    random = np.random.default_rng(0)
    limits = np.array(SMALL[dataset])
    sizes = np.array([[3.9, 1.6, 1.56], [0.8, 0.8, 1.73], [1.76, 0.6, 1.73]])
    frames = []
    for number in range(2):
        spots = [[-3.0, -3.0], [2.5, -2.0], [0.5, 3.0]] + random.uniform(-0.5, 0.5, (3, 2))
        centers = np.concatenate([spots + (limits[:2] + limits[3:5]) / 2, np.full((3, 1), limits[2] + 1.5)], axis=1)
        boxes = np.concatenate([centers, sizes, np.zeros((3, 1))], axis=1).astype(np.float32)
        near = (centers[:, None] + random.uniform(-0.5, 0.5, (3, 60, 3)) * sizes[:, None]).reshape(-1, 3)
        far = random.uniform(limits[:3], limits[3:], (150, 3))
        xyz = np.concatenate([near, far])
        others = random.uniform(0, 1, (len(xyz), processor.voxelizer.geometry.num_point_features - 3))
        points = np.concatenate([xyz, others], axis=1).astype(np.float32)
        voxels = processor.voxelizer(points)
        frames.append(Frame(f"{number:06d}", *voxels, boxes, np.arange(3), points=points))
    return collate(frames)


def seeded(build: Any, *args: Any) -> Any:
    """Build something with the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args)
