"""What does a network compute? Parameters, multiply-accumulates and activations, counted layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cakdp_ext.looking import evaluating
from cakdp_ext.pruning.layers import (
    is_convolution,
    is_norm,
    is_sparse_conv,
    num_filters,
    num_inputs,
    replaced_forwards,
    values_of,
    weight_of,
)
from cakdp_ext.pruning.rulebooks import num_pairs

EXACT, THOP, ACTIVATIONS = "exact", "thop", "activations"
"""What can be counted of a forward, see :func:`count_layers`."""


@dataclass(frozen=True)
class LayerCount:
    """Something counted in one forward.

    Attributes:
        layers: module name -> count, in the order in which the modules first run.
    """

    layers: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum over the layers."""
        return sum(self.layers.values())

    def under(self, prefix: str) -> int:
        """Sum over the layers of one submodule."""
        return sum(count for name, count in self.layers.items() if f"{name}.".startswith(f"{prefix}."))


def count_parameters(model: nn.Module, *, trainable_only: bool = True) -> int:
    """Count the parameters of a network, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_macs(run: Callable[[nn.Module], Any], model: nn.Module) -> LayerCount:
    """Count the multiply-accumulates of convolutions and linear layers in one forward: ``exact`` of `count_layers`.

    Args:
        run: does one forward of the network, in eval mode; give it one frame for the cost of a frame.
        model: the network.

    Returns:
        Counts by layer, for all frames that ``run`` processes together.
    """
    return count_layers(run, model, (EXACT,))[EXACT]


def count_layers(
    run: Callable[[nn.Module], Any], model: nn.Module, kinds: Sequence[str] = (EXACT, THOP, ACTIVATIONS)
) -> dict[str, LayerCount]:
    """Count what the layers of a network compute in one forward, by several rules at once.

    ``exact``: multiply-accumulates of convolutions and linear layers. A dense layer counts as PyTorch's own counter
    does, every output value, padding included; a sparse convolution counts the pairs of input and output voxels that
    its rulebook really holds. Norms, activation functions and what the network's own code multiplies do not count.

    ``thop``: what the paper's figures were counted by, THOP with a rule for spconv. It differs: a transposed
    convolution costs the whole kernel for every output value, stride x stride times what it multiplies; each value
    that goes into a batch norm costs 2, each that a convolution adds its bias to 1 (a sparse one: each voxel); inverse
    sparse convolutions cost nothing.

    ``activations``: the values that convolutions and linear layers output; of a sparse one, those of active voxels.

    Args:
        run: as in `count_macs`.
        model: the network.
        kinds: of ``exact``, ``thop`` and ``activations``.

    Returns:
        Kind -> counts by layer, of which ``thop`` has the norms too.

    Source: the paper's counter is named in the published code of CaKDP (CVPR 2024) and of SparseKD (NeurIPS 2022).
    """
    counts: dict[str, dict[str, int]] = {kind: defaultdict(int) for kind in kinds}

    def counted(name: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def count(*args: Any, **kwargs: Any) -> Any:
            output, macs = _run(module, forward, args, kwargs)
            for kind, layers in counts.items():
                if kind == THOP or not is_norm(module):
                    layers[name] += _COUNTERS[kind](module, args[0], output, macs)
            return output

        return count

    layers = [(name, module) for name, module in model.named_modules() if is_convolution(module) or is_norm(module)]
    with evaluating(model), replaced_forwards({module: counted(name, module) for name, module in layers}):
        run(model)
    return {kind: LayerCount(dict(layers)) for kind, layers in counts.items()}


def _run(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, int]:
    """Call a layer and count the multiply-accumulates that it took; 0 for a norm."""
    if is_norm(module):
        return forward(*args, **kwargs), 0
    if is_sparse_conv(module):
        output = forward(*args, **kwargs)
        return output, num_pairs(module, args[0], output) * num_inputs(module) * num_filters(module)
    with FlopCounterMode(display=False) as counter:
        output = forward(*args, **kwargs)
    return output, counter.get_total_flops() // 2


def _exact(module: nn.Module, input: Any, output: Any, macs: int) -> int:
    return macs


def _activations(module: nn.Module, input: Any, output: Any, macs: int) -> int:
    return values_of(output).numel()


def _thop(module: nn.Module, input: Any, output: Any, macs: int) -> int:
    """What THOP counts of one call."""
    if is_norm(module):
        return 2 * input.numel()
    if isinstance(module, nn.Linear):
        return macs
    has_bias = getattr(module, "bias", None) is not None
    if is_sparse_conv(module):
        return 0 if module.inverse else macs + has_bias * len(output.features)
    products = weight_of(module)[0, 0].numel() * num_inputs(module) // int(getattr(module, "groups", 1))
    return int(output.numel() * (products + has_bias))


_COUNTERS: dict[str, Callable[[nn.Module, Any, Any, int], int]] = {
    EXACT: _exact,
    THOP: _thop,
    ACTIVATIONS: _activations,
}
