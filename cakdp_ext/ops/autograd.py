"""How gradients pass through the native ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def register() -> None:
    """Register the backward pass of every native op that has one; the extension must be loaded."""
    torch.library.register_autograd(
        "cakdp::pool_cells_mean", _pool_cells_mean_backward, setup_context=_pool_cells_mean_context
    )
    torch.library.register_autograd(
        "cakdp::pool_cells_max", _pool_cells_max_backward, setup_context=_pool_cells_max_context
    )


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
