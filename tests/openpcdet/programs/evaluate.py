"""Evaluate made-up detections with OpenPCDet's KITTI evaluation and with ours: ``evaluate.py CHECKOUT DATA``."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np

from cakdp_ext.evaluation import evaluate_kitti

CLASSES = ["Car", "Pedestrian", "Cyclist"]
REPEATS = 12
"""The real frames are few; each is evaluated this often, every time with other detections."""


def detections(truth, rng):
    """Most objects moved a little, some twice, some not at all; a few labelled wrongly."""
    real = np.flatnonzero(truth["name"] != "DontCare")
    rows = rng.permutation(np.concatenate((real[rng.random(len(real)) < 0.9], real[rng.random(len(real)) < 0.2])))
    wrong = rng.random(len(rows)) < 0.1
    size = truth["dimensions"][rows]
    return {
        "name": np.where(wrong, rng.choice(CLASSES, len(rows)), truth["name"][rows]),
        "bbox": truth["bbox"][rows] + rng.normal(0, 2, (len(rows), 4)),
        "location": truth["location"][rows] + rng.normal(0, 0.15, (len(rows), 3)),
        "dimensions": size * rng.uniform(0.95, 1.05, size.shape),
        "rotation_y": truth["rotation_y"][rows] + rng.normal(0, 0.1, len(rows)),
        "alpha": truth["alpha"][rows] + rng.normal(0, 0.3, len(rows)),
        "score": rng.random(len(rows)),
    }


def main(data):
    from pcdet.datasets.kitti.kitti_object_eval_python.eval import get_official_eval_result

    with open(Path(data) / "kitti_infos_val.pkl", "rb") as file:
        truth = [info["annos"] for info in pickle.load(file)] * REPEATS
    rng = np.random.default_rng(0)
    found = [detections(frame, rng) for frame in truth]
    text, theirs = get_official_eval_result(truth, found, CLASSES)
    ours = evaluate_kitti(truth, found, CLASSES)
    metrics = {"theirs": {key: float(value) for key, value in theirs.items()}, "ours": ours.metrics}
    print("RESULT " + json.dumps({**metrics, "text_theirs": text, "text_ours": ours.text}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[2])
