"""Sparse convolution blocks that bear emptiness, and batch norm over the voxels of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cakdp_ext.spconv_on_cpu import cure_cpu_faults, load_spconv

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
                input = convolve(module, input)
            else:
                input = input.replace_feature(module(input.features))
        return input


class SparseResidual(spconv.SparseModule):  # type: ignore[name-defined]
    """Two submanifold convolutions, each with a norm, whose result is added to what came in; bears no active voxel.

    Args:
        channels: of the input and of the output.
        norm: makes a norm from a number of channels.
        key: under which spconv keeps the rulebook.
        use_bias: give the convolutions a bias, as every published checkpoint has it, although a norm follows.

    Source: He et al., Deep Residual Learning for Image Recognition (2016), section 3.3, with OpenPCDet's tensor names.
    """

    def __init__(self, channels: int, norm: Callable[[int], nn.Module], key: str, use_bias: bool = True) -> None:
        super().__init__()
        self.conv1 = spconv.SubMConv3d(channels, channels, 3, padding=1, bias=use_bias, indice_key=key)
        self.bn1 = norm(channels)
        self.conv2 = spconv.SubMConv3d(channels, channels, 3, padding=1, bias=use_bias, indice_key=key)
        self.bn2 = norm(channels)
        self.relu = nn.ReLU()

    def forward(self, input: Any) -> Any:
        """Run the block on a ``SparseConvTensor``; its voxels stay the same."""
        hidden = convolve(self.conv1, input)
        hidden = convolve(self.conv2, hidden.replace_feature(self.relu(self.bn1(hidden.features))))
        return hidden.replace_feature(self.relu(self.bn2(hidden.features) + input.features))


def convolve(conv: Any, input: Any) -> Any:
    """Run a sparse convolution on a ``SparseConvTensor``, which may have no active voxel."""
    return conv(input) if len(input.features) else convolve_nothing(conv, input)


def convolve_nothing(conv: Any, empty: Any) -> Any:
    """Give what a sparse convolution makes of a tensor without active voxels.

    Args:
        conv: a sparse convolution that is neither transposed nor inverse.
        empty: a ``SparseConvTensor`` with no voxel.

    Returns:
        A ``SparseConvTensor`` with no voxel, the convolution's channels and output shape; gradients reach weight and
        bias, as zeros.
    """
    from spconv.pytorch import ops

    weight = conv.weight.reshape(len(conv.weight), -1, conv.weight.shape[-1])[:, 0]
    features = empty.features @ weight.T
    out = empty.replace_feature(features if conv.bias is None else features + conv.bias)
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
