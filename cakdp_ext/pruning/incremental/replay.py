"""What changes when channels are absent? One forward is recorded; of others only the differences are computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cakdp_ext.looking import evaluating
from cakdp_ext.pruning.graph import ChannelGraph, Filter
from cakdp_ext.pruning.incremental.delta import Delta
from cakdp_ext.pruning.incremental.nodes import Convolution, Node, Opaque, Removals, Rowwise
from cakdp_ext.pruning.incremental.outputs import Output
from cakdp_ext.pruning.incremental.recording import Recorder
from cakdp_ext.pruning.incremental.tables import NotUnderstoodError
from cakdp_ext.pruning.incremental.witness import Change, Witness, agree

_ROWS_TOGETHER = {"cpu": 2**16, "cuda": 2**20}
_MOST_TOGETHER = 256
_SAMPLED = 4
"""One filter in so many is absent from the forward that the differences are held to."""


class IncrementalReplay:
    """Repeats one forward with filters absent, by the differences that this makes.

    Upstream of a filter nothing is done, and behind it only at the places that it reaches, each kind of place once.
    It is exact: no difference is dropped or rounded.

    Args:
        model: the network; in use only while :meth:`opened`.
        forward: does one forward and gives the class logits ``(B, A, C)``.
        graph: of the network.
        removal: ``channel`` or ``zero_weight``.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[[], Tensor], graph: ChannelGraph, removal: str = "channel"
    ) -> None:
        self._model, self._forward, self._graph, self._removal = model, forward, graph, removal
        self._nodes: dict[int, Node] = {}
        self._fused: set[int] = set()
        self._last_use: dict[int, int] = {}
        self._outputs: list[Output] = []
        self._logits = torch.empty(0)

    @contextmanager
    def opened(self) -> Iterator[Tensor]:
        """Put the network in eval mode, record it, and give the class logits of the complete network.

        Raises:
            NotUnderstoodError: when the logits are made in a way whose differences cannot be followed.
        """
        try:
            with evaluating(self._model):
                yield self._record()
        finally:
            self._nodes, self._outputs, self._logits = {}, [], torch.empty(0)

    def _record(self) -> Tensor:
        """Watch one forward; of what was noted only what the class logits are made of is kept."""
        if self._removal == "zero_weight":
            recorder = Recorder((), {layer.name for layer in self._graph.prunable})
        else:
            recorder = Recorder(self._graph.consumer_channels(f for group in self._graph.groups for f in group), ())
        with recorder.watching(self._model):
            logits = self._forward()
        self._logits, self._outputs = logits, _read_outputs(recorder, logits)
        needed = _behind(recorder.nodes, [output.number for output in self._outputs])
        self._nodes = {number: recorder.nodes[number] for number in needed}
        self._fuse()
        return logits

    @property
    def num_together(self) -> int:
        """How many removals are worth computing at once."""
        most = max(node.sites.count for node in self._nodes.values())
        rows = _ROWS_TOGETHER.get(self._outputs[0].logits.device.type, _ROWS_TOGETHER["cuda"])
        return min(max(rows // max(most, 1), 1), _MOST_TOGETHER)

    @property
    def macs(self) -> int:
        """Multiply-accumulates that convolutions have cost since the record was made."""
        return sum(node.product.macs for node in self._nodes.values() if isinstance(node, Convolution))

    def gaps(self, groups: Sequence[Sequence[Filter]]) -> Tensor:
        """Measure what the category predictions lose with each group of filters absent.

        Args:
            groups: of the graph; computed together.

        Returns:
            ``(groups, B)`` float64: absolute differences of the probabilities, summed over anchors and classes,
            divided by the number of anchors.

        Source: CaKDP (Zhang et al., CVPR 2024), Eq. 4, the summand.
        """
        total = torch.zeros(len(groups), self._outputs[0].num_frames, dtype=torch.float64)
        for change in self._changes(self._removals(groups)):
            self._add(change, total)
        return total

    def _changes(self, removals: Removals) -> Iterator[Change]:
        """Tell node by node what changes."""
        found: dict[int, Delta | None] = {}
        for number, node in self._nodes.items():
            arriving = [found[i] for i in node.inputs]
            found[number] = arriving[0] if number in self._fused else node.change(arriving, removals)
            yield Change(number, node, arriving, found[number])
            for i in (*node.inputs, number):
                if self._last_use.get(i, number) <= number:
                    found[i] = None

    def _add(self, change: Change, total: Tensor) -> None:
        """Add what the class logits in one node lose to the ``(removals, B)`` gaps."""
        for output in self._outputs:
            if change.delta is not None and output.number == change.number:
                total += output.gaps(change.delta, len(total)).cpu()

    def samples(self, turn: int) -> list[list[Filter]]:
        """Choose removals that tell whether the differences are right.

        Args:
            turn: any number; decides which of the filters that are not the liveliest of their layer.

        Returns:
            Many filters of every layer, the liveliest among them; and the liveliest of one layer alone.
        """
        groups, liveliest = self._graph.groups, self._liveliest()
        many = {*range(turn % _SAMPLED, len(groups), _SAMPLED), *liveliest}
        return [[f for n in sorted(many) for f in groups[n]], list(groups[liveliest[turn % len(liveliest)]])]

    def _liveliest(self) -> list[int]:
        """Number the group of every layer whose channels hold most."""
        activity: dict[str, Tensor] = {}
        for node in self._nodes.values():
            if not isinstance(node, Convolution):
                continue
            values = node.given if self._removal == "channel" else node.gave
            if values is not None:
                activity[node.name] = activity.get(node.name, 0) + values.abs().sum(dim=0).cpu()
        best: dict[str, tuple[float, int]] = {}
        for number, group in enumerate(self._graph.groups):
            gone = self._channels_of(group)
            life = sum(float(activity[name][list(c)].sum()) for name, c in gone.items() if name in activity)
            for layer in {filter_.layer for filter_ in group}:
                best[layer] = max(best.get(layer, (life, number)), (life, number), key=lambda each: each[0])
        return [number for _, number in best.values()]

    @contextmanager
    def witnessed(self, group: Sequence[Filter]) -> Iterator[Callable[[Tensor], Tensor]]:
        """Hold the differences to a whole forward without a group of filters, which runs while the context is open.

        Yields:
            A function that takes the class logits ``(B, A, C)`` of that forward and gives what :meth:`gaps` says,
            ``(B,)``; it raises NotUnderstoodError when a layer or the logits are not what the differences say.
        """
        total = torch.zeros(1, self._outputs[0].num_frames, dtype=torch.float64)
        expected = self._logits.clone()

        def use(change: Change) -> None:
            self._add(change, total)
            for output in self._outputs:
                if change.delta is not None and output.number == change.number:
                    output.write(change.delta, expected)

        witness = Witness(self._nodes, self._changes(self._removals([group])), use)

        def judge(logits: Tensor) -> Tensor:
            witness.require_agreement()
            if not agree(logits, expected):
                raise NotUnderstoodError("the class logits change otherwise than their differences say")
            return total[0]

        with witness.watching(self._model):
            yield judge

    def trust(self) -> None:
        """Forget what was kept only to be checked."""
        for node in self._nodes.values():
            if isinstance(node, Convolution):
                node.reading = None

    def _removals(self, groups: Sequence[Sequence[Filter]]) -> Removals:
        device = self._outputs[0].logits.device
        gone: dict[str, dict[int, Tensor]] = {}
        for number, group in enumerate(groups):
            for name, values in self._channels_of(group).items():
                gone.setdefault(name, {})[number] = torch.tensor(values, device=device)
        is_input = self._removal == "channel"
        return Removals(len(groups), gone if is_input else {}, {} if is_input else gone)

    def _channels_of(self, group: Sequence[Filter]) -> Mapping[str, Sequence[int]]:
        """Give layer -> the channels of its input, or of its output, that a group's absence leaves zero."""
        if self._removal == "channel":
            return self._graph.consumer_channels(group)
        return {layer: [i for name, i in group if name == layer] for layer, _ in group}

    def _fuse(self) -> None:
        """Let convolutions pass their rows on to what alone follows and treats every place for itself."""
        users = Counter(i for node in self._nodes.values() for i in node.inputs)
        users.update(output.number for output in self._outputs)
        self._last_use = {i: number for number, node in self._nodes.items() for i in node.inputs}
        heads: dict[int, int] = {}
        for number, node in self._nodes.items():
            if isinstance(node, Rowwise) and users[node.inputs[0]] == 1:
                head = heads.get(node.inputs[0], node.inputs[0])
                before = self._nodes[head]
                if isinstance(before, Convolution) and before.gave is None:
                    before.then.append(node)
                    heads[number] = head
        self._fused = set(heads)


def _read_outputs(recorder: Recorder, logits: Tensor) -> list[Output]:
    """Find out which nodes the class logits are elements of."""
    elements = recorder.output(logits)
    if elements is None:
        raise NotUnderstoodError("the class logits come from no layer")
    owner, inside = recorder.owner(elements)
    return [
        Output(number, recorder.nodes[number], logits, inside, (owner == number) & (elements >= 0))
        for number in owner[elements >= 0].unique().tolist()
    ]


def _behind(nodes: Sequence[Node], outputs: Sequence[int]) -> list[int]:
    """Number the nodes that the outputs are made of, in the order of the forward."""
    needed: set[int] = set()
    todo = list(outputs)
    while todo:
        number = todo.pop()
        if number not in needed:
            needed.add(number)
            node = nodes[number]
            if isinstance(node, Opaque):
                raise NotUnderstoodError(node.reason)
            todo.extend(node.inputs)
    return sorted(needed)
