"""By how much do values change, and where? Differences of one tensor, for several removals at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Delta:
    """Differences of a tensor from that of the complete network; everywhere else it is unchanged.

    Attributes:
        rows: ``(n,)`` int64, ascending: removal * U + place, of the U places that stand for all (``Sites``).
        values: ``(n + 1, k)`` differences; the last row is zero, for whoever looks where nothing changed.
        channels: ``(k,)`` int64, the channels that differ; None for all of the tensor's.
    """

    rows: Tensor
    values: Tensor
    channels: Tensor | None = None

    def over_all(self, num_channels: int) -> Delta:
        """Write it down for all channels."""
        if self.channels is None:
            return self
        values = self.values.new_zeros(len(self.values), num_channels)
        values[:, self.channels] = self.values
        return Delta(self.rows, values)

    def index(self, num_removals: int, num_sites: int) -> Tensor:
        """Give ``(removals, U + 1)`` int64: the row of ``values`` for each place; place U, none, never changes."""
        missing = len(self.rows)
        index = torch.full((num_removals * (num_sites + 1),), missing, dtype=torch.int64, device=self.rows.device)
        removal, _ = split(self.rows, num_sites)
        index.scatter_(0, self.rows + removal, torch.arange(missing, device=self.rows.device))
        return index.view(num_removals, num_sites + 1)


def split(rows: Tensor, num_sites: int) -> tuple[Tensor, Tensor]:
    """Give the removal and the place of each of some ascending rows."""
    removal = rows.div(num_sites, rounding_mode="floor") if len(rows) and int(rows[-1]) >= num_sites else rows * 0
    return removal, rows - removal * num_sites


def rows_of(is_changed: Tensor) -> Tensor:
    """Give the rows of ``(removals, U)`` marks."""
    return is_changed.reshape(-1).nonzero().flatten()


def silenced(delta: Delta | None, channels: Mapping[int, Tensor], values: Tensor, num_removals: int) -> Delta:
    """Take channels away altogether, whatever arrives in them: they become zero.

    Args:
        delta: what arrives; None for nothing.
        channels: removal -> ``(c,)`` channels.
        values: ``(U, C)`` of the complete network.
        num_removals: how many removals there are.

    Returns:
        Differences over all channels.
    """
    num_sites, width = values.shape
    is_changed = torch.zeros(num_removals, num_sites, dtype=torch.bool, device=values.device)
    if delta is not None:
        is_changed.view(-1)[delta.rows] = True
    for removal, gone in channels.items():
        is_changed[removal] |= (values[:, gone] != 0).any(dim=1)
    rows = rows_of(is_changed)
    changes = values.new_zeros(len(rows) + 1, width)
    if delta is not None:
        changes[torch.searchsorted(rows, delta.rows)] = delta.over_all(width).values[:-1]
    removal_of, site = split(rows, num_sites)
    for removal, gone in channels.items():
        start, end = torch.searchsorted(removal_of, torch.tensor([removal, removal + 1], device=rows.device)).tolist()
        changes[start:end, gone] = -values[site[start:end]][:, gone]
    return Delta(rows, changes)


def silenced_alone(channels: Tensor, values: Tensor) -> Delta:
    """Take channels away from a tensor that is otherwise unchanged, for one removal; see :func:`silenced`."""
    gone = values[:, channels]
    rows = (gone != 0).any(dim=1).nonzero().flatten()
    return Delta(rows, torch.cat([-gone[rows], gone.new_zeros(1, len(channels))]), channels)


def joined(parts: Mapping[int, Delta], num_sites: int) -> Delta | None:
    """Put differences of single removals together; None when nothing differs.

    Args:
        parts: removal -> its differences over all channels, its own removal counted as 0.
        num_sites: U.
    """
    found = {removal: part for removal, part in sorted(parts.items()) if len(part.rows)}
    if not found:
        return None
    rows = torch.cat([part.rows + removal * num_sites for removal, part in found.items()])
    values = [part.values[:-1] for part in found.values()]
    return Delta(rows, torch.cat([*values, values[0].new_zeros(1, values[0].shape[1])]))
