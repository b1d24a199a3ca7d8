"""Time KITTI's average precision on a random set of the size of its val split, part by part.

python benchmarks/kitti_ap.py [--frames 3769] [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cakdp_ext.evaluation import evaluate_kitti
from cakdp_ext.evaluation.kitti_annotations import read_detections, read_ground_truth
from cakdp_ext.evaluation.kitti_measure import build_scene, measure
from cakdp_ext.evaluation.kitti_text import result_text
from cakdp_ext.evaluation.overlaps import box_overlaps, dont_care_cover, image_overlaps

CLASSES = ("Car", "Pedestrian", "Cyclist")
NAMES = np.array(["Car", "Car", "Car", "Pedestrian", "Cyclist", "Van", "DontCare"])
SIZES = {"Car": (3.9, 1.56, 1.6), "Pedestrian": (0.8, 1.73, 0.6), "Cyclist": (1.76, 1.73, 0.6), "Van": (5.1, 2.2, 1.9)}
FOCAL, CENTER = 721.5, np.array([609.6, 172.9])


def project(objects: dict[str, np.ndarray]) -> np.ndarray:
    """Rough image boxes: as wide as the length, as high as the height, at the object's distance."""
    scale = FOCAL / objects["location"][:, 2:]
    bottom = objects["location"][:, :2] * scale + CENTER
    half = objects["dimensions"][:, :1] * scale / 2
    top = bottom[:, 1:] - objects["dimensions"][:, 1:2] * scale
    return np.concatenate([bottom[:, :1] - half, top, bottom[:, :1] + half, bottom[:, 1:]], axis=1)


def objects_of(names: np.ndarray, location: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    size = np.array([SIZES.get(name, SIZES["Car"]) for name in names]).reshape(-1, 3)
    objects = {
        "name": names,
        "location": location,
        "dimensions": size * rng.uniform(0.95, 1.05, size.shape),
        "rotation_y": rng.uniform(-np.pi, np.pi, len(names)),
        "alpha": rng.uniform(-np.pi, np.pi, len(names)),
    }
    return {**objects, "bbox": project(objects)}


def random_frame(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """About 5 ground truths, and 20 to 50 detections: some near each of them, the rest anywhere."""
    names = rng.choice(NAMES, rng.integers(2, 9))
    location = rng.uniform((-20, 1.4, 5), (20, 1.8, 60), (len(names), 3))
    truth = objects_of(names, location, rng)
    truth["truncated"] = rng.choice([0.0, 0.0, 0.0, 0.2, 0.4], len(names))
    truth["occluded"] = rng.integers(0, 4, len(names))
    near = rng.integers(0, len(names), 3 * len(names))
    far = rng.uniform((-20, 1.4, 5), (20, 1.8, 60), (rng.integers(10, 27), 3))
    found = objects_of(
        np.concatenate([np.where(names == "DontCare", "Car", names)[near], rng.choice(NAMES[:5], len(far))]),
        np.concatenate([location[near] + rng.normal(0, 0.1, (len(near), 3)), far]),
        rng,
    )
    found["rotation_y"][: len(near)] = truth["rotation_y"][near] + rng.normal(0, 0.05, len(near))
    found["alpha"][: len(near)] = truth["alpha"][near] + rng.normal(0, 0.1, len(near))
    found["score"] = rng.uniform(0, 1, len(found["name"]))
    return truth, found


def timed(label: str, run: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    value = run()
    print(f"{label:<34}{time.perf_counter() - begin:8.2f} s")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=3769)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    frames = [random_frame(rng) for _ in range(args.frames)]
    truth, found = [t for t, _ in frames], [d for _, d in frames]
    print(f"{len(frames)} frames, {sum(len(t['name']) for t in truth)} ground truths, ", end="")
    print(f"{sum(len(d['name']) for d in found)} detections, {args.threads} threads")
    evaluate_kitti(truth[:50], found[:50], CLASSES)  # first calls load and start things
    labelled = timed("read ground truth", lambda: read_ground_truth(truth))
    scored = timed("read detections", lambda: read_detections(found))
    timed("image overlaps", lambda: image_overlaps(labelled, scored))
    timed("cover by DontCare regions", lambda: dont_care_cover(labelled, scored))
    timed("footprint and volume overlaps", lambda: box_overlaps(labelled, scored))
    scene = build_scene(labelled, scored)
    results = timed("matching and precision, 45 cells", lambda: measure(scene, CLASSES))
    timed("table", lambda: result_text(results, CLASSES, len(scored.scores)))
    evaluation = timed("evaluate_kitti, all of it", lambda: evaluate_kitti(truth, found, CLASSES))
    print(f"mAP_3d/moderate_R40 {evaluation.metrics['mAP_3d/moderate_R40']:.2f}")


if __name__ == "__main__":
    main()
