"""What changes when channels are absent? One forward is recorded; of others only the differences are computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cakdp_ext.pruning.graph import ChannelGraph, Filter
from cakdp_ext.pruning.incremental.delta import Delta, split
from cakdp_ext.pruning.incremental.nodes import Convolution, Node, Opaque, Removals, Rowwise
from cakdp_ext.pruning.incremental.recording import Recorder
from cakdp_ext.pruning.incremental.tables import NotUnderstoodError
from cakdp_ext.pruning.layers import evaluating

_ROWS_TOGETHER = {"cpu": 2**16, "cuda": 2**20}
_MOST_TOGETHER = 256


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
        self._outputs: list[_Output] = []

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
            self._nodes, self._outputs = {}, []

    def _record(self) -> Tensor:
        """Watch one forward; of what was noted only what the class logits are made of is kept."""
        if self._removal == "zero_weight":
            recorder = Recorder((), {layer.name for layer in self._graph.prunable})
        else:
            recorder = Recorder(self._graph.consumer_channels(f for group in self._graph.groups for f in group), ())
        with recorder.watching(self._model):
            logits = self._forward()
        self._outputs = _read_outputs(recorder, logits)
        needed = _behind(recorder.nodes, [output.node for output in self._outputs])
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
        removals = self._removals(groups)
        total = torch.zeros(len(groups), self._outputs[0].num_frames, dtype=torch.float64)
        found: dict[int, Delta | None] = {}
        for number, node in self._nodes.items():
            arriving = [found[i] for i in node.inputs]
            delta = arriving[0] if number in self._fused else node.change(arriving, removals)
            found[number] = delta
            if delta is not None:
                for output in self._outputs:
                    total += output.gaps(delta, removals.number).cpu() if output.node == number else 0
            for i in (*node.inputs, number):
                if self._last_use.get(i, number) <= number:
                    found[i] = None
        return total

    def _removals(self, groups: Sequence[Sequence[Filter]]) -> Removals:
        device = self._outputs[0].logits.device
        gone: dict[str, dict[int, Tensor]] = {}
        for number, group in enumerate(groups):
            if self._removal == "channel":
                channels = self._graph.consumer_channels(group)
            else:
                channels = {layer: [i for name, i in group if name == layer] for layer, _ in group}
            for name, values in channels.items():
                gone.setdefault(name, {})[number] = torch.tensor(values, device=device)
        is_input = self._removal == "channel"
        return Removals(len(groups), gone if is_input else {}, {} if is_input else gone)

    def _fuse(self) -> None:
        """Let convolutions pass their rows on to what alone follows and treats every place for itself."""
        users = Counter(i for node in self._nodes.values() for i in node.inputs)
        users.update(output.node for output in self._outputs)
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


def _read_outputs(recorder: Recorder, logits: Tensor) -> list[_Output]:
    """Find out which nodes the class logits are elements of."""
    elements = recorder.output(logits)
    if elements is None:
        raise NotUnderstoodError("the class logits come from no layer")
    owner, inside = recorder.owner(elements)
    return [
        _Output(number, recorder.nodes[number], logits, inside, (owner == number) & (elements >= 0))
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


class _Output:
    """Class logits that are elements of one node.

    Args:
        number: of the node.
        node: the node.
        logits: ``(B, A, C)`` of the complete network.
        inside: ``(B, A, C)`` number of the element of the node that each logit is.
        is_mine: ``(B, A, C)`` which of them are its.
    """

    def __init__(self, number: int, node: Node, logits: Tensor, inside: Tensor, is_mine: Tensor) -> None:
        self.node, self.num_sites, self.num_anchors = number, node.sites.count, logits.shape[1]
        self.num_frames, size = len(logits), node.sites.count * node.width
        self.logits = logits.new_zeros(size)
        self._weights = torch.zeros(len(logits), size, device=logits.device)
        for frame, weights in enumerate(self._weights):
            place = inside[frame][is_mine[frame]]
            site = place.div(node.width, rounding_mode="floor")
            element = node.sites.label[site] * node.width + place - site * node.width
            weights.index_add_(0, element, weights.new_ones(len(element)))
            self.logits[element] = logits[frame][is_mine[frame]]
        self.logits, self._weights = self.logits.view(-1, node.width), self._weights.view(len(logits), -1, node.width)
        self._scores = self.logits.float().sigmoid()

    def gaps(self, delta: Delta, num_removals: int) -> Tensor:
        """Give ``(removals, B)`` float64, see :meth:`IncrementalReplay.gaps`."""
        delta = delta.over_all(self.logits.shape[1])
        removal, site = split(delta.rows, self.num_sites)
        scores = (self.logits.index_select(0, site) + delta.values[:-1]).float().sigmoid()
        change = (scores - self._scores.index_select(0, site)).abs()
        gaps = torch.zeros(num_removals, self.num_frames, dtype=torch.float64, device=change.device)
        lengths = removal.bincount(minlength=num_removals).tolist()
        for frame, weights in enumerate(self._weights):
            of_rows = (change * weights.index_select(0, site)).sum(dim=1, dtype=torch.float64)
            gaps[:, frame] = torch.stack([part.sum() for part in of_rows.split(lengths)])
        return gaps / self.num_anchors
