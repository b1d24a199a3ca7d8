"""What would a cut network cost? Counted from the whole one and its channel graph, without cutting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from cakdp_ext.pruning.counting import ACTIVATIONS, EXACT, LayerCount, count_parameters
from cakdp_ext.pruning.graph import ChannelGraph
from cakdp_ext.pruning.layers import num_filters, num_inputs
from cakdp_ext.pruning.surgery import removed_filters
from cakdp_ext.types import PruningPlan


@dataclass(frozen=True)
class CutCost:
    """What one frame costs a network, mean over frames.

    Attributes:
        params: trainable parameters.
        macs: multiply-accumulates, ``exact`` of ``count_layers``.
        activations: values that convolutions and linear layers output.
    """

    params: int
    macs: float
    activations: float


class CutCounter:
    """Counts what cut networks cost, exactly as if they were cut and run on the same frames.

    A convolution's weights and multiply-accumulates go with its filters times its input channels, its activations with
    its filters; the pairs of voxels in sparse rulebooks do not depend on channels, so the frames are run once.

    Args:
        model: the whole network.
        graph: of ``model``.
        frames: for each frame what ``count_layers`` said of the whole network: ``exact`` and ``activations``.

    Raises:
        ValueError: without frames.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, frames: Sequence[Mapping[str, LayerCount]]) -> None:
        if not frames:
            raise ValueError("cost is counted on frames, got none")
        self._modules, self._graph, self._num_frames = dict(model.named_modules()), graph, len(frames)
        self._params = count_parameters(model)
        self._macs, self._activations = (
            sum((Counter(counts[kind].layers) for counts in frames), Counter()) for kind in (EXACT, ACTIVATIONS)
        )

    def __call__(self, plan: PruningPlan) -> CutCost:
        """Count what remains of the network under a plan that fits it."""
        gone = removed_filters(plan)
        filters = Counter(layer for layer, _ in gone)
        inputs = {name: len(channels) for name, channels in self._graph.consumer_channels(gone).items()}
        norms = {name: len(channels) for name, channels in self._graph.norm_channels(gone).items()}
        params, macs, activations = self._params, self._macs.total(), self._activations.total()
        for name in {*filters, *inputs}:
            size = num_filters(self._modules[name]), num_inputs(self._modules[name])
            left = size[0] - filters[name], size[1] - inputs.get(name, 0)
            params -= self._lost(name, "weight", left[0] * left[1], size[0] * size[1])
            params -= self._lost(name, "bias", left[0], size[0])
            macs -= _lost(self._macs[name], left[0] * left[1], size[0] * size[1])
            activations -= _lost(self._activations[name], left[0], size[0])
        for name, count in norms.items():
            width = num_inputs(self._modules[name])
            params -= sum(self._lost(name, key, width - count, width) for key in ("weight", "bias"))
        return CutCost(params, macs / self._num_frames, activations / self._num_frames)

    def _lost(self, name: str, key: str, left: int, size: int) -> int:
        """Count the trainable values that one parameter of a module loses."""
        values = getattr(self._modules[name], key, None)
        return _lost(values.numel(), left, size) if values is not None and values.requires_grad else 0


def _lost(amount: int, left: int, size: int) -> int:
    return amount - amount * left // size
