"""Run stock models of OpenPCDet on one real frame: a training step and an evaluation each; a JSON line a model.

A program of its own, since it changes what its process thinks of CUDA: ``models.py CHECKOUT DATA NAME...``.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import time
from pathlib import Path

import cakdp_ext  # noqa: F401  (CAKDP_OPENPCDET_CPU=1 says the rest)

YAML = {
    "second": "kitti_models/second",
    "voxel_rcnn": "kitti_models/voxel_rcnn_car",
    "pv_rcnn": "kitti_models/pv_rcnn",
    "part_a2": "kitti_models/PartA2",
    "pv_rcnn_plusplus": "waymo_models/pv_rcnn_plusplus",
    "centerpoint": "waymo_models/centerpoint",
}
NEAR = {"kitti_models": [0, -20, -3, 35.2, 20, 1], "waymo_models": [0, -19.2, -2, 38.4, 19.2, 4]}
"""Ranges smaller than the configured ones, so that a step takes seconds."""
FRAME = "000008"


def load_config(checkout, name):
    from easydict import EasyDict
    from pcdet.config import cfg_from_yaml_file

    os.chdir(Path(checkout) / "tools")
    return cfg_from_yaml_file(f"cfgs/{YAML[name]}.yaml", EasyDict(ROOT_DIR=Path(checkout), LOCAL_RANK=0))


def batch_of(config, data, training):
    """The frame as its KITTI data set gives it, or, under Waymo's configs, the template of all its data sets."""
    config.DATA_CONFIG.DATA_AUGMENTOR.DISABLE_AUG_LIST = ["gt_sampling", "random_world_flip", "random_world_rotation"]
    give = kitti_batch if config.DATA_CONFIG.DATASET == "KittiDataset" else template_batch
    return give(config, data, training)


def kitti_batch(config, data, training):
    from pcdet.datasets import KittiDataset
    from pcdet.utils.common_utils import create_logger

    dataset = KittiDataset(config.DATA_CONFIG, config.CLASS_NAMES, training, Path(data), create_logger())
    row = [info["point_cloud"]["lidar_idx"] for info in dataset.kitti_infos].index(FRAME)
    return dataset, dataset.collate_batch([dataset[row]])


def template_batch(config, data, training):
    import numpy as np
    from pcdet.datasets import DatasetTemplate

    with open(Path(data) / "kitti_infos_trainval.pkl", "rb") as file:
        infos = pickle.load(file)
    info = next(info for info in infos if info["point_cloud"]["lidar_idx"] == FRAME)["annos"]
    points = np.fromfile(Path(data) / "training" / "velodyne" / f"{FRAME}.bin", np.float32).reshape(-1, 4)
    renamed = np.array([{"Car": "Vehicle"}.get(name, name) for name in info["name"] if name != "DontCare"])
    points = np.concatenate((points, np.zeros_like(points[:, :1])), axis=1)
    dataset = DatasetTemplate(config.DATA_CONFIG, config.CLASS_NAMES, training, Path(data))
    frame = {"points": points, "gt_names": renamed, "gt_boxes": info["gt_boxes_lidar"], "frame_id": FRAME}
    return dataset, dataset.collate_batch([dataset.prepare_data(frame)])


def build(config, dataset):
    import torch
    from pcdet.models import build_network

    torch.manual_seed(0)
    return build_network(config.MODEL, len(config.CLASS_NAMES), dataset).cuda()


def train_once(model, batch):
    """The loss, and of each module how many parameters got a gradient and its norm."""
    import torch
    from pcdet.models import load_data_to_gpu

    model.train()
    load_data_to_gpu(batch)
    torch.manual_seed(0)
    loss = model(batch)[0]["loss"].mean()
    loss.backward()
    gradients = {}
    for name, module in model.named_children():
        grads = [p.grad for p in module.parameters() if p.requires_grad]
        if grads:
            there = [g for g in grads if g is not None]
            norm = torch.stack([g.norm() for g in there]).norm().item() if there else 0.0
            gradients[name] = [len(there), len(grads), norm]
    return loss.item(), gradients


def evaluate_once(model, batch):
    import torch
    from pcdet.models import load_data_to_gpu

    model.eval()
    load_data_to_gpu(batch)
    with torch.no_grad():
        predictions, recall = model(batch)
    return {key: value.tolist() for key, value in predictions[0].items()}, recall


def run(checkout, data, name):
    import numpy as np

    np.random.seed(0)  # noqa: NPY002 (OpenPCDet draws from NumPy's global generator)
    config = load_config(checkout, name)
    config.DATA_CONFIG.POINT_CLOUD_RANGE = NEAR[YAML[name].split("/")[0]]
    config.MODEL.POST_PROCESSING.SCORE_THRESH = 0.0
    if "ROI_HEAD" in config.MODEL:
        config.MODEL.ROI_HEAD.TARGET_CONFIG.ROI_PER_IMAGE = 32
    start = time.perf_counter()
    dataset, batch = batch_of(config, data, training=True)
    model = build(config, dataset)
    ready = time.perf_counter()
    loss, gradients = train_once(model, batch)
    trained = time.perf_counter()
    found, recall = evaluate_once(model, batch_of(config, data, training=False)[1])
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": loss,
        "gradients": gradients,
        "found": found,
        "recall": {key: int(value) for key, value in recall.items()},
        "seconds": [round(b - a, 1) for a, b in ((start, ready), (ready, trained), (trained, time.perf_counter()))],
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for wanted in sys.argv[3:]:
        print("RESULT " + json.dumps(run(sys.argv[1], sys.argv[2], wanted)), flush=True)  # noqa: T201
