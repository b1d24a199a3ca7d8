"""What does the compact network look like? Filters, norms and input channels cut out by a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.pruning.artefacts import architecture_fingerprint
from cakdp_ext.pruning.graph import ChannelGraph, Filter
from cakdp_ext.pruning.layers import (
    filter_axis,
    input_axis,
    is_norm,
    is_sparse_conv,
    num_filters,
    num_inputs,
    values_of,
    weight_of,
    without_channels,
)
from cakdp_ext.types import PruningPlan

_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def apply_plan(model: nn.Module, plan: PruningPlan, graph: ChannelGraph) -> nn.Module:
    """Cut a network by a plan.

    Args:
        model: the full network; it is not changed.
        plan: which filters stay.
        graph: of ``model``.

    Returns:
        A copy whose filters, norms (running statistics included) and input channels are those that stay; dtype,
        device and ``requires_grad`` of every tensor are kept. In eval mode it computes what :func:`masked` does.

    Raises:
        ValueError: when the plan is of another architecture, or splits filters that only go together.
    """
    require_fit(plan, graph)
    compact = deepcopy(model)
    apply_plan_(compact, plan, graph)
    return compact


def apply_plan_(model: nn.Module, plan: PruningPlan, graph: ChannelGraph) -> None:
    """Cut a network by a plan in place: :func:`apply_plan` for networks that cannot or need not be copied."""
    require_fit(plan, graph)
    modules, gone = dict(model.named_modules()), removed_filters(plan)
    with torch.no_grad():
        for name, keep in plan.keep_indices.items():
            _keep_filters(modules[name], torch.tensor(keep))
        for name, channels in graph.norm_channels(gone).items():
            _keep_norm_channels(modules[name], _others(num_inputs(modules[name]), channels))
        for name, channels in graph.consumer_channels(gone).items():
            _keep_inputs(modules[name], _others(num_inputs(modules[name]), channels))


@contextmanager
def masked(model: nn.Module, plan: PruningPlan, graph: ChannelGraph) -> Iterator[nn.Module]:
    """Run the full network as if the plan's removed filters were absent, while the context is open.

    Args:
        model: the full network.
        plan: which filters stay.
        graph: of ``model``.

    Yields:
        ``model`` itself; whatever removed filters feed sees zeros in their place.

    Raises:
        ValueError: as :func:`apply_plan`.
    """
    require_fit(plan, graph)
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_pre_hook(_absent(modules[name], torch.tensor(channels)))
        for name, channels in graph.consumer_channels(removed_filters(plan)).items()
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def removed_filters(plan: PruningPlan) -> list[Filter]:
    """List the filters that a plan takes away."""
    return [
        Filter(name, index)
        for name, keep in plan.keep_indices.items()
        for index in _others(plan.num_filters[name], keep).tolist()
    ]


def require_fit(plan: PruningPlan, graph: ChannelGraph) -> None:
    """Refuse a plan that was not made for this architecture.

    Raises:
        ValueError: naming the first layer that differs, that loses all filters, or whose filters only go together
            with others that stay.
    """
    widths = {layer.name: layer.num_filters for layer in graph.prunable}
    for name in (*widths, *plan.num_filters):
        before, now = plan.num_filters.get(name, "no"), widths.get(name, "no")
        if before != now:
            raise ValueError(
                f"the plan cuts another architecture: it knows {before} prunable filters in {name}, "
                f"the network has {now}; build the network from the configuration that the plan was made with"
            )
    if plan.fingerprint != architecture_fingerprint(graph):
        raise ValueError(
            f"the plan cuts another architecture: order, input channels or kernel sizes of {', '.join(widths)} are not "
            "the same; build the network from the configuration that the plan was made with"
        )
    empty = [name for name, keep in plan.keep_indices.items() if not keep]
    if empty:
        raise ValueError(f"the plan leaves {empty[0]} with no filter")
    gone = set(removed_filters(plan))
    for group in graph.groups:
        split = set(group) & gone
        if split and len(split) < len(group):
            one, other = min(split), min(set(group) - gone)
            raise ValueError(
                f"the plan removes filter {one.channel} of {one.layer}, but keeps filter {other.channel} of "
                f"{other.layer}; they meet in a sum and only go together"
            )


def _others(total: int, channels: Iterable[int]) -> Tensor:
    stays = torch.ones(total, dtype=torch.bool)
    stays[list(channels)] = False
    return stays.nonzero().flatten()


def _absent(module: nn.Module, channels: Tensor) -> Callable[..., Any]:
    def hook(_: nn.Module, args: Sequence[Any]) -> tuple[Any, ...]:
        value, *rest = args
        return without_channels(module, value, channels.to(values_of(value).device)), *rest

    return hook


def _keep_filters(module: nn.Module, keep: Tensor) -> None:
    _cut_weight(module, filter_axis(module), keep)
    _cut(module, "bias", 0, keep)
    _resize(module, ("out_channels", "out_features"), len(keep))


def _keep_inputs(module: nn.Module, keep: Tensor) -> None:
    _cut_weight(module, input_axis(module), keep)
    _resize(module, ("in_channels", "in_features"), len(keep))


def _cut_weight(module: nn.Module, axis: int, keep: Tensor) -> None:
    """Keep some filters or inputs; spconv lays 1x1 weights out as ``(C_in, C_out)``, whatever their shape says."""
    if not getattr(module, "conv1x1", False):
        return _cut(module, "weight", axis, keep)
    weight = weight_of(module)
    shape = [len(keep) if i == axis else size for i, size in enumerate(weight.shape)]
    matrix = weight.detach().reshape(num_inputs(module), num_filters(module))
    kept = matrix.index_select(1 if axis == filter_axis(module) else 0, keep.to(weight.device)).reshape(shape)
    module.weight = nn.Parameter(kept.clone(), weight.requires_grad)


def _keep_norm_channels(module: nn.Module, keep: Tensor) -> None:
    for name in _NORM_TENSORS:
        _cut(module, name, 0, keep)
    _resize(module, ("num_features", "num_parameters"), len(keep))


def _cut(module: nn.Module, name: str, axis: int, keep: Tensor) -> None:
    """Keep some entries of one axis of a parameter or buffer, which may be absent."""
    old = getattr(module, name, None)
    if old is None:
        return
    new = old.detach().index_select(axis, keep.to(old.device)).clone()
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _resize(module: nn.Module, names: Sequence[str], size: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, size)
    if is_sparse_conv(module) and not is_norm(module):
        module.weight_shape = list(weight_of(module).shape)  # type: ignore[assignment]
