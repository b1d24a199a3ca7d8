"""Pairs of boxes that are hard to overlap exactly, and their overlaps by clipping polygons in float64."""

from __future__ import annotations

import numpy as np
import shapely

PAIRS_PER_KIND = 13_000
SIZES = (0.1, 0.3, 1.0, 4.0, 20.0)


def hard_pairs(size, seed=0, count=PAIRS_PER_KIND, offset=0.0):
    """Two arrays (P, 7), float32: what they hold is the truth. Sizes are about ``size``, places about ``offset``."""
    rng = np.random.default_rng(seed)
    kinds = [kind(size, count, rng) for kind in KINDS]
    first, second = (np.concatenate(boxes) for boxes in zip(*kinds, strict=True))
    place = offset * rng.choice([-1, 1], (len(first), 2)) + rng.uniform(-size, size, (len(first), 2))
    for boxes in (first, second):
        boxes[:, :2] += place
    return first.astype(np.float32), second.astype(np.float32)


def base(size, count, rng):
    boxes = np.empty((count, 7))
    boxes[:, :3] = 0
    boxes[:, 3:6] = size * rng.uniform(0.3, 1, (count, 3))
    boxes[:, 6] = rng.uniform(-7, 7, count)
    return boxes


def moved(boxes, along, across):
    """The boxes shifted along their own axes."""
    shift = (along + 1j * across) * np.exp(1j * boxes[:, 6])
    result = boxes.copy()
    result[:, 0] += shift.real
    result[:, 1] += shift.imag
    return result


def tiny(count, rng):
    """Numbers of either sign from 1e-9 to 1e-2, and some zeros."""
    return rng.choice([-1, 0, 1, 1], count) * 10 ** rng.uniform(-9, -2, count)


def anyhow(size, count, rng):
    second = base(size, count, rng)
    second[:, :3] = size * rng.uniform(-0.7, 0.7, (count, 3))
    return base(size, count, rng), second


def nearly_parallel(size, count, rng):
    first, second = anyhow(size, count, rng)
    second[:, 6] = first[:, 6] + tiny(count, rng) + np.pi / 2 * rng.integers(-2, 3, count)
    return first, second


def sharing_an_edge(size, count, rng):
    """The second one's rear lies on the first one's front, or sticks a little through it."""
    first, second = base(size, count, rng), base(size, count, rng)
    second[:, 6] = first[:, 6]
    second[:, :2] = first[:, :2]
    along = (first[:, 3] + second[:, 3]) / 2 * (1 + tiny(count, rng) * rng.integers(0, 2, count))
    inner = (first[:, 3] - second[:, 3]) / 2
    second = moved(second, np.where(rng.random(count) < 0.5, along, inner), size * rng.uniform(-0.5, 0.5, count))
    second[:, 6] += np.pi * rng.integers(0, 2, count)
    return first, second


def sharing_a_corner(size, count, rng):
    first, second = base(size, count, rng), base(size, count, rng)
    corner = moved(first, first[:, 3] / 2, first[:, 4] / 2)
    second[:, :2] = corner[:, :2]
    return first, moved(second, *(rng.choice([-0.5, 0.5], (2, count)) * second[:, 3:5].T))


def contained(size, count, rng):
    first, second = base(size, count, rng), base(size, count, rng)
    second[:, 3:6] *= rng.uniform(0.01, 0.3, (count, 1))
    second[:, :3] = size * rng.uniform(-0.1, 0.1, (count, 3))
    return first, second


def needles(size, count, rng):
    """One of two, or both, up to 200 times as long as wide."""
    first, second = anyhow(size, count, rng)
    first[:, 4] = first[:, 3] / rng.uniform(10, 200, count)
    crossing = rng.random(count) < 0.5
    second[:, 4] = np.where(crossing, second[:, 4], first[:, 4] * rng.uniform(0.5, 2, count))
    second[:, 6] = np.where(crossing, second[:, 6], first[:, 6] + tiny(count, rng))
    near = moved(first, size * rng.uniform(-0.5, 0.5, count), first[:, 4] * rng.uniform(-1, 1, count))
    second[:, :2] = np.where(crossing[:, None], second[:, :2], near[:, :2])
    return first, second


def jittered_copies(size, count, rng):
    first = base(size, count, rng)
    amount = 10 ** rng.uniform(-8, -1, (count, 1))
    noise = amount * rng.uniform(-1, 1, (count, 7))
    second = first.copy()
    second[:, :3] += size * noise[:, :3]
    second[:, 3:6] *= 1 + noise[:, 3:6]
    second[:, 6] += noise[:, 6]
    return first, second


def touching(size, count, rng):
    """A corner of the second one on the first one's front, or off it by next to nothing."""
    first, second = base(size, count, rng), base(size, count, rng)
    turn = rng.uniform(0.01, np.pi / 2 - 0.01, count)
    second[:, 6] = first[:, 6] + turn
    reach = (second[:, 3] * np.cos(turn) + second[:, 4] * np.sin(turn)) / 2
    second[:, :2] = first[:, :2]
    gap = size * tiny(count, rng) * rng.integers(0, 2, count)
    direction = moved(first, first[:, 3] / 2 + reach + gap, size * rng.uniform(-0.5, 0.5, count))
    second[:, :2] = direction[:, :2]
    return first, second


KINDS = (
    anyhow,
    nearly_parallel,
    sharing_an_edge,
    sharing_a_corner,
    contained,
    needles,
    jittered_copies,
    touching,
)


def corners(boxes, center):
    """Corners (P, 4) in the complex plane around a centre (P, 2), counter-clockwise."""
    x, y, _, dx, dy, _, heading = boxes.astype(np.float64).T[..., None]
    local = dx / 2 * [1, -1, -1, 1] + 1j * dy / 2 * [1, 1, -1, -1]
    return (x - center[:, :1]) + 1j * (y - center[:, 1:]) + local * np.exp(1j * heading)


def clipped_overlap(boxes1, boxes2):
    """Overlap areas (P,) by cutting the second polygon off at the four edges of the first one, in float64."""
    center = boxes1[:, :2].astype(np.float64)
    polygon = corners(boxes2, center) * np.exp(-1j * boxes1[:, 6:].astype(np.float64))
    for half in (boxes1[:, 3:4].astype(np.float64) / 2, boxes1[:, 4:5].astype(np.float64) / 2):
        for _ in range(2):
            polygon = -cut(polygon, half)
        polygon = polygon * -1j
    ahead = np.roll(polygon, -1, axis=1)
    return np.abs((polygon.conj() * ahead).imag.sum(1)) / 2


def cut(polygon, limit):
    """What of convex polygons (P, K) has a real part up to a limit (P, 1): (P, K + 1), the first vertex repeated."""
    ahead = np.roll(polygon, -1, axis=1)
    from_limit, ahead_from_limit = polygon.real - limit, ahead.real - limit
    inside, does_cross = from_limit <= 0, (from_limit <= 0) != (ahead_from_limit <= 0)
    part = from_limit / np.where(does_cross, from_limit - ahead_from_limit, 1)
    points = np.stack((polygon, polygon + part * (ahead - polygon)), axis=2).reshape(len(polygon), -1)
    chosen = np.stack((inside, does_cross), axis=2).reshape(len(polygon), -1)
    place = chosen.cumsum(axis=1) - 1
    result = np.zeros((len(polygon), polygon.shape[1] + 1), dtype=complex)
    row, column = chosen.nonzero()
    result[row, place[row, column]] = points[row, column]
    is_free = np.arange(result.shape[1]) > place[:, -1:]
    return np.where(is_free, result[:, :1], result)


def polygons(boxes1, boxes2):
    """Both as shapely's polygons (P,), around the centres of the first ones."""
    center = boxes1[:, :2].astype(np.float64)
    shapes = (corners(boxes, center) for boxes in (boxes1, boxes2))
    return [shapely.polygons(np.stack((shape.real, shape.imag), axis=-1)) for shape in shapes]
