"""Neighbouring points of a position, from all distances."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.ops.reference.stacked import blocks_of_pairs, squared_distances


def ball_query(
    xyz: Tensor, counts: Tensor, new_xyz: Tensor, new_counts: Tensor, radii: list[float], num_samples: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Measure every query against every point of its frame.

    Args:
        xyz: ``(N, 3)``, frames one after another.
        counts: ``(B,)`` int64, points in each.
        new_xyz: ``(M, 3)``, the queries, likewise.
        new_counts: ``(B,)`` int64, queries in each.
        radii: R of them.
        num_samples: neighbours a query, for each radius.

    Returns:
        R indices ``(M, num_samples)`` int64 and R masks ``(M,)`` of the queries that found nothing.
    """
    index = [counts.new_zeros(len(new_xyz), number) for number in num_samples]
    empty = [torch.ones(len(new_xyz), dtype=torch.bool, device=xyz.device) for _ in radii]
    for queries, points in blocks_of_pairs(new_counts, counts):
        distances = squared_distances(new_xyz[queries], xyz[points])
        for i, (radius, number) in enumerate(zip(radii, num_samples, strict=True)):
            first = _first(distances < radius * radius, number)
            empty[i][queries] = first[:, 0] < 0
            index[i][queries] = torch.where(first[:, :1] < 0, 0, points.start + first)
    return index, empty


def _first(near: Tensor, number: int) -> Tensor:
    """Return the first columns that are true in each row, the rest filled with the very first; -1 where none is."""
    none = near.shape[1]
    column = torch.where(near, torch.arange(none, device=near.device), none)
    first = column.topk(min(number, none), dim=1, largest=False, sorted=True).values
    first = torch.nn.functional.pad(first, (0, number - first.shape[1]), value=none)
    first = torch.where(first == none, first[:, :1], first)
    return torch.where(first == none, -1, first)
