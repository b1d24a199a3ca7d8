"""What does a network compute, and how does a change pass through? One node a tensor, in the order of the forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cakdp_ext.pruning.incremental.delta import Delta, joined, rows_of, silenced, silenced_alone, split
from cakdp_ext.pruning.incremental.product import KernelProduct
from cakdp_ext.pruning.incremental.sites import Sites


@dataclass
class Node:
    """A tensor as a matrix: places times channels. This one does not depend on any filter.

    Attributes:
        sites: its places.
        width: its channels C.
        inputs: numbers of the nodes that it is made of.
    """

    sites: Sites
    width: int
    inputs: tuple[int, ...] = ()

    def change(self, deltas: Sequence[Delta | None], removals: Removals) -> Delta | None:
        """Tell by how much it changes.

        Args:
            deltas: of ``inputs``; None where nothing changes.
            removals: what is removed.

        Returns:
            The differences; None where there are none.
        """
        return None


@dataclass(frozen=True)
class Removals:
    """What several forwards do without, each its own.

    Attributes:
        number: of them, R.
        inputs: layer -> removal -> ``(c,)`` channels of its input that are zero.
        outputs: layer -> removal -> ``(c,)`` channels of its output that are zero.
    """

    number: int
    inputs: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)


class Opaque(Node):
    """Something whose changes cannot be told from those of what it is made of.

    Attributes:
        reason: why.
    """

    def __init__(self, reason: str) -> None:
        nothing = torch.zeros(0, dtype=torch.int64)
        super().__init__(Sites(nothing, nothing), 0)
        self.reason = reason


@dataclass(frozen=True)
class Reading:
    """What a layer was given, kept until it has been checked.

    Attributes:
        call: how often the layer had been called before.
        table: ``(n,)`` int64: the row of ``given`` that each place of the input holds; U_in for zeros.
        given: ``(U_in, C_in)`` in the complete network.
        voxels: ``(n, 4)`` the places of a sparse tensor; None for a map.
    """

    call: int
    table: Tensor
    given: Tensor
    voxels: Tensor | None


@dataclass
class Convolution(Node):
    """A convolution, sparse or dense, or a linear layer.

    Attributes:
        name: of the layer.
        product: its arithmetic.
        given: ``(U_in, C_in)`` input in the complete network; None where no filter can be taken away from it.
        gave: ``(U, C)`` output in the complete network; None where its filters are not taken away there.
        reading: what it was given; None once that has been checked.
        then: nodes that follow and treat every place for itself, passed through in the same go.
    """

    name: str = ""
    product: KernelProduct = None  # type: ignore[assignment]
    given: Tensor | None = None
    gave: Tensor | None = None
    reading: Reading | None = None
    then: list[Rowwise] = field(default_factory=list)

    def change(self, deltas: Sequence[Delta | None], removals: Removals) -> Delta | None:
        """See :meth:`Node.change`."""
        arriving, number = deltas[0], removals.number
        alone: dict[int, Delta] = {}
        gone = dict(removals.inputs.get(self.name, {}))
        if gone and self.given is not None:
            touched = self._touched(arriving, number)
            alone = {r: silenced_alone(gone.pop(r), self.given) for r in list(gone) if not touched[r]}
            if gone:
                arriving = silenced(arriving, gone, self.given, number)
        parts = {r: self.product(part, 1, self._finish) for r, part in alone.items() if len(part.rows)}
        changed = None if arriving is None else self.product(arriving, number, self._finish)
        changed = self._merged(changed, parts)
        return self._without_outputs(changed, removals)

    def _touched(self, arriving: Delta | None, number: int) -> list[bool]:
        if arriving is None:
            return [False] * number
        is_touched = torch.zeros(number, dtype=torch.bool, device=arriving.rows.device)
        is_touched[split(arriving.rows, self.product.num_inputs)[0]] = True
        return is_touched.tolist()

    def _merged(self, changed: Delta | None, parts: Mapping[int, Delta]) -> Delta | None:
        found = joined(parts, self.sites.count)
        if changed is None or found is None:
            return changed if found is None else found
        rows, order = torch.cat([changed.rows, found.rows]).sort()
        values = torch.cat([changed.values[:-1], found.values[:-1]])[order]
        return Delta(rows, torch.cat([values, values.new_zeros(1, self.width)]))

    def _finish(self, values: Tensor, sites: Tensor) -> Tensor:
        for node in self.then:
            values = node.change_rows(values, sites)
        return values

    def _without_outputs(self, changed: Delta | None, removals: Removals) -> Delta | None:
        gone = removals.outputs.get(self.name)
        if not gone or self.gave is None:
            return changed
        return silenced(changed, gone, self.gave, removals.number)


@dataclass
class Rowwise(Node):
    """Something that treats every place for itself."""

    def change_rows(self, values: Tensor, sites: Tensor) -> Tensor:
        """Pass ``(m, C)`` differences at ``(m,)`` places through; they may be overwritten."""
        raise NotImplementedError

    def change(self, deltas: Sequence[Delta | None], removals: Removals) -> Delta | None:
        """See :meth:`Node.change`."""
        if deltas[0] is None:
            return None
        delta = deltas[0].over_all(self.width)
        site = split(delta.rows, self.sites.count)[1]
        values = self.change_rows(delta.values[:-1].clone(), site)
        return Delta(delta.rows, torch.cat([values, values.new_zeros(1, self.width)]))


@dataclass
class Affine(Rowwise):
    """A norm in eval mode: every channel times ``scale`` ``(C,)``, plus a constant that cancels."""

    scale: Tensor = None  # type: ignore[assignment]

    def change_rows(self, values: Tensor, sites: Tensor) -> Tensor:
        """See :meth:`Rowwise.change_rows`."""
        return values.mul_(self.scale)


@dataclass
class Pointwise(Rowwise):
    """A function of every value for itself.

    Attributes:
        function: the function.
        given: ``(U, C)`` input in the complete network.
    """

    function: Callable[[Tensor], Tensor] = None  # type: ignore[assignment]
    given: Tensor = None  # type: ignore[assignment]

    def change_rows(self, values: Tensor, sites: Tensor) -> Tensor:
        """See :meth:`Rowwise.change_rows`."""
        before = self.given.index_select(0, sites)
        return self.function(values.add_(before)).sub_(self.function(before))


@dataclass
class Sum(Node):
    """Two tensors added, the second ``factor`` times.

    Attributes:
        reads: two ``(U,)`` int64: the place of each input behind every place.
        counts: places of the two inputs.
        factor: of the second.
    """

    reads: tuple[Tensor, Tensor] = ()  # type: ignore[assignment]
    counts: tuple[int, int] = (0, 0)
    factor: float = 1.0

    def change(self, deltas: Sequence[Delta | None], removals: Removals) -> Delta | None:
        """See :meth:`Node.change`."""
        factors = (1.0, self.factor)
        arriving = [
            (delta.over_all(self.width), delta.index(removals.number, count)[:, read], factor)
            for delta, count, read, factor in zip(deltas, self.counts, self.reads, factors, strict=True)
            if delta is not None
        ]
        if not arriving:
            return None
        is_changed = torch.stack([index < len(delta.rows) for delta, index, _ in arriving]).any(dim=0)
        rows = rows_of(is_changed)
        values = arriving[0][0].values.new_zeros(len(rows) + 1, self.width)
        for delta, index, factor in arriving:
            values[:-1].add_(delta.values[index.flatten()[rows]], alpha=factor)
        return Delta(rows, values)


@dataclass(frozen=True)
class Block:
    """Channels of one tensor that become channels of another.

    Attributes:
        source: which of the node's inputs they come from.
        reads: ``(U,)`` int64 place of it behind every place; its number of places for none.
        taken: ``(c,)`` channels of the input.
        become: ``(c,)`` channels of the output.
        takes_all: whether ``taken`` is all of the input's channels in their order.
    """

    source: int
    reads: Tensor
    taken: Tensor
    become: Tensor
    takes_all: bool


@dataclass
class Rearrangement(Node):
    """Values that only move: flattened heights, concatenations, padding, permutations.

    Attributes:
        blocks: what goes where; everything else never changes.
        counts: places of the inputs.
        widths: channels of the inputs.
        has_constants: whether anything else is not zero.
    """

    blocks: tuple[Block, ...] = ()
    counts: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    has_constants: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it moves all channels of one input together and is zero elsewhere."""
        first = self.blocks[0] if len(self.blocks) == 1 and not self.has_constants else None
        if first is None or not first.takes_all or self.width != self.widths[0]:
            return False
        return torch.equal(first.taken, first.become)

    def change(self, deltas: Sequence[Delta | None], removals: Removals) -> Delta | None:
        """See :meth:`Node.change`."""
        moved = [(block, delta) for block in self.blocks if (delta := deltas[block.source]) is not None]
        if not moved:
            return None
        index = {block.source: delta.index(removals.number, self.counts[block.source]) for block, delta in moved}
        reads = [index[block.source][:, block.reads] for block, _ in moved]
        is_changed = torch.zeros_like(reads[0], dtype=torch.bool)
        for read, (_, delta) in zip(reads, moved, strict=True):
            is_changed |= read < len(delta.rows)
        rows = rows_of(is_changed)
        found = [
            delta.over_all(self.widths[block.source]).values.index_select(0, _with_last(read, rows, len(delta.rows)))
            for read, (block, delta) in zip(reads, moved, strict=True)
        ]
        taken = [
            each if block.takes_all else each[:, block.taken] for each, (block, _) in zip(found, moved, strict=True)
        ]
        return self._together(rows, [block.become for block, _ in moved], taken)

    def _together(self, rows: Tensor, become: Sequence[Tensor], values: Sequence[Tensor]) -> Delta:
        """Put the blocks side by side; where several become the same channel, at different places, they add up."""
        channels, column = torch.cat(list(become)).unique(return_inverse=True)
        is_sorted = len(channels) == len(column) and torch.equal(column, torch.arange(len(column), device=rows.device))
        together = values[0] if len(values) == 1 else torch.cat(list(values), dim=1)
        if not is_sorted:
            together = together.new_zeros(len(together), len(channels)).index_add_(1, column, together)
        return Delta(rows, together, None if len(channels) == self.width else channels)


def _with_last(read: Tensor, rows: Tensor, last: int) -> Tensor:
    """Say which rows to read for some rows of the output, and for the zero row at its end."""
    return torch.cat([read.reshape(-1).index_select(0, rows), rows.new_tensor([last])])
