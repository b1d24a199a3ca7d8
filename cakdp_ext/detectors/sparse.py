"""The one door to spconv: finds it, cures its faults on CPU, and offers a convolution block that bears emptiness.

spconv 2.3.8 runs on CPU but for four slips: its backward pass asks for the current CUDA stream whatever the device, a
convolution with a bias refuses to run in eval mode, a build for CUDA chooses an algorithm that knows no CPU tensors,
and with more than one thread some rows of a convolution come out wrong, others each time. All are cured from outside
when this module is imported; what spconv does with CUDA tensors stays as it is.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

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
    for name in ("get_indice_pairs", "indice_conv", "indice_conv_backward"):
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
        with _native_algorithm(self):
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


@contextlib.contextmanager
def _native_algorithm(conv: Any) -> Iterator[None]:
    """Let a convolution use the one algorithm that knows CPU tensors, for as long as the context lasts."""
    chosen = conv.algo
    conv.algo = spconv.ConvAlgo.Native
    try:
        yield
    finally:
        conv.algo = chosen


spconv = load_spconv()
cure_cpu_faults()


class VoxelBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over active voxels that bears a step with fewer than two of them.

    One voxel has no variance and none has no mean: such a step is normalised with the running statistics and leaves
    them alone, while weight and bias stay in the graph (their gradients are zero where there is no voxel).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(V, C)`` features."""
        if not self.training or len(input) > 1:
            return super().forward(input)
        return _by_running_statistics(self, input)


class SyncVoxelBatchNorm(nn.SyncBatchNorm):
    """Batch norm over the active voxels of all processes that bears a step with fewer than two of them together."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise this process's ``(V, C)`` features."""
        if self.training and _count_in_all_processes(input) < 2:
            return _by_running_statistics(self, input)
        if len(input):
            return super().forward(input)
        return super().forward(input.float()).to(input.dtype)  # the others send float32 statistics, under AMP too


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Let every batch norm see the values of all processes, in place.

    Args:
        model: its batch norms are replaced; parameters and statistics are those that it had.

    Returns:
        The model; a ``VoxelBatchNorm1d`` has become a ``SyncVoxelBatchNorm``, any other ``nn.SyncBatchNorm``.
    """
    over_voxels = [name for name, module in model.named_modules() if isinstance(module, VoxelBatchNorm1d)]
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name in over_voxels:
        model.get_submodule(name).__class__ = SyncVoxelBatchNorm
    return model


def _by_running_statistics(norm: Any, input: Tensor) -> Tensor:
    return F.batch_norm(input, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def _count_in_all_processes(rows: Tensor) -> int:
    if not dist.is_initialized():
        return len(rows)
    count = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(count)
    return int(count)


class SparseBlock(spconv.SparseSequential):  # type: ignore[name-defined]
    """A sparse convolution followed by modules that work on its features; no active voxel gives none, without error.

    spconv refuses an empty input and skips the norms behind an empty output, which would take their parameters out of
    the graph and let a distributed run wait for gradients that never come.
    """

    def forward(self, input: Any) -> Any:
        """Run the block on a ``SparseConvTensor``."""
        for module in self.children():
            if isinstance(module, spconv.SparseModule):
                input = module(input) if len(input.features) else convolve_nothing(module, input)
            else:
                input = input.replace_feature(module(input.features))
        return input


def convolve_nothing(conv: Any, empty: Any) -> Any:
    """Give what a sparse convolution makes of a tensor without active voxels.

    Args:
        conv: a sparse convolution that is neither transposed nor inverse.
        empty: a ``SparseConvTensor`` with no voxel.

    Returns:
        A ``SparseConvTensor`` with no voxel, the convolution's channels and output shape; gradients reach the weight,
        as zeros.
    """
    from spconv.pytorch import ops

    weight = conv.weight.reshape(len(conv.weight), -1, conv.weight.shape[-1])[:, 0]
    out = empty.replace_feature(empty.features @ weight.T)
    if not conv.subm:
        shape = ops.get_conv_output_size(
            empty.spatial_shape, conv.kernel_size, conv.stride, conv.padding, conv.dilation
        )
        out.spatial_shape = list(shape)
    return out


def conv_block(conv: Any, norm: Callable[[int], nn.Module]) -> SparseBlock:
    """Put a norm and a ReLU behind a sparse convolution.

    Args:
        conv: the convolution.
        norm: makes the norm from a number of channels.
    """
    return SparseBlock(conv, norm(conv.out_channels), nn.ReLU())
