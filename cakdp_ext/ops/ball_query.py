"""Which points surround a position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_counts, as_float, check_alike, check_same_frames
from cakdp_ext.ops.reference import ball_query as reference


@overload
def ball_query(
    xyz: Tensor, counts: Tensor, new_xyz: Tensor, new_counts: Tensor, radius: float, num_samples: int
) -> tuple[Tensor, Tensor]: ...


@overload
def ball_query(
    xyz: Tensor,
    counts: Tensor,
    new_xyz: Tensor,
    new_counts: Tensor,
    radius: Sequence[float],
    num_samples: Sequence[int],
) -> list[tuple[Tensor, Tensor]]: ...


@torch.no_grad()
def ball_query(
    xyz: Tensor,
    counts: Tensor,
    new_xyz: Tensor,
    new_counts: Tensor,
    radius: float | Sequence[float],
    num_samples: int | Sequence[int],
) -> tuple[Tensor, Tensor] | list[tuple[Tensor, Tensor]]:
    """Take the first points, in the order of the rows, nearer than a radius to each query of the same frame.

    Several radii are answered in one pass over the points. On a GPU the values of the counts are not read back: rows
    outside the frames they describe are no neighbours, and queries outside find nothing.

    Args:
        xyz: ``(N, 3)`` metres, all points of the first frame, then all of the second, ...; one with a NaN or an
            infinity is no neighbour.
        counts: ``(B,)`` int32 or int64, points in each frame.
        new_xyz: ``(M, 3)`` metres, the queries, likewise; dtype of ``xyz``. One with a NaN or an infinity finds
            nothing.
        new_counts: ``(B,)`` int32 or int64, queries in each frame.
        radius: metres, or a sequence of radii; a point exactly that far does not count.
        num_samples: how many neighbours a query gets, or as many numbers as radii.

    Returns:
        index ``(M, num_samples)`` int64 rows of ``xyz``, slots that found nothing repeating the query's first point;
        and empty ``(M,)`` bool, True where nothing was found and the whole row is 0. For a sequence of radii a list of
        such pairs. ``(0, num_samples)`` and ``(0,)`` for no queries.

    Raises:
        ValueError: for another shape, tensors that differ in device or dtype, a radius that is not positive, or fewer
            than one sample; on a CPU also for counts that are not those of the rows.

    Source:
        PointNet++ (Qi et al., NeurIPS 2017), section 3.2, "Grouping layer".
    """
    xyz, new_xyz = as_float(xyz, "xyz", (None, 3)), as_float(new_xyz, "new_xyz", (None, 3))
    check_alike(xyz, new_xyz, ("xyz", "new_xyz"))
    counts = as_counts(counts, "counts", xyz, "xyz")
    new_counts = as_counts(new_counts, "new_counts", new_xyz, "new_xyz")
    check_same_frames(counts, new_counts, ("counts", "new_counts"))
    radii, numbers = _check_settings(radius, num_samples)
    run = native.implementation("ball_query", xyz.device) or reference.ball_query
    answers = list(zip(*run(xyz, counts, new_xyz, new_counts, radii, numbers), strict=True))
    return answers if isinstance(radius, Sequence) else answers[0]


def _check_settings(radius: float | Sequence[float], num_samples: int | Sequence[int]) -> tuple[list[float], list[int]]:
    radii = [float(r) for r in radius] if isinstance(radius, Sequence) else [float(radius)]
    numbers = [int(n) for n in num_samples] if isinstance(num_samples, Sequence) else [int(num_samples)] * len(radii)
    if len(radii) != len(numbers) or not radii:
        raise ValueError(f"radius and num_samples must be as many, at least one, got {radii} and {numbers}")
    for each in radii:
        if not (math.isfinite(each) and each > 0):
            raise ValueError(f"radius must be positive metres, got {each}")
    if min(numbers) < 1:
        raise ValueError(f"num_samples must be at least 1, got {min(numbers)}")
    return radii, numbers
