"""The one door to spconv: finds it and cures its faults on CPU.

spconv 2.3.8 runs on CPU but for six slips: its backward pass asks for the current CUDA stream whatever the device, a
convolution with a bias refuses to run in eval mode, a build for CUDA chooses an algorithm that knows no CPU tensors,
under autocast it hands its kernels numbers that they do not know, with more than one thread some rows of a convolution
come out wrong, others each time, and the voxels of a strided convolution do not come frame after frame, on which
OpenPCDet's PV-RCNN relies. All are cured from outside; what spconv does with CUDA tensors stays as it is.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cakdp_ext.types import MissingSpconvError


def load_spconv() -> ModuleType:
    """Import ``spconv.pytorch``, under whichever distribution name it was installed.

    Raises:
        MissingSpconvError: when there is none, or only a 1.x one.
    """
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # it warns of a call that spconv makes
    try:
        import spconv.pytorch
    except ImportError as error:
        raise MissingSpconvError.because(error) from error
    return spconv.pytorch


def cure_cpu_faults() -> None:
    """Make spconv train and evaluate on CPU, whatever it was built for; calling it again changes nothing."""
    from spconv.pytorch import conv, ops

    ops.get_current_stream = _once(ops.get_current_stream, _stream_or_zero)
    base = conv.SparseConvolutionBase
    base._conv_forward = _once(base._conv_forward, _conv_forward_on_any_device)
    ops.get_indice_pairs = _once(ops.get_indice_pairs, lambda f: _frame_after_frame(_single_threaded_on_cpu(f)))
    for name in ("indice_conv", "indice_conv_backward"):
        setattr(ops, name, _once(getattr(ops, name), _single_threaded_on_cpu))


def _once(function: Callable[..., Any], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
    if getattr(function, "cured_for_cpu", False):
        return function
    cured = functools.wraps(function)(wrap(function))
    cured.cured_for_cpu = True  # type: ignore[attr-defined]
    return cured


def _stream_or_zero(current_stream: Callable[[], int]) -> Callable[[], int]:
    def stream() -> int:
        return current_stream() if torch.cuda.is_initialized() else 0

    return stream


def _conv_forward_on_any_device(conv_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any, training: bool, input: Any, weight: Tensor, bias: Tensor | None, *rest: Any, **kw: Any
    ) -> Any:
        if input.features.is_cuda:
            return conv_forward(self, training, input, weight, bias, *rest, **kw)
        if input.features.dtype != weight.dtype:
            input = input.replace_feature(input.features.to(weight.dtype))
        with _native_algorithm(self), torch.autocast("cpu", enabled=False):
            return conv_forward(self, training or bias is not None, input, weight, bias, *rest, **kw)

    return forward


def _single_threaded_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function whose first argument is a tensor with one thread where that tensor lies on CPU."""

    def run(first: Tensor, *rest: Any, **kw: Any) -> Any:
        threads = torch.get_num_threads()
        if first.is_cuda or threads == 1:
            return function(first, *rest, **kw)
        torch.set_num_threads(1)
        try:
            return function(first, *rest, **kw)
        finally:
            torch.set_num_threads(threads)

    return run


def _frame_after_frame(get_indice_pairs: Callable[..., Any]) -> Callable[..., Any]:
    """Let the rulebook of a convolution on CPU list the voxels that come out frame after frame, else as it did."""

    def ordered(indices: Tensor, *rest: Any, **kw: Any) -> tuple[Tensor, Tensor, Tensor]:
        out_indices, pairs, counts = get_indice_pairs(indices, *rest, **kw)
        if indices.is_cuda or bool((out_indices[1:, 0] >= out_indices[:-1, 0]).all()):
            return out_indices, pairs, counts
        order = torch.argsort(out_indices[:, 0], stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        targets = torch.where(pairs[1] >= 0, place[pairs[1].clamp(min=0).long()].to(pairs), pairs[1])
        return out_indices[order], torch.stack((pairs[0], targets)), counts

    return ordered


@contextlib.contextmanager
def _native_algorithm(conv: Any) -> Iterator[None]:
    """Let a convolution use the one algorithm that knows CPU tensors, for as long as the context lasts."""
    from spconv.core import ConvAlgo

    chosen = conv.algo
    conv.algo = ConvAlgo.Native
    try:
        yield
    finally:
        conv.algo = chosen
