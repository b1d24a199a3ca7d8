"""Boxes divided into cells, and features pooled over the points of each cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cakdp_ext.ops.reference.neighbors import check_lists

DENSE_LIMIT = 1 << 22
"""Numbers of a block of members laid out at once; a single cell may take more."""


def group_by_cell(
    points: Tensor, boxes: Tensor, start: Tensor, length: Tensor, index: Tensor, num_cells: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the points of each box by the cell that they lie in.

    Args:
        points: ``(N, 3)``.
        boxes: ``(M, 7)``.
        start: ``(M,)`` int64, where the points of each box begin in ``index``.
        length: ``(M,)`` int64, how many they are.
        index: ``(T,)`` int64 rows of the points.
        num_cells: ``(X, Y, Z)``.

    Returns:
        first and count ``(M * X * Y * Z,)`` and members ``(T,)``, int64; in a cell the order of the list stays.
    """
    check_lists(start, length, index, len(points))
    box, rank = _spread(length)
    rows = index[start[box] + rank]
    if len(rows) > len(index):
        raise ValueError(f"the lists overlap, they hold {len(rows)} rows of {len(index)}")
    cell = _cell(points[rows], boxes[box], points.new_tensor(num_cells))
    per_box = num_cells[0] * num_cells[1] * num_cells[2]
    cell, order = torch.sort(box * per_box + cell, stable=True)
    count = torch.bincount(cell, minlength=len(boxes) * per_box)
    members = torch.full_like(index, -1)
    members[: len(rows)] = rows[order]
    return count.cumsum(0) - count, count, members


def pool_cells_mean(features: Tensor, first: Tensor, count: Tensor, members: Tensor) -> Tensor:
    """Average the features of each cell's members; differentiable.

    Args:
        features: ``(N, C)``.
        first: ``(K,)`` int64, where each cell begins in ``members``.
        count: ``(K,)`` int64, how many members it has.
        members: ``(T,)`` int64 rows of the features.

    Returns:
        ``(K, C)``, 0 in empty cells.
    """
    check_lists(first, count, members, len(features))
    pooled = [features[:0]]
    for begins, counts in _blocks(first, count, features.shape[1]):
        cell, rank = _spread(counts)
        rows = features[members[begins[cell] + rank]]
        sums = features.new_zeros(len(counts), features.shape[1]).index_add(0, cell, rows)
        pooled.append(sums / counts.clamp(min=1)[:, None])
    return torch.cat(pooled)


def pool_cells_max(features: Tensor, first: Tensor, count: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Take the largest feature among each cell's members; otherwise as :func:`pool_cells_mean`.

    Args:
        features: ``(N, C)``.
        first: ``(K,)``.
        count: ``(K,)``.
        members: ``(T,)``.

    Returns:
        pooled ``(K, C)``, and the row that each number comes from ``(K, C)`` int64: the first with the largest value,
        NaN being the largest of all, -1 in empty cells.
    """
    check_lists(first, count, members, len(features))
    winner = [members.new_zeros(0, features.shape[1])]
    for begins, counts in _blocks(first, count, features.shape[1]):
        winner.append(_winners(features.detach(), begins, counts, members))
    best = torch.cat(winner)
    padded = torch.cat((features, features.new_zeros(1, features.shape[1])))  # so that -1 is a row of zeros
    return padded[best, torch.arange(features.shape[1], device=features.device)], best


def _winners(features: Tensor, first: Tensor, count: Tensor, members: Tensor) -> Tensor:
    cell, rank = _spread(count)
    rows = members[first[cell] + rank]
    values = features[rows]
    cells = cell[:, None].expand_as(values)
    largest = values.new_full((len(count), features.shape[1]), -torch.inf).scatter_reduce(0, cells, values, "amax")
    wins = (values == largest[cell]) | values.isnan()
    ranks = torch.where(wins, rank[:, None], len(rows))
    earliest = torch.full_like(largest, len(rows), dtype=torch.int64).scatter_reduce(0, cells, ranks, "amin")
    empty = count[:, None] <= 0
    padded = torch.cat((members, members.new_full((1,), -1)))
    return padded[(first[:, None] + earliest).masked_fill(empty, -1)]


def _blocks(first: Tensor, count: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut the cells where their members, ``width`` numbers each, would exceed the limit."""
    if len(count) == 0:
        return iter(())
    before = count.clamp(min=0).cumsum(0) - count.clamp(min=0)
    block = before // max(1, DENSE_LIMIT // max(1, width))
    sizes = torch.unique_consecutive(block, return_counts=True)[1].tolist()
    return zip(first.split(sizes), count.clamp(min=0).split(sizes), strict=True)


def _spread(count: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every element of groups of so many, its group and its rank therein, both ``(T,)``."""
    count = count.clamp(min=0)
    group = torch.arange(len(count), device=count.device).repeat_interleave(count)
    return group, torch.arange(len(group), device=count.device) - (count.cumsum(0) - count)[group]


def _cell(points: Tensor, boxes: Tensor, num_cells: Tensor) -> Tensor:
    """Return the cell ``(T,)`` of each of T points in its own box."""
    x, y, z = (points - boxes[:, :3]).unbind(1)
    cos, sin = torch.cos(boxes[:, 6]), torch.sin(boxes[:, 6])
    local = torch.stack((x * cos + y * sin, y * cos - x * sin, z), dim=1)
    half = boxes[:, 3:6] / 2
    cell = ((local + half) / (2 * half / num_cells)).floor().nan_to_num(0).clamp(min=0)
    cell = torch.minimum(cell, num_cells - 1).long()
    sizes = num_cells.long()
    return (cell[:, 0] * sizes[1] + cell[:, 1]) * sizes[2] + cell[:, 2]
