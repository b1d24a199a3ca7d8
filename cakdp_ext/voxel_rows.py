"""Which voxel is it? Rows of voxels found by their coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 16


def voxel_keys(coords: Tensor) -> Tensor:
    """Number voxels, those of a frame after those of the one before.

    Args:
        coords: ``(N, 4)`` int64, ``(batch, z, y, x)``, each from 0 to below 65536 (batch: 32768).

    Returns:
        ``(N,)`` int64, ascending with batch, then z, y and x.
    """
    batch, z, y, x = coords.unbind(1)
    return (((batch << _BITS | z) << _BITS | y) << _BITS) | x


def find_rows(keys: Tensor, asked: Tensor) -> Tensor:
    """Find where each asked key stands.

    Args:
        keys: ``(N,)`` int64 in any order, none twice.
        asked: ``(M,)`` int64.

    Returns:
        ``(M,)`` int64 rows of ``keys``, -1 where there is no such key.
    """
    if len(keys) == 0:
        return torch.full_like(asked, -1)
    ordered, order = keys.sort()
    places = torch.searchsorted(ordered, asked).clamp(max=len(keys) - 1)
    return order[places].where(ordered[places] == asked, -1)
