"""How many labelled objects does a detector find? Counted by class, with at least so many LiDAR points inside.

``python benchmarks/recall.py --cfg cfgs/kitti/few_frames/second.yaml --ckpt output/kitti/few_frames/second/default``
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from cakdp_ext import ops
from cakdp_ext.config import load_config
from cakdp_ext.datasets import collate
from cakdp_ext.engine.build import restore_student
from cakdp_ext.engine.data import build_split


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True)
    parser.add_argument("--ckpt", required=True, help="checkpoint or run folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--min_points", type=int, default=20)
    parser.add_argument("--iou", type=float, default=0.7, help="3D IoU that counts as found")
    parser.add_argument("--set", dest="overrides", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    args = parser.parse_args()
    config = load_config(args.cfg, args.overrides)
    config.DATA_CONFIG.KEEP_POINTS = True
    dataset = build_split(config, args.split)
    model = restore_student(config, dataset.geometry, args.ckpt).model.eval()
    found = {name: [] for name in config.CLASS_NAMES}
    for index in range(len(dataset)):
        batch = collate([dataset[index]])
        with torch.inference_mode():
            detections = model(batch)[0]
        boxes, labels = batch.gt_boxes[0], batch.gt_labels[0]
        inside = ops.points_in_boxes(batch.points[:, 1:4], boxes[labels >= 0])
        for number, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            points = int((inside == number).sum())
            if points < args.min_points:
                continue
            same = detections.boxes[detections.labels == label]
            best = float(ops.iou_3d(box[None], same).max()) if len(same) else 0.0
            name = config.CLASS_NAMES[int(label)]
            found[name].append(best)
            print(f"{batch.frame_ids[0]}  {name:<11} {points:5} points  best 3D IoU {best:.3f}")
    for name, ious in found.items():
        share = f"{np.mean(np.array(ious) > args.iou):.0%}" if ious else "-"
        print(f"{name}: {sum(iou > args.iou for iou in ious)} of {len(ious)} found at 3D IoU {args.iou} ({share})")


if __name__ == "__main__":
    main()
