"""What must be known of a layer to cut it: where its filters and input channels lie, and how to watch it run.

spconv is recognised by its attributes, so nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

POINTWISE = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softsign, nn.LogSigmoid, _DropoutNd,
)  # fmt: skip
"""Modules that treat every value for itself: a channel that goes in is the channel that comes out."""

_MIXING = (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.Softmax, nn.LogSoftmax, _NormBase)


def is_sparse_conv(module: nn.Module) -> bool:
    """Tell whether a module is one of spconv's convolutions."""
    return hasattr(module, "subm") and hasattr(module, "indice_key") and hasattr(module, "weight")


def is_convolution(module: nn.Module) -> bool:
    """Tell whether a module makes output channels out of all input channels: convolutions and linear layers."""
    return isinstance(module, (_ConvNd, nn.Linear)) or is_sparse_conv(module)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module normalises every channel for itself, with one set of statistics a channel."""
    return isinstance(module, _BatchNorm)


def is_pointwise(module: nn.Module) -> bool:
    """Tell whether a module treats every value alike and for itself: activations, dropout, PReLU of a single slope."""
    return isinstance(module, POINTWISE) or (isinstance(module, nn.PReLU) and module.num_parameters == 1)


def is_per_channel(module: nn.Module) -> bool:
    """Tell whether a module treats every channel for itself, by numbers of its own: norms, PReLU of a slope each."""
    return is_norm(module) or (isinstance(module, nn.PReLU) and module.num_parameters > 1)


def is_understood(module: nn.Module) -> bool:
    """Tell whether it is known what a module does to channels: it makes them, or treats each for itself."""
    return is_convolution(module) or is_per_channel(module) or is_pointwise(module)


def is_mixing(module: nn.Module) -> bool:
    """Tell whether a module without children may blend channels in a way that surgery does not know."""
    if is_understood(module) or next(module.children(), None) is not None:
        return False
    return isinstance(module, _MIXING) or next(module.parameters(recurse=False), None) is not None


def is_grouped(module: nn.Module) -> bool:
    """Tell whether a convolution connects only parts of its channels with each other."""
    return int(getattr(module, "groups", 1)) > 1


def num_filters(module: nn.Module) -> int:
    """Output channels of a convolution or linear layer."""
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)  # type: ignore[arg-type]


def num_inputs(module: nn.Module) -> int:
    """Input channels of a convolution, a linear layer, a norm or a PReLU of a slope each."""
    names = ("in_features", "in_channels", "num_features", "num_parameters")
    return int(next(getattr(module, name) for name in names if hasattr(module, name)))


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight


def filter_axis(module: nn.Module) -> int:
    """Axis of ``weight`` that counts filters: 1 for dense transposed convolutions, else 0."""
    return 1 if isinstance(module, _ConvTransposeNd) else 0


def input_axis(module: nn.Module) -> int:
    """Axis of ``weight`` that counts input channels; spconv keeps it last, ``(C_out, kz, ky, kx, C_in)``."""
    if is_sparse_conv(module):
        return weight_of(module).ndim - 1
    return 0 if isinstance(module, _ConvTransposeNd) else 1


def channel_axis(module: nn.Module, values: Tensor) -> int:
    """Axis of a layer's input or output values that counts channels.

    Args:
        module: convolution, linear layer, norm or PReLU.
        values: ``(V, C)`` features of a sparse tensor, ``(..., C)`` of a linear layer, else channels first, with or
            without a batch axis in front.
    """
    if isinstance(module, nn.Linear):
        return values.ndim - 1
    if isinstance(module, _ConvNd):
        return values.ndim - 1 - len(module.kernel_size)
    return 1


def values_of(value: Any) -> Tensor:
    """Give a tensor as it is, and of a sparse tensor its ``(V, C)`` features."""
    return value if isinstance(value, Tensor) else value.features


def voxels_of(value: Any) -> Tensor | None:
    """Give the ``(V, 4)`` places of a sparse tensor; None for a tensor."""
    return None if isinstance(value, Tensor) else value.indices


def with_values(value: Any, values: Tensor) -> Any:
    """Give ``value`` with other values: the tensor itself, or a sparse tensor with other features."""
    return values if isinstance(value, Tensor) else value.replace_feature(values)


def is_tensor_like(value: Any) -> bool:
    """Tell whether a value is a tensor or a sparse tensor."""
    return isinstance(value, Tensor) or hasattr(value, "replace_feature")


def without_channels(module: nn.Module, value: Any, channels: Tensor) -> Any:
    """Copy a layer's input or output with some channels set to zero.

    Args:
        module: the layer.
        value: tensor or sparse tensor.
        channels: ``(n,)`` int64, on the value's device.
    """
    values = values_of(value)
    return with_values(value, values.index_fill(channel_axis(module, values), channels, 0))


@contextmanager
def drawn_free_parameters(model: nn.Module) -> Iterator[None]:
    """Give random values to parameters that a network's own code applies, then put everything back.

    What becomes of a channel must not hang on what they happen to be: a scale of 1 lets it pass, one of 1.1 does not.
    """
    generator = torch.Generator().manual_seed(0)
    owners = [module for module in model.modules() if not is_understood(module)]
    free = {parameter for module in owners for parameter in module.parameters(recurse=False)}
    before = {parameter: parameter.data for parameter in free}
    try:
        for parameter in free:
            drawn = torch.rand(parameter.shape, generator=generator) + 0.5
            parameter.data = drawn.to(parameter)
        yield
    finally:
        for parameter, values in before.items():
            parameter.data = values


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules run other functions in place of their ``forward``, then put everything back."""
    own = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
        for module, forward in own.items():
            module.__dict__["forward"] = forward


@contextmanager
def out_of_place(model: nn.Module) -> Iterator[None]:
    """Keep activations from overwriting their inputs, then give every module its own way back."""
    modules = [module for module in model.modules() if getattr(module, "inplace", False)]
    try:
        for module in modules:
            module.inplace = False  # type: ignore[assignment]
        yield
    finally:
        for module in modules:
            module.inplace = True  # type: ignore[assignment]
