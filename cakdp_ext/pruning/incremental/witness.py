"""Does a whole forward say the same? One without many filters at once, held to the differences layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.pruning.incremental.delta import Delta
from cakdp_ext.pruning.incremental.nodes import Convolution, Node, Reading
from cakdp_ext.pruning.incremental.tables import NotUnderstoodError
from cakdp_ext.pruning.layers import channel_axis, is_convolution, replaced_forwards, values_of, voxels_of

ROUNDING = 5e-4
"""What rounding may do to a value, as a share of the largest of its tensor; 4e-5 was seen in a trained SECOND."""
_PLACES_TOGETHER = 2**16


@dataclass(frozen=True)
class Change:
    """What a removal does to one node.

    Attributes:
        number: of the node.
        node: the node.
        arriving: differences of what it is made of; None where there are none.
        delta: its own.
    """

    number: int
    node: Node
    arriving: list[Delta | None]
    delta: Delta | None


class Witness:
    """Compares what every convolution is given with what the differences say that it is given.

    A fault shows in the layer right behind it, whatever is left of it at the end of the network.

    Args:
        nodes: number -> node of the record.
        changes: what one removal does to them, in their order; drawn as the forward goes on.
        use: called with every change.
    """

    def __init__(self, nodes: dict[int, Node], changes: Iterator[Change], use: Callable[[Change], None]) -> None:
        readings = [
            (number, node.name, node.reading)
            for number, node in nodes.items()
            if isinstance(node, Convolution) and node.reading is not None
        ]
        self._readings = {(name, reading.call): (number, reading) for number, name, reading in readings}
        self._changes, self._use = changes, use
        self._calls: Counter[str] = Counter()
        self._fault: str | None = None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch the forward that runs while the context is open."""
        with replaced_forwards({m: self._watched(n, m) for n, m in model.named_modules() if is_convolution(m)}):
            yield

    def require_agreement(self) -> None:
        """Draw the rest of the changes.

        Raises:
            NotUnderstoodError: when the forward and the differences disagreed.
        """
        for change in self._changes:
            self._use(change)
        if self._fault is None and self._readings:
            self._fault = f"{next(iter(self._readings))[0]} is not always called"
        if self._fault is not None:
            raise NotUnderstoodError(self._fault)

    def _watched(self, name: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def run(input: Any, *rest: Any, **kwargs: Any) -> Any:
            found = self._readings.pop((name, self._calls[name]), None)
            self._calls[name] += 1
            if found is not None and self._fault is None:
                self._fault = self._compare(name, module, input, *found)
            return forward(input, *rest, **kwargs)

        return run

    def _compare(self, name: str, module: nn.Module, input: Any, number: int, reading: Reading) -> str | None:
        change = next((c for c in self._until(number) if c.number == number), None)
        if change is None:
            return f"{name} is not always called in the same order"
        values = values_of(input)
        rows = values.movedim(channel_axis(module, values), -1).flatten(0, -2)
        table = _in_order_of(reading, voxels_of(input))
        if table is None or len(table) != len(rows):
            return f"the places that {name} reads depend on filters"
        if not _agree(rows, _padded(reading.given, change.arriving[0]), table):
            return f"what {name} reads changes otherwise than its differences say"
        return None

    def _until(self, number: int) -> Iterator[Change]:
        for change in self._changes:
            self._use(change)
            yield change
            if change.number == number:
                return


def agree(actual: Tensor, expected: Tensor) -> bool:
    """Tell whether two tensors are the same up to rounding."""
    scale = actual.nan_to_num(posinf=0.0, neginf=0.0).abs().max() if actual.numel() else 0.0
    return torch.allclose(actual, expected, rtol=0.0, atol=ROUNDING * float(scale), equal_nan=True)


def _agree(rows: Tensor, expected: Tensor, table: Tensor) -> bool:
    parts = zip(rows.split(_PLACES_TOGETHER), table.split(_PLACES_TOGETHER), strict=True)
    return all(agree(part, expected.index_select(0, places)) for part, places in parts)


def _padded(given: Tensor, delta: Delta | None) -> Tensor:
    """Add differences to rows ``(U, C)``, and a row of zeros behind them."""
    rows = torch.cat([given, given.new_zeros(1, given.shape[1])])
    return rows if delta is None else rows.index_add_(0, delta.rows, delta.over_all(given.shape[1]).values[:-1])


def _in_order_of(reading: Reading, voxels: Tensor | None) -> Tensor | None:
    """Sort a table as the voxels of this forward stand, which on some devices come in another order each time."""
    if reading.voxels is None or voxels is None or torch.equal(reading.voxels, voxels):
        return reading.table
    if reading.voxels.shape != voxels.shape:
        return None
    kinds, which = torch.cat([reading.voxels, voxels]).unique(dim=0, return_inverse=True)
    before, now = which.split(len(voxels))
    place = torch.full((len(kinds),), -1, device=which.device).scatter_(
        0, before, torch.arange(len(before), device=which.device)
    )
    return reading.table[place[now]] if bool((place[now] >= 0).all()) else None
