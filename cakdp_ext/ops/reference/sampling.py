"""Few points that stand for many."""

from __future__ import annotations

import torch
from torch import Tensor


def farthest_point_sampling(xyz: Tensor, counts: Tensor, num_samples: list[int]) -> Tensor:
    """Choose points of each cloud, keeping the squared distance of every point to the nearest one chosen.

    Args:
        xyz: ``(N, 3)``, clouds one after another.
        counts: ``(B,)`` int64, points in each.
        num_samples: how many to choose in each.

    Returns:
        ``(sum of num_samples,)`` int64 rows of ``xyz``; -1 for a cloud without points.
    """
    chosen, start = [xyz.new_zeros(0, dtype=torch.int64)], 0
    for cloud, number in zip(xyz.split(counts.tolist()), num_samples, strict=True):
        if len(cloud) == 0:
            chosen.append(torch.full((number,), -1, device=xyz.device))
        elif number > 0:
            chosen.append(start + _sample(cloud, number))
        start += len(cloud)
    return torch.cat(chosen)


def _sample(cloud: Tensor, number: int) -> Tensor:
    usable = cloud.isfinite().all(1).nonzero()[:, 0]
    if len(usable) == 0:
        usable, cloud = torch.arange(len(cloud), device=cloud.device), torch.zeros_like(cloud)
    x, y, z = cloud[usable].T.contiguous()
    nearest = torch.full_like(x, torch.inf)
    chosen = usable.new_zeros(min(number, len(usable)))
    for step in range(len(chosen)):
        chosen[step] = farthest = nearest.argmax()
        dx, dy, dz = x - x[farthest], y - y[farthest], z - z[farthest]
        nearest = torch.minimum(nearest, dx * dx + dy * dy + dz * dz)
        nearest[farthest] = -1  # taken
    return usable[chosen][torch.arange(number, device=cloud.device) % len(usable)]
