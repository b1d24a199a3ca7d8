"""What does a convolution read? For every output place, the input place behind each offset of its kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from cakdp_ext.pruning.layers import channel_axis, is_grouped, is_sparse_conv, num_filters, num_inputs, weight_of

Lookup = Callable[[Tensor, Tensor], Tensor]
"""``(n, K)`` frames and ``(n, K, D)`` positions inside the grid -> ``(n, K)`` places; the number of places for none."""


class NotUnderstoodError(Exception):
    """Something that increments cannot be passed through; the message says what."""


@dataclass(frozen=True)
class Kernel:
    """Geometry of a convolution over D axes; ``is_transposed`` for one that spreads instead of gathering."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    is_transposed: bool = False

    def table(self, frames: Tensor, outputs: Tensor, grid: Sequence[int], lookup: Lookup, num_inputs: int) -> Tensor:
        """Find the inputs of some outputs.

        Args:
            frames: ``(n,)`` int64, the frame of each output.
            outputs: ``(n, D)`` int64 positions.
            grid: D sizes of the input.
            lookup: gives the place at a position.
            num_inputs: number of places; stands for none in the table.

        Returns:
            ``(n, K)`` int64, offsets in row-major order.
        """
        reads, device = outputs[:, None], outputs.device
        stride, padding, dilation, size = (
            torch.tensor(v, device=device) for v in (self.stride, self.padding, self.dilation, tuple(grid))
        )
        offsets = torch.cartesian_prod(*(torch.arange(n, device=device) for n in self.size)).reshape(-1, len(self.size))
        if self.is_transposed:
            spread = reads + padding - offsets * dilation
            reads, is_hit = spread.div(stride, rounding_mode="floor"), (spread % stride == 0).all(-1)
        else:
            reads = reads * stride - padding + offsets * dilation
            is_hit = torch.ones(reads.shape[:2], dtype=torch.bool, device=device)
        is_hit &= ((reads >= 0) & (reads < size)).all(-1)
        places = lookup(frames[:, None].expand(is_hit.shape), reads.clamp(min=0).minimum(size - 1))
        return places.where(is_hit, num_inputs)


def dense_table(module: nn.Module, input: Tensor, output: Tensor) -> Tensor:
    """Find what a dense convolution or linear layer reads: ``(places of the output, K)``."""
    axis = channel_axis(module, input)
    num_inputs = input.numel() // input.shape[axis]
    if isinstance(module, nn.Linear):
        return torch.arange(num_inputs, device=input.device)[:, None]
    if not isinstance(module, _ConvNd) or isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise NotUnderstoodError(f"{type(module).__name__} pads in a way of its own")
    kernel = _kernel(module, isinstance(module, _ConvTransposeNd))
    grid, sizes = input.shape[axis + 1 :], output.shape[axis + 1 :]
    num_frames = num_inputs // max(grid.numel(), 1)
    axes = (num_frames, *sizes)
    places = torch.stack(torch.meshgrid(*(torch.arange(n, device=input.device) for n in axes), indexing="ij"), dim=-1)
    frames, outputs = places.reshape(-1, len(axes))[:, 0], places.reshape(-1, len(axes))[:, 1:]
    return kernel.table(frames, outputs, grid, lambda frame, at: _ravel(frame, at, grid), num_inputs)


def sparse_table(module: Any, input: Any, output: Any) -> Tensor:
    """Find what a sparse convolution reads: ``(voxels of the output, K)``."""
    if module.conv1x1:
        return torch.arange(len(input.features), device=input.features.device)[:, None]
    kernel, grid, voxels = _sparse_kernel(module, input), list(input.spatial_shape), input.indices.long()
    keys, order = _ravel(voxels[:, 0], voxels[:, 1:], grid).sort()
    outputs = output.indices.long()

    def lookup(frame: Tensor, at: Tensor) -> Tensor:
        wanted = _ravel(frame, at, grid)
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return order[found].where(keys[found] == wanted, len(keys))

    if not len(keys):
        raise NotUnderstoodError("a sparse tensor without voxels")
    return kernel.table(outputs[:, 0], outputs[:, 1:], grid, lookup, len(keys))


def _sparse_kernel(module: Any, input: Any) -> Kernel:
    if module.subm:
        size, dilation = tuple(module.kernel_size), tuple(module.dilation)
        padding = tuple(n // 2 * d for n, d in zip(size, dilation, strict=True))
        return Kernel(size, (1,) * len(size), padding, dilation)
    if not module.inverse:
        return _kernel(module, bool(module.transposed))
    book = input.indice_dict[module.indice_key]
    return Kernel(tuple(book.ksize), tuple(book.stride), tuple(book.padding), tuple(book.dilation), is_transposed=True)


def _kernel(module: Any, is_transposed: bool) -> Kernel:
    size, stride, padding, dilation = module.kernel_size, module.stride, module.padding, module.dilation
    return Kernel(tuple(size), tuple(stride), tuple(padding), tuple(dilation), is_transposed)


def _ravel(frame: Tensor, at: Tensor, grid: Sequence[int]) -> Tensor:
    place = frame
    for axis, size in enumerate(grid):
        place = place * size + at[..., axis]
    return place


def kernel_weights(module: nn.Module) -> Tensor:
    """Give a layer's weights as ``(C_out, K, C_in)``, offsets in row-major order."""
    if is_grouped(module):
        raise NotUnderstoodError("channels that are split into groups")
    weight = weight_of(module).detach()
    if getattr(module, "conv1x1", False):  # spconv takes this memory for (C_in, C_out)
        return weight.reshape(num_inputs(module), num_filters(module)).t().contiguous()[:, None]
    if is_sparse_conv(module):
        return weight.flatten(1, -2).contiguous()
    if isinstance(module, nn.Linear):
        return weight[:, None]
    weight = weight.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else weight
    return weight.flatten(2).transpose(1, 2).contiguous()
