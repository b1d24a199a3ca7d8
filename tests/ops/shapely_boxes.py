"""Random boxes, and their overlaps from shapely's float64 polygons."""

from __future__ import annotations

import numpy as np
import shapely
import torch


def random_boxes(count, seed, spread=12.0, smallest=0.3, largest=5.0):
    """Boxes (count, 7), float64, whose headings go several times around."""
    rng = np.random.default_rng(seed)
    boxes = np.empty((count, 7))
    boxes[:, :3] = rng.uniform(-spread / 2, spread / 2, (count, 3)) * (1, 1, 0.2)
    boxes[:, 3:6] = rng.uniform(smallest, largest, (count, 3))
    boxes[:, 6] = rng.uniform(-7, 7, count)
    return torch.from_numpy(boxes)


def jittered(boxes, seed, amount=0.2):
    """The boxes a little moved, resized and turned, in proportion to their size."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.uniform(-amount, amount, boxes.shape))
    moved = boxes.clone()
    moved[:, :3] += noise[:, :3] * boxes[:, 3:6]
    moved[:, 3:6] *= 1 + noise[:, 3:6]
    moved[:, 6] += noise[:, 6]
    return moved


def polygons(boxes):
    """One polygon a box, as seen from above, from corners computed with complex numbers."""
    x, y, _, dx, dy, _, heading = boxes.double().cpu().numpy().T[..., None]
    local = dx / 2 * [1, -1, -1, 1] + 1j * dy / 2 * [1, 1, -1, -1]
    corners = x + 1j * y + local * np.exp(1j * heading)
    return shapely.polygons(np.stack((corners.real, corners.imag), axis=-1))


def shapely_overlap(boxes1, boxes2):
    """Overlap areas (N, M) of what the tensors hold, in float64."""
    shared = shapely.intersection(polygons(boxes1)[:, None], polygons(boxes2)[None])
    return torch.from_numpy(shapely.area(shared))


def shapely_iou_bev(boxes1, boxes2):
    overlap = shapely_overlap(boxes1, boxes2)
    area1, area2 = (boxes.double().cpu()[:, 3:5].prod(1) for boxes in (boxes1, boxes2))
    return overlap / (area1[:, None] + area2 - overlap)


def shared_height(boxes1, boxes2):
    """Of boxes (..., 7) that broadcast."""
    top = torch.minimum(boxes1[..., 2] + boxes1[..., 5] / 2, boxes2[..., 2] + boxes2[..., 5] / 2)
    bottom = torch.maximum(boxes1[..., 2] - boxes1[..., 5] / 2, boxes2[..., 2] - boxes2[..., 5] / 2)
    return (top - bottom).clamp(min=0)


def shapely_iou_3d(boxes1, boxes2):
    first, second = boxes1.double().cpu(), boxes2.double().cpu()
    overlap = shapely_overlap(boxes1, boxes2) * shared_height(first[:, None], second)
    return overlap / (first[:, 3:6].prod(1)[:, None] + second[:, 3:6].prod(1) - overlap)


def shapely_distance(boxes1, boxes2):
    """Gaps (N, M) between the boxes seen from above, 0 where they meet."""
    return torch.from_numpy(shapely.distance(polygons(boxes1)[:, None], polygons(boxes2)[None]))
