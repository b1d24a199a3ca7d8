"""Batch norm over voxels: few of them, none at all, or those of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


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
