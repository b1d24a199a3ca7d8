"""The gradients of the native ops; the references have theirs from PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def register() -> None:
    """Register the gradient of every native op that has one; the extension must be loaded."""
    torch.library.register_autograd("cakdp::group_points", _group, setup_context=_keep_group)
    torch.library.register_autograd("cakdp::group_points_backward", _group_twice, setup_context=_keep_group_backward)
    torch.library.register_autograd("cakdp::three_interpolate", _interpolate, setup_context=_keep_interpolate)
    torch.library.register_autograd(
        "cakdp::three_interpolate_backward", _interpolate_twice, setup_context=_keep_interpolate_backward
    )
    torch.library.register_autograd(
        "cakdp::pool_cells_mean", _pool_cells_mean_backward, setup_context=_pool_cells_mean_context
    )
    torch.library.register_autograd(
        "cakdp::pool_cells_max", _pool_cells_max_backward, setup_context=_pool_cells_max_context
    )


def _keep_group(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    features, index, empty = inputs
    ctx.save_for_backward(index, empty)
    ctx.num_rows = features.shape[0]


def _group(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    index, empty = ctx.saved_tensors
    return torch.ops.cakdp.group_points_backward(grad, index, empty, ctx.num_rows), None, None


def _keep_group_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _group_twice(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.cakdp.group_points(grad, *ctx.saved_tensors), None, None, None


def _keep_interpolate(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    features, index, weights = inputs
    ctx.save_for_backward(features if ctx.needs_input_grad[2] else None, index, weights)
    ctx.num_rows = features.shape[0]


def _interpolate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
    features, index, weights = ctx.saved_tensors
    of_features = None
    if ctx.needs_input_grad[0]:
        of_features = torch.ops.cakdp.three_interpolate_backward(grad, index, weights, ctx.num_rows)
    return of_features, None, None if features is None else _of_weights(features, grad, index)


def _keep_interpolate_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    grad, index, weights, _ = inputs
    ctx.save_for_backward(grad if ctx.needs_input_grad[2] else None, index, weights)


def _interpolate_twice(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
    first, index, weights = ctx.saved_tensors
    of_grad = torch.ops.cakdp.three_interpolate(grad, index, weights) if ctx.needs_input_grad[0] else None
    return of_grad, None, None if first is None else _of_weights(grad, first, index), None


def _of_weights(features: Tensor, grad: Tensor, index: Tensor) -> Tensor:
    return torch.stack([(grad * features[index[:, slot]]).sum(1) for slot in range(3)], dim=1)


def _pool_cells_mean_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    features, *cells = inputs
    ctx.save_for_backward(*cells)
    ctx.num_rows = features.shape[0]


def _pool_cells_mean_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.cakdp.pool_cells_mean_backward(grad, *ctx.saved_tensors, ctx.num_rows), None, None, None


def _pool_cells_max_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.num_rows = inputs[0].shape[0]


def _pool_cells_max_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return torch.ops.cakdp.pool_cells_max_backward(grad, *ctx.saved_tensors, ctx.num_rows), None, None, None
