"""Small data sets in KITTI's terms: made by hand, or at random and full of awkward cases."""

import math

import numpy as np

SIZES = {
    "Car": (3.9, 1.56, 1.6),
    "Van": (5.1, 2.2, 1.9),
    "Pedestrian": (0.8, 1.73, 0.6),
    "Person_sitting": (0.8, 1.3, 0.6),
    "Cyclist": (1.76, 1.73, 0.6),
    "Truck": (10.1, 3.2, 2.6),
    "DontCare": (-1.0, -1.0, -1.0),
}


def thing(name="Car", place=0, score=None, **changes):
    """One easy object; objects of different places are far apart both in space and in the image."""
    made = {
        "name": name,
        "truncated": 0.0,
        "occluded": 0,
        "alpha": 0.3,
        "bbox": (200.0 * place, 100.0, 200.0 * place + 120.0, 180.0),
        "dimensions": SIZES[name],
        "location": (20.0 * place, 1.6, 20.0),
        "rotation_y": 0.4,
    }
    return {**made, **({} if score is None else {"score": score}), **changes}


def annotation(things, scored=False, **extra):
    """One frame's mapping of arrays."""
    keys = ["truncated", "occluded", "alpha", "bbox", "dimensions", "location", "rotation_y"] + ["score"] * scored
    shapes = {"bbox": (0, 4), "dimensions": (0, 3), "location": (0, 3)}
    arrays = {k: np.array([t[k] for t in things], float).reshape(-1, *shapes.get(k, (0,))[1:]) for k in keys}
    return {"name": np.array([t["name"] for t in things], dtype=str), **arrays, **extra}


def annotations(frames):
    """Ground truth and detections of frames that are pairs of lists of things."""
    return [annotation(t) for t, _ in frames], [annotation(d, scored=True) for _, d in frames]


def random_truth(rng):
    name = str(rng.choice(["Car", "Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "Truck", "DontCare"]))
    left, top = rng.uniform(0, 260), rng.uniform(0, 60)
    height = rng.choice([25.0, 40.0, *rng.uniform(20, 120, 6)])
    return {
        "name": name,
        "truncated": float(rng.choice([0.0, 0.0, 0.0, 0.0, 0.15, 0.2, 0.4, 0.6])),
        "occluded": int(rng.choice([0, 0, 0, 0, 0, 1, 2, 3])),
        "alpha": rng.uniform(-math.pi, math.pi),
        "bbox": (left, top, left + rng.uniform(20, 90), top + height),
        "dimensions": tuple(np.array(SIZES[name]) * rng.uniform(0.9, 1.1, 3)),
        "location": (rng.uniform(-4, 4), rng.uniform(1.4, 1.8), rng.uniform(5, 12)),
        "rotation_y": rng.uniform(-math.pi, math.pi),
    }


def random_detection(rng, truths):
    """A jittered ground truth, often of its class, or something anywhere; scores are coarse and therefore tie."""
    base = dict(truths[rng.integers(len(truths))]) if truths and rng.uniform() < 0.8 else random_truth(rng)
    if base["name"] in ("DontCare", "Van", "Person_sitting", "Truck") or rng.uniform() < 0.1:
        base["name"] = str(rng.choice(["Car", "Pedestrian", "Cyclist"]))
    amount = rng.choice([0.0, 0.3, 1.0])
    size = np.abs(np.array(base["dimensions"])) * (1 + amount * rng.normal(0, 0.1, 3))
    return {
        **base,
        "score": float(rng.integers(0, 6)) / 5 - 0.2,
        "alpha": base["alpha"] + rng.normal(0, 0.5),
        "bbox": tuple(np.array(base["bbox"]) + amount * rng.normal(0, 4, 4)),
        "dimensions": tuple(np.maximum(size, 0.2)),
        "location": tuple(np.array(base["location"]) + amount * rng.normal(0, 0.2, 3)),
        "rotation_y": base["rotation_y"] + amount * rng.normal(0, 0.2),
    }


def random_frames(rng, num_frames, num_truths, num_detections):
    """Frames of crowded objects; some have no ground truth, some no detection, some neither."""
    frames = []
    for _ in range(num_frames):
        truths = [random_truth(rng) for _ in range(rng.integers(0, num_truths + 1))]
        found = [random_detection(rng, truths) for _ in range(rng.integers(0, num_detections + 1))]
        frames.append((truths, [*found, *found[:1]] if rng.uniform() < 0.3 else found))
    return frames
