"""Where does a channel go? Forwards in which convolutions output constants that name the filter they stand for.

Norms, activations and dropout let the constants pass, everything else (padding, pooling, concatenation, addition,
flattening) happens as the network's own code has it, and every layer tells which constants it was given.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.looking import evaluating
from cakdp_ext.pruning.layers import (
    channel_axis,
    drawn_free_parameters,
    is_convolution,
    is_mixing,
    is_per_channel,
    is_pointwise,
    is_sparse_conv,
    is_tensor_like,
    num_filters,
    replaced_forwards,
    values_of,
    weight_of,
    with_values,
)

NOTHING, UNKNOWN = -1, -2
NUM_CODES = 2**20
TOLERANCE = 0.4
"""By how many steps between neighbouring codes averaging and interpolation may miss one by rounding."""

Reads = Mapping[str, Tensor]
"""Module name -> ``(calls, 2, C)``: smallest and largest absolute value other than 0 in every input channel."""


@dataclass(frozen=True)
class CodeBook:
    """A number in [1, 2) for each filter; float32 holds every one exactly, and no sum of them is one of them.

    Attributes:
        codes: layer name -> ``(filters,)``.
        lookup: ``(NUM_CODES,)`` int64, the filter behind each number, counted over all layers; UNKNOWN for none.
    """

    codes: Mapping[str, Tensor]
    lookup: Tensor

    @classmethod
    def draw(cls, widths: Mapping[str, int], seed: int) -> CodeBook:
        """Draw the numbers of ``widths`` (layer name -> filters) at random."""
        total = sum(widths.values())
        drawn = torch.randperm(NUM_CODES, generator=torch.Generator().manual_seed(seed))[:total]
        lookup = torch.full((NUM_CODES,), UNKNOWN)
        lookup[drawn] = torch.arange(total)
        codes = (1 + drawn / NUM_CODES).split(list(widths.values()))
        return cls(dict(zip(widths, codes, strict=True)), lookup)

    def decode(self, reads: Tensor, silent: Tensor) -> Tensor:
        """Tell which filter every input channel of a layer was given.

        Args:
            reads: ``(calls, 2, C)`` of one forward.
            silent: the same of the forward in which every filter was silent.

        Returns:
            ``(calls, C)`` int64: a filter, NOTHING for a channel that no active filter reaches, UNKNOWN for one that
            holds something else than a plain copy of one filter.
        """
        steps = (reads.nan_to_num(nan=-1.0) - 1) * NUM_CODES
        nearest = steps.round()
        low, high = nearest.unbind(1)
        is_code = ((steps - nearest).abs() < TOLERANCE).all(dim=1) & (low == high) & (high >= 0) & (high < NUM_CODES)
        filters = self.lookup[high.clamp(0, NUM_CODES - 1).long()].where(is_code, UNKNOWN)
        filters = filters.where(reads[:, 1] != 0, NOTHING)
        is_quiet, is_same = silent[:, 1] == 0, (reads == silent).all(dim=1)
        return filters.where(is_quiet, torch.where(is_same, NOTHING, UNKNOWN))


class CodedForward:
    """Forwards of one network on one example, with chosen constants in place of what convolutions compute.

    The first forward, in which all filters must be silent, runs sparse convolutions for their voxel indices and finds
    out the shapes of dense ones without computing them; later forwards reuse both.

    Args:
        model: the network.
        run: does one forward of it.
    """

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
        self.modules = dict(model.named_modules())
        self.widths: dict[str, int] = {}
        self._model, self._run = model, run
        self._blanks: list[tuple[str, Any]] = []
        self._codes: Mapping[str, Tensor] = {}
        self._reads: dict[str, list[Tensor]] = {}
        self._num_calls = 0
        self._silent_inputs: dict[tuple[str, int], list[Tensor]] = {}

    def reads(self, codes: Mapping[str, Tensor]) -> Reads:
        """Run once and tell what every convolution and norm was given.

        Args:
            codes: layer name -> ``(filters,)``; layers left out output zeros.

        Raises:
            ValueError: when the example reaches some layer with no voxel at all, or two forwards differ.
        """
        self._codes, self._reads, self._num_calls = codes, defaultdict(list), 0
        with evaluating(self._model), drawn_free_parameters(self._model), replaced_forwards(self._coded_forwards()):
            self._run(self._model)
        return {name: torch.stack(rows) for name, rows in self._reads.items()}

    def _coded_forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        for name, module in self.modules.items():
            if is_convolution(module):
                forwards[module] = self._speak(name, module, _shape_probe(module))
            elif is_per_channel(module):
                forwards[module] = self._listen(name, module)
            elif is_pointwise(module):
                forwards[module] = _pass
            elif is_mixing(module):
                forwards[module] = self._blur(name, module.forward)
        return forwards

    def _speak(self, name: str, module: nn.Module, probe: Callable[[Any], Any]) -> Callable[..., Any]:
        def forward(input: Any, *_: Any, **__: Any) -> Any:
            self._note(name, module, input)
            blank = self._blank(name, module, input, probe)
            shape = list(values_of(blank).shape)
            axis = channel_axis(module, values_of(blank))
            code = self._codes.get(name, torch.zeros(shape[axis])).to(values_of(input).device)
            view = [-1 if i == axis else 1 for i in range(len(shape))]
            return with_values(blank, code.view(view).expand(shape).contiguous())

        return forward

    def _blank(self, name: str, module: nn.Module, input: Any, probe: Callable[[Any], Any]) -> Any:
        """Give an output of the right shape and place for this call."""
        if self._num_calls == len(self._blanks):
            self._blanks.append((name, probe(input)))
            self.widths.setdefault(name, num_filters(module))
        before, blank = self._blanks[self._num_calls]
        if before != name:
            raise ValueError(f"two forwards of the example differ: {before} ran first, then {name} in its place")
        self._num_calls += 1
        return blank

    def _listen(self, name: str, module: nn.Module) -> Callable[..., Any]:
        def forward(input: Any, *_: Any, **__: Any) -> Any:
            self._note(name, module, input)
            return input

        return forward

    def _blur(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Make what comes out of a module unreadable whenever constants went in."""
        calls = itertools.count()

        def blurred(*args: Any, **kwargs: Any) -> Any:
            output, key = forward(*args, **kwargs), (name, next(calls))
            given = [values_of(a).clone() for a in (*args, *kwargs.values()) if is_tensor_like(a)]
            silent = self._silent_inputs.setdefault(key, given)
            if is_tensor_like(output) and not all(map(torch.equal, given, silent)):
                return with_values(output, torch.full_like(values_of(output), torch.nan))
            return output

        return blurred

    def _note(self, name: str, module: nn.Module, input: Any) -> None:
        values = values_of(input).detach().float()
        if values.numel() == 0:
            raise ValueError(
                f"no active voxel reaches {name}: channels can only be traced where some are; "
                "give an example batch with voxels in every height layer"
            )
        self._reads[name].append(_extent(values, channel_axis(module, values)).cpu())


def _extent(values: Tensor, axis: int) -> Tensor:
    """Give ``(2, C)``: the smallest and largest absolute value other than 0 of every channel, 0 where there is none."""
    rows = values.movedim(axis, 0).reshape(values.shape[axis], -1)
    low, high = rows.amin(dim=1), rows.amax(dim=1)
    if torch.equal(low, high):
        return torch.stack([low.abs(), high.abs()])
    sizes = rows.abs()
    low, high = sizes.masked_fill(sizes == 0, torch.inf).amin(dim=1), sizes.amax(dim=1)
    return torch.stack([low.where(high != 0, 0), high])


def _shape_probe(module: nn.Module) -> Callable[[Any], Any]:
    """Make a function that gives a convolution's output with meaningless values, without dense arithmetic."""
    forward = module.forward
    if is_sparse_conv(module):
        dtype = weight_of(module).dtype
        return lambda input: forward(input.replace_feature(torch.zeros_like(input.features, dtype=dtype)))
    memo = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()}
    shadow = deepcopy(module, memo)
    dtype = weight_of(module).dtype
    return lambda input: shadow.forward(torch.empty_like(input, device="meta", dtype=dtype))


def _pass(input: Any, *_: Any, **__: Any) -> Any:
    return input


def resolve(
    coded: CodedForward, books: Sequence[CodeBook], silent: Reads, layers: Sequence[str]
) -> list[tuple[Sequence[str], dict[str, Tensor]]]:
    """Find out what the filters of some layers feed, letting fewer layers speak at once where constants were added.

    Args:
        coded: the network.
        books: different numbers for the same filters; only what all of them agree on is believed.
        silent: what was read when no layer spoke.
        layers: those that speak.

    Returns:
        Pairs of layers that spoke together and module name -> ``(calls, C)`` filters (see :meth:`CodeBook.decode`);
        UNKNOWN remains only where a single layer spoke.
    """
    heard: dict[str, Tensor] = {}
    for book in books:
        reads = coded.reads({name: book.codes[name] for name in layers})
        for name, values in reads.items():
            filters = book.decode(values, silent[name])
            heard[name] = filters.where(filters == heard.get(name, filters), UNKNOWN)
    if len(layers) > 1 and any(bool((filters == UNKNOWN).any()) for filters in heard.values()):
        return [*resolve(coded, books, silent, layers[::2]), *resolve(coded, books, silent, layers[1::2])]
    return [(layers, heard)]
