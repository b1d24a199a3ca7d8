"""Which places of a map say the same? Places whose whole receptive field agrees are computed once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_HASHED_AT_ONCE = 2**18


@dataclass(frozen=True)
class Sites:
    """The places of one tensor, sorted by what they say.

    A sparse tensor's places are its voxels, a map's its cells. Places with equal labels hold equal vectors whatever the
    weights are, because everything that reaches them is equal too: far from any voxel a map repeats itself.

    Attributes:
        label: ``(n,)`` int64: which representative every place agrees with.
        representatives: ``(U,)`` int64: one place for each label, ascending.
    """

    label: Tensor
    representatives: Tensor

    @property
    def count(self) -> int:
        """Number of representatives."""
        return len(self.representatives)

    @classmethod
    def alike(cls, rows: Tensor) -> Sites:
        """Places agree where their rows do.

        Args:
            rows: ``(n, K)`` int64.
        """
        label = _distinct_rows(rows)
        count = int(label.max()) + 1 if len(label) else 0
        place = torch.arange(len(label), device=rows.device)
        first = torch.full((count,), len(label), device=rows.device).scatter_reduce(0, label, place, "amin")
        ranked = first.argsort()
        rank = torch.empty_like(ranked)
        rank[ranked] = torch.arange(count, device=rows.device)
        return cls(rank[label], first[ranked])

    @classmethod
    def of_values(cls, values: Tensor) -> Sites:
        """Places of a tensor that never changes agree where its vectors do, bit for bit.

        Args:
            values: ``(n, C)``.
        """
        words = values.contiguous().view(torch.uint8) if values.element_size() == 1 else values.contiguous()
        kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return cls.alike(words.view(kinds[values.element_size()]).long())


def _distinct_rows(rows: Tensor) -> Tensor:
    """Number the different rows of a matrix: ``(n,)`` int64; found by a hash, which is then checked."""
    if rows.shape[1] == 1:
        return rows[:, 0].unique(return_inverse=True)[1]
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator).to(rows.device) * 2 + 1
    digest = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    together = max(_HASHED_AT_ONCE // max(len(rows), 1), 1)
    for columns, weights in zip(rows.split(together, dim=1), factors.split(together), strict=True):
        digest += (_mixed(columns) * weights).sum(dim=1)
    label = digest.unique(return_inverse=True)[1]
    one_of = torch.empty_like(label).scatter_(0, label, torch.arange(len(label), device=rows.device))
    if bool((rows == rows[one_of[label]]).all()):
        return label
    return rows.unique(dim=0, return_inverse=True)[1]


def _mixed(values: Tensor) -> Tensor:
    """Spread neighbouring numbers over all 64 bits (the finaliser of SplitMix64, Steele et al., 2014)."""
    values = (values ^ ((values >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    values = (values ^ ((values >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return values ^ ((values >> 31) & 0x1FFFFFFFF)
