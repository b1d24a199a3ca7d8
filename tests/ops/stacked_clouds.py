"""Frames that lie one after another in one tensor, for the tests of the ops on them."""

from __future__ import annotations

import numpy as np
import torch


def lattice(count, seed, side=6):
    """Points ``(count, 3)`` on a coarse lattice: many at equal distances, many in the same place."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-side, side + 1, (count, 3)) * 0.5)


def scattered(count, seed, spread=10.0):
    """Points ``(count, 3)`` in a flat box, float32 numbers in float64."""
    points = np.random.default_rng(seed).uniform(-spread / 2, spread / 2, (count, 3)) * (1, 1, 0.3)
    return torch.from_numpy(points.astype(np.float32)).double()


def starts_of(counts):
    return np.concatenate(([0], np.cumsum(counts))).tolist()


def squared(first, second):
    """Squared distances between arrays ``(..., 3)``, rounded one operation at a time."""
    offset = first - second
    return offset[..., 0] * offset[..., 0] + offset[..., 1] * offset[..., 1] + offset[..., 2] * offset[..., 2]
