"""Which filter feeds what? The channel graph of a network, discovered by running it, never listed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from cakdp_ext.pruning.layers import is_convolution, is_grouped, weight_of
from cakdp_ext.pruning.tracing import UNKNOWN, CodeBook, CodedForward, Reads, resolve

DEFAULT_SCOPE = ("backbone_3d", "backbone_2d")


class Filter(NamedTuple):
    """One output channel of a layer."""

    layer: str
    channel: int


class Slot(NamedTuple):
    """One input channel of a module."""

    module: str
    channel: int


@dataclass(frozen=True)
class ProducerLayer:
    """A convolution or linear layer and where its filters go.

    Attributes:
        name: of the module.
        weight_shape: of its ``weight``.
        consumers: one tuple a filter: the input channels of convolutions and linear layers that it feeds.
        norms: one tuple a filter: the channels of norms that it passes on the way.
    """

    name: str
    weight_shape: tuple[int, ...]
    consumers: tuple[tuple[Slot, ...], ...]
    norms: tuple[tuple[Slot, ...], ...]

    @property
    def num_filters(self) -> int:
        """How many filters the layer has."""
        return len(self.consumers)


@dataclass(frozen=True)
class ChannelGraph:
    """Where every filter of a network goes, and which of them may be removed.

    Attributes:
        layers: name -> layer, in the order in which they first run.
        prunable: the layers that may shrink, in canonical order: that in which the network registers its modules.
        groups: filters that stay or go together because they meet in a sum (or in a module used twice); every filter
            of a prunable layer is in exactly one. Ordered by first member.
        pinned: name of every other layer -> why it keeps all its filters.
    """

    layers: Mapping[str, ProducerLayer]
    prunable: tuple[ProducerLayer, ...]
    groups: tuple[tuple[Filter, ...], ...]
    pinned: Mapping[str, str]

    @property
    def num_filters(self) -> int:
        """Filters of all prunable layers."""
        return sum(layer.num_filters for layer in self.prunable)

    def consumer_channels(self, filters: Iterable[Filter]) -> dict[str, list[int]]:
        """Input channels that some filters feed: module name -> ascending channels."""
        return _by_module(slot for f in filters for slot in self.layers[f.layer].consumers[f.channel])

    def norm_channels(self, filters: Iterable[Filter]) -> dict[str, list[int]]:
        """Norm channels that some filters pass: module name -> ascending channels."""
        return _by_module(slot for f in filters for slot in self.layers[f.layer].norms[f.channel])


def _by_module(slots: Iterable[Slot]) -> dict[str, list[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for slot in slots:
        found[slot.module].add(slot.channel)
    return {module: sorted(channels) for module, channels in found.items()}


def trace_channels(
    model: nn.Module, run: Callable[[nn.Module], Any], *, scope: Sequence[str] = DEFAULT_SCOPE
) -> ChannelGraph:
    """Discover the channel graph of a network.

    Nothing is assumed about its layers' names or order: ``run`` is called a few times while convolutions output
    constants that name their filters. Weights, modes and modules are left as they were.

    Args:
        model: convolutions (dense and spconv), linear layers, norms and activations, joined by any code.
        run: does one forward of the network on a small example, the same each time; the example should touch every
            height layer of the voxel grid.
        scope: names of the submodules whose convolutions may be pruned.

    Returns:
        The graph; a layer that no copy of the constants explains is pinned with its reason, not guessed at.

    Raises:
        ValueError: when the example has no active voxel, leaves an input channel of some convolution without any, or
            when nothing in ``scope`` can be pruned.
    """
    coded = CodedForward(model, run)
    silent = coded.reads({})
    feeds = _Feeds(coded, silent)
    books = [CodeBook.draw(coded.widths, seed) for seed in (0, 1)]
    for layers, heard in resolve(coded, books, silent, list(coded.widths)):
        feeds.add(layers, heard)
    feeds.require_observed()
    return _build(coded, feeds, scope)


class _Feeds:
    """Which filters every slot of a network is given, and which layers cannot be cut.

    Args:
        coded: the network, after its silent forward.
        silent: what was read in it.
    """

    def __init__(self, coded: CodedForward, silent: Reads) -> None:
        self.coded, self.silent = coded, silent
        self.filters = [Filter(name, i) for name, width in coded.widths.items() for i in range(width)]
        self.sources: dict[Slot, set[Filter]] = defaultdict(set)
        self.unclear: set[Slot] = set()
        self.pinned: dict[str, str] = {
            name: "its channels are split into groups" for name in coded.widths if is_grouped(coded.modules[name])
        }

    def add(self, layers: Sequence[str], heard: Mapping[str, Tensor]) -> None:
        """Add what was heard while some layers spoke."""
        for module, filters in heard.items():
            for _, channel in (filters == UNKNOWN).nonzero().tolist():
                self.unclear.add(Slot(module, channel))
                self._pin(layers, f"channel {channel} of {module} is not a plain copy of one of its filters")
            is_foreign = self.silent[module][:, 1].bool().any(dim=0)
            for call, channel in (filters >= 0).nonzero().tolist():
                filter_ = self.filters[filters[call, channel]]
                self.sources[Slot(module, channel)].add(filter_)
                if is_foreign[channel]:
                    self._pin([filter_.layer], f"shares channel {channel} of {module} with what no convolution made")

    def _pin(self, layers: Iterable[str], reason: str) -> None:
        for layer in layers:
            self.pinned.setdefault(layer, reason)

    def require_observed(self) -> None:
        """Refuse an example that leaves input channels empty which other filters would feed."""
        for module in {slot.module for slot in self.sources}:
            quiet = ~self.silent[module][:, 1].bool().any(dim=0)
            slots = {Slot(module, channel) for channel in quiet.nonzero().flatten().tolist()}
            empty = sorted(slot.channel for slot in slots - self.sources.keys() - self.unclear)
            if empty:
                raise ValueError(
                    f"the example never activates input channels {empty[:8]} of {module}, so what feeds them cannot be "
                    "traced; give an example batch with voxels in every height layer"
                )


def _build(coded: CodedForward, feeds: _Feeds, scope: Sequence[str]) -> ChannelGraph:
    is_consumer = {name: is_convolution(module) for name, module in coded.modules.items()}
    slots: dict[Filter, list[Slot]] = defaultdict(list)
    for slot, filters in sorted(feeds.sources.items()):
        for filter_ in filters:
            slots[filter_].append(slot)
    layers = {}
    for name, width in coded.widths.items():
        goes = [slots[Filter(name, i)] for i in range(width)]
        layers[name] = ProducerLayer(
            name=name,
            weight_shape=tuple(weight_of(coded.modules[name]).shape),
            consumers=tuple(tuple(s for s in each if is_consumer[s.module]) for each in goes),
            norms=tuple(tuple(s for s in each if not is_consumer[s.module]) for each in goes),
        )
    groups = list(_join(feeds.filters, feeds.sources.values()))
    pinned = _pin(coded, feeds, layers, scope, groups)
    prunable = tuple(layers[name] for name in coded.modules if name in layers and name not in pinned)
    if not prunable:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(pinned.items())[:4]) or "no convolution ran"
        raise ValueError(f"no layer under {', '.join(scope)} can be pruned ({why})")
    return ChannelGraph(layers, prunable, _in_order(groups, prunable), pinned)


def _join(filters: Iterable[Filter], meetings: Iterable[set[Filter]]) -> Iterator[tuple[Filter, ...]]:
    """Merge overlapping sets of filters; a filter that meets no other is a group of its own."""
    group_of = {f: {f} for f in filters}
    for meeting in meetings:
        merged = set().union(*(group_of[f] for f in meeting))
        group_of.update(dict.fromkeys(merged, merged))
    seen: set[int] = set()
    for group in group_of.values():
        if id(group) not in seen:
            seen.add(id(group))
            yield tuple(group)


def _pin(
    coded: CodedForward,
    feeds: _Feeds,
    layers: Mapping[str, ProducerLayer],
    scope: Sequence[str],
    groups: Iterable[tuple[Filter, ...]],
) -> dict[str, str]:
    pinned = dict(feeds.pinned)
    for name, layer in layers.items():
        lost = [i for i, slots in enumerate(layer.consumers) if not slots]
        split = [s.module for each in layer.consumers for s in each if is_grouped(coded.modules[s.module])]
        if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in scope):
            pinned.setdefault(name, f"outside of {', '.join(scope)}")
        elif lost:
            pinned.setdefault(name, f"filters {lost[:8]} feed no convolution: they are outputs")
        elif split:
            pinned.setdefault(name, f"feeds {split[0]}, whose channels are split into groups")
    ties = {frozenset(f.layer for f in group) for group in groups}
    while new := {name: tie for tie in ties for name in tie if name not in pinned and tie & pinned.keys()}:
        pinned.update(
            {name: f"meets {min(tie & pinned.keys())} in a sum, which is pinned" for name, tie in new.items()}
        )
    return pinned


def _in_order(
    groups: Iterable[tuple[Filter, ...]], prunable: Sequence[ProducerLayer]
) -> tuple[tuple[Filter, ...], ...]:
    rank = {layer.name: i for i, layer in enumerate(prunable)}
    kept = [
        sorted(group, key=lambda f: (rank[f.layer], f.channel))
        for group in groups
        if all(f.layer in rank for f in group)
    ]
    return tuple(map(tuple, sorted(kept, key=lambda group: (rank[group[0].layer], group[0].channel))))
