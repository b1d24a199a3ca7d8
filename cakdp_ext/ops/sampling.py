"""Few points that stand for many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_counts, as_float
from cakdp_ext.ops.reference import sampling as reference


@torch.no_grad()
def farthest_point_sampling(xyz: Tensor, num_samples: int) -> Tensor:
    """Choose points of each cloud one after another, each the farthest from all that were chosen before it.

    The first point begins. Of points equally far the one with the lowest index is taken, and none is taken twice before
    all have been; then the same choice is repeated from its beginning. Points with a NaN or an infinity are passed
    over; in a cloud that has no other they are taken in order. Distances are rounded alike on every device, so all
    devices choose the same points.

    Args:
        xyz: ``(B, N, 3)`` metres.
        num_samples: how many points to choose in each cloud; more than N repeats them.

    Returns:
        ``(B, num_samples)`` int64, indices into N.

    Raises:
        ValueError: for another shape or dtype, ``num_samples`` below 0, or samples asked of no points.

    Source:
        Eldar et al., "The farthest point strategy for progressive image sampling", IEEE TIP 1997; as used in
        PointNet++ (Qi et al., NeurIPS 2017), section 3.2.
    """
    xyz = as_float(xyz, "xyz", (None, None, 3))
    frames, num_points = xyz.shape[:2]
    _check_number(num_samples)
    if num_points == 0 and frames * num_samples > 0:
        raise ValueError(f"cannot choose {num_samples} of no points; leave out empty clouds")
    counts = torch.full((frames,), num_points, dtype=torch.int64, device=xyz.device)
    chosen = _run(xyz.reshape(-1, 3), counts, [int(num_samples)] * frames).view(frames, num_samples)
    return chosen - torch.arange(frames, device=xyz.device)[:, None] * num_points


@torch.no_grad()
def farthest_point_sampling_stacked(xyz: Tensor, counts: Tensor, num_samples: int | Sequence[int] | Tensor) -> Tensor:
    """Choose points of clouds that lie one after another in one tensor; otherwise as :func:`farthest_point_sampling`.

    On a GPU the values of ``counts`` are not read back: rows outside the clouds they describe are never chosen, and a
    cloud without points gives -1 where a CPU raises.

    Args:
        xyz: ``(N, 3)`` metres, all points of the first cloud, then all of the second, ...
        counts: ``(B,)`` int32 or int64, points in each cloud.
        num_samples: how many points to choose in each cloud, or one number a cloud; a tensor of them on a GPU is
            waited for.

    Returns:
        ``(sum of num_samples,)`` int64, rows of ``xyz``, those of the first cloud first.

    Raises:
        ValueError: for another shape or dtype, ``num_samples`` below 0 or not one a cloud; on a CPU also for counts
            that are not those of the rows, or samples asked of a cloud without points.
    """
    xyz = as_float(xyz, "xyz", (None, 3))
    counts = as_counts(counts, "counts", xyz, "xyz")
    numbers = _one_a_cloud(num_samples, len(counts))
    if len(numbers) != len(counts):
        raise ValueError(f"num_samples must be one number a cloud, got {len(numbers)} for {len(counts)} clouds")
    for number in numbers:
        _check_number(number)
    return _run(xyz, counts, numbers)


def _one_a_cloud(num_samples: int | Sequence[int] | Tensor, num_clouds: int) -> list[int]:
    if isinstance(num_samples, Tensor):
        return num_samples.long().reshape(-1).tolist()
    return list(map(int, num_samples)) if isinstance(num_samples, Sequence) else [int(num_samples)] * num_clouds


def _check_number(num_samples: int) -> None:
    if num_samples < 0:
        raise ValueError(f"num_samples must be at least 0, got {num_samples}")


def _run(xyz: Tensor, counts: Tensor, num_samples: list[int]) -> Tensor:
    if counts.device.type == "cpu":
        for cloud, (count, number) in enumerate(zip(counts.tolist(), num_samples, strict=True)):
            if count == 0 and number > 0:
                raise ValueError(f"cannot choose {number} of the points of cloud {cloud}, it has none; ask for 0 there")
    run = native.implementation("farthest_point_sampling", xyz.device) or reference.farthest_point_sampling
    return run(xyz, counts, num_samples)
