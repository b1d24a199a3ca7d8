"""Waymo's metrics again, slowly: a loop a cutoff, a frame and a pair, shapely for overlaps, scipy for matching."""

import math
from functools import cache

import numpy as np
from scipy.optimize import linear_sum_assignment
from shapely import affinity, geometry

MIN_OVERLAP = {"Vehicle": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}


def footprint(box):
    x, y, _, dx, dy, _, heading = map(float, box)
    outline = geometry.box(-dx / 2, -dy / 2, dx / 2, dy / 2)
    return affinity.translate(affinity.rotate(outline, heading, origin=(0, 0), use_radians=True), x, y)


@cache
def iou_3d(box1, box2):
    low = max(box1[2] - box1[5] / 2, box2[2] - box2[5] / 2)
    high = min(box1[2] + box1[5] / 2, box2[2] + box2[5] / 2)
    if high <= low or min(*box1[3:6], *box2[3:6]) <= 0.01:
        return 0.0
    shared = footprint(box1).intersection(footprint(box2)).area * (high - low)
    return shared / (np.prod(box1[3:6]) + np.prod(box2[3:6]) - shared)


def level_of(truth, i):
    if truth["difficulty"][i] > 0:
        return int(truth["difficulty"][i])
    return 1 if truth["num_points_in_gt"][i] > 5 else 2


def heading_accuracy(heading1, heading2):
    apart = abs(math.remainder(float(heading1) - float(heading2), 2 * math.pi))
    return 1 - apart / math.pi


def count_frame(truth, found, name, cutoff, level):
    """Right ones, the sum of their heading accuracies, wrong ones and missed ones in one frame."""
    gts = [i for i in range(len(truth["name"])) if truth["name"][i] == name and truth["num_points_in_gt"][i] > 0]
    pds = [j for j in range(len(found["name"])) if found["name"][j] == name]
    pds = [j for j in pds if np.float32(found["score"][j]) >= np.float32(cutoff)]
    iou = np.array(
        [[iou_3d(tuple(found["boxes_lidar"][j]), tuple(truth["gt_boxes_lidar"][i][:7])) for i in gts] for j in pds]
    )
    iou = iou.reshape(len(pds), len(gts))
    weights = np.where(iou >= MIN_OVERLAP[name], np.round(iou * 1e6), 0)
    rows, columns = linear_sum_assignment(weights, maximize=True)
    pairs = [(pds[r], gts[c]) for r, c in zip(rows, columns, strict=True) if weights[r, c] > 0]
    taken = {i for _, i in pairs}
    accuracies = [heading_accuracy(found["boxes_lidar"][j][6], truth["gt_boxes_lidar"][i][6]) for j, i in pairs]
    missed = sum(i not in taken and level_of(truth, i) <= level for i in gts)
    return np.array([len(pairs), sum(accuracies), len(pds) - len(pairs), missed])


def area(points, step=0.05):
    """Walk down from the highest recall; ``points`` are pairs of recall and precision."""
    best = {0.0: 1.0}
    for recall, precision in points:
        best[recall] = max(best.get(recall, 0.0), precision)
    curve, top, last = [], 0.0, 0.0
    for recall in sorted(best, reverse=True):
        while last - recall > step + 1e-6:
            last -= step
            curve.append((last, top))
        top = max(top, best[recall])
        curve.append((recall, top))
        last = recall
    if len(curve) >= 2:
        curve[-1] = (curve[-1][0], curve[-2][1])
    return sum((r1 - r2) * (p1 + p2) / 2 for (r1, p1), (r2, p2) in zip(curve, curve[1:], strict=False))


def slow_metrics(ground_truth, detections, names):
    """Every AP and APH in percent."""
    metrics = {}
    for name in names:
        for level in (1, 2):
            ap_points, aph_points = [], []
            for cutoff in [k * 0.01 for k in range(100)] + [1.0]:
                frames = zip(ground_truth, detections, strict=True)
                right, heading, wrong, missed = sum(
                    (count_frame(truth, found, name, cutoff, level) for truth, found in frames), np.zeros(4)
                )
                recall = right / (right + missed) if right + missed else 0.0
                for points, value in ((ap_points, right), (aph_points, heading)):
                    precision = value / (right + wrong) if right + wrong else 0.0
                    points.append((recall, precision if recall else 1.0))
            key = f"OBJECT_TYPE_TYPE_{name.upper()}_LEVEL_{level}"
            metrics[f"{key}/AP"], metrics[f"{key}/APH"] = 100 * area(ap_points), 100 * area(aph_points)
    return metrics
