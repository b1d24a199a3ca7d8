"""Features of a point from those of its nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.ops.reference.stacked import blocks_of_pairs, check_rows, squared_distances


def three_nn(unknown: Tensor, unknown_counts: Tensor, known: Tensor, known_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Measure every unknown point against every known one of its frame, and take the least three times.

    Args:
        unknown: ``(N, 3)``, frames one after another.
        unknown_counts: ``(B,)`` int64, unknown points in each.
        known: ``(M, 3)``, likewise.
        known_counts: ``(B,)`` int64, known points in each.

    Returns:
        distances ``(N, 3)``, nearest first, infinite where there is no neighbour; index ``(N, 3)`` int64.
    """
    distances = torch.full_like(unknown, torch.inf)
    index = torch.zeros_like(unknown, dtype=torch.int64)
    for rows, points in blocks_of_pairs(unknown_counts, known_counts):
        squared = squared_distances(unknown[rows], known[points]).nan_to_num(nan=torch.inf, posinf=torch.inf)
        for slot in range(3):
            nearest = squared.argmin(1, keepdim=True)
            distances[rows, slot] = squared.gather(1, nearest)[:, 0].sqrt()
            index[rows, slot] = points.start + nearest[:, 0]
            squared.scatter_(1, nearest, torch.inf)
    none = distances.isinf()
    index[none[:, 0], 0] = 0
    return distances, torch.where(none, index[:, :1], index)


def three_interpolate(features: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Index, weigh and add up; autograd follows.

    Args:
        features: ``(M, C)``.
        index: ``(N, 3)`` int64.
        weights: ``(N, 3)``.

    Returns:
        ``(N, C)``.
    """
    check_rows(index, len(features))
    first, second, third = (features[index[:, slot]] * weights[:, slot, None] for slot in range(3))
    return first + second + third
