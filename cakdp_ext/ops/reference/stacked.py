"""Frames that lie one after another in one tensor."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

DENSE_LIMIT = 1 << 20
"""Pairs measured at once."""


def blocks_of_pairs(query_counts: Tensor, counts: Tensor) -> Iterator[tuple[slice, slice]]:
    """Give the rows of a few queries and the rows of all points of their frame, until every query had its turn.

    Queries of a frame without points are left out.
    """
    first_query = first_point = 0
    for num_queries, num_points in zip(query_counts.tolist(), counts.tolist(), strict=True):
        at_once = max(1, DENSE_LIMIT // max(1, num_points))
        last_query, last_point = first_query + num_queries, first_point + num_points
        for begin in range(first_query, last_query if num_points else first_query, at_once):
            yield slice(begin, min(begin + at_once, last_query)), slice(first_point, last_point)
        first_query, first_point = last_query, last_point


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return ``(N, M)`` squared distances between the rows ``(N, 3)`` and ``(M, 3)``, rounded as the kernels do."""
    x, y, z = (first[:, None] - second).unbind(-1)
    return x * x + y * y + z * z


def check_rows(index: Tensor, num_rows: int) -> None:
    """Raise ValueError unless every index is a row of the features; on a CPU only, for it reads them all."""
    if index.device.type != "cpu" or index.numel() == 0:
        return
    low, high = index.min().item(), index.max().item()
    if low < 0 or high >= num_rows:
        raise ValueError(f"index must lie within the {num_rows} rows of features, got {low if low < 0 else high}")
