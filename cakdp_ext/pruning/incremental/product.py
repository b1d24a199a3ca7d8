"""How is a change carried through a convolution? Gathered rows times weights, a block that fits the cache at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from cakdp_ext.pruning.incremental.delta import Delta, rows_of, split

BLOCK = {"cpu": 1024, "cuda": 65536}
"""Output rows that are computed together."""
_ROUNDED_TO = 256
"""Rows are filled up to a multiple of this: for every number of rows oneDNN compiles a kernel and keeps it."""
_MAX_PHASES = 16

RowsDo = Callable[[Tensor, Tensor], Tensor]
"""``(m, C)`` differences, which may be overwritten, and their ``(m,)`` places -> ``(m, C)`` differences."""


class KernelProduct:
    """A convolution as a table of what each output reads, and weights.

    Args:
        table: ``(U_out, K)`` int64 places of the input; ``num_inputs`` for none.
        weight: ``(C_out, K, C_in)``.
        num_inputs: U_in.
    """

    def __init__(self, table: Tensor, weight: Tensor, num_inputs: int) -> None:
        self.table, self.weight, self.num_inputs = table, weight, num_inputs
        self.macs = 0

    @property
    def num_outputs(self) -> int:
        """U_out."""
        return len(self.table)

    def __call__(self, delta: Delta, num_removals: int, then: RowsDo | None = None) -> Delta:
        """Carry differences through.

        Args:
            delta: of the input.
            num_removals: that it speaks of.
            then: what is done with the rows before they are written.
        """
        index = delta.index(num_removals, self.num_inputs)
        is_changed = (index < len(delta.rows)).t().contiguous().index_select(0, self.table.flatten())
        rows = rows_of(is_changed.view(*self.table.shape, num_removals).any(dim=1).t())
        weight = self.weight if delta.channels is None else self.weight[:, :, delta.channels]
        out = torch.empty(len(rows) + 1, len(weight), dtype=weight.dtype, device=weight.device)
        out[-1] = 0
        for offsets, mine in self._phases_of(rows):
            matrix = _Matrix(weight[:, offsets].flatten(1))
            self._fill(out, rows, mine, self.table[:, offsets], matrix, delta.values, index, then)
        return Delta(rows, out)

    def _fill(
        self,
        out: Tensor,
        rows: Tensor,
        mine: Tensor | None,
        table: Tensor,
        matrix: _Matrix,
        values: Tensor,
        index: Tensor,
        then: RowsDo | None,
    ) -> None:
        """Compute the rows that ``mine`` numbers (None: all of them), a block at a time."""
        size = BLOCK.get(values.device.type, BLOCK["cuda"])
        number = len(rows) if mine is None else len(mine)
        self.macs += number * matrix.weight.numel()
        for start in range(0, number, size):
            these = slice(start, min(start + size, number)) if mine is None else mine[start : start + size]
            removal, site = split(rows[these], self.num_outputs)
            places = table.index_select(0, site) + (removal * (self.num_inputs + 1))[:, None]
            reads = index.view(-1).index_select(0, places.flatten())
            block = values.index_select(0, reads).view(len(site), -1)
            change = matrix(block)
            out[these] = change if then is None else then(change, site)

    def _phases_of(self, rows: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Part rows by which offsets of the kernel reach anything at their place."""
        if len(self._phases[1]) == 1:
            return [(self._phases[1][0], None)]
        phase = self._phases[0][split(rows, self.num_outputs)[1]]
        return [(offsets, (phase == i).nonzero().flatten()) for i, offsets in enumerate(self._phases[1])]

    @cached_property
    def _phases(self) -> tuple[Tensor, list[Tensor]]:
        """The phase of each place, and the offsets of each phase: a transposed convolution uses few at a place."""
        is_read = self.table < self.num_inputs
        patterns, phase = is_read.unique(dim=0, return_inverse=True)
        if len(patterns) <= _MAX_PHASES and 2 * int(is_read.sum()) < is_read.numel():
            return phase, [pattern.nonzero().flatten() for pattern in patterns]
        return phase, [torch.arange(self.table.shape[1], device=self.table.device)]


class _Matrix:
    """Weights ``(C_out, m)`` to multiply rows with; by oneDNN on CPU, which on some processors is twice as fast."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.contiguous()
        is_float = weight.dtype == torch.float32 and weight.device.type == "cpu"
        self._has_onednn = is_float and hasattr(torch.ops.mkldnn, "_linear_pointwise")

    def __call__(self, rows: Tensor) -> Tensor:
        """Give ``(n, C_out)``."""
        if self._has_onednn and len(rows) and rows.shape[1]:
            lacks = -len(rows) % _ROUNDED_TO
            filled = functional.pad(rows, (0, 0, 0, lacks)) if lacks else rows
            return torch.ops.mkldnn._linear_pointwise(filled, self.weight, None, "none", [], "")[: len(rows)]
        return functional.linear(rows, self.weight)
