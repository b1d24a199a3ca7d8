"""What does a narrow student take over from its teacher? The weights of some filters of each layer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.pruning.criteria import alike
from cakdp_ext.pruning.graph import DEFAULT_SCOPE, ChannelGraph
from cakdp_ext.pruning.layers import filter_axis, num_filters, num_inputs, weight_of
from cakdp_ext.pruning.students import channel_graph
from cakdp_ext.pruning.surgery import apply_plan
from cakdp_ext.pruning.width import keep_groups
from cakdp_ext.types import LidarGeometry, PruningPlan

LOG = logging.getLogger("cakdp_ext")
CHOICES = ("largest", "first")
_HEAD = "dense_head."


def guide_weights_(student: nn.Module, teacher: nn.Module, choice: str, geometry: LidarGeometry) -> None:
    """Let a student begin with weights of its teacher, in place.

    Each layer of the backbones takes as many filters as it has from the teacher's layer of the same name, with their
    norms and for the inputs that are taken from the layers before. Layers of the teacher that the student has not keep
    as many as those of the same width. The dense head is taken over where both have the same one.

    Args:
        student: it may be narrower than the teacher, and have fewer layers.
        teacher: it is not changed.
        choice: ``first``, or ``largest``: those with the largest sum of absolute weights.
        geometry: of the frames that both see.

    Raises:
        ConfigError: for a layer of the student that the teacher has not, or has with fewer filters.

    Source: Yang et al. (NeurIPS 2022), teacher guided initialisation, after Fang et al., FNA++ (2020).
    """
    graph = channel_graph(teacher, geometry)
    plan = _plan(graph, dict(student.named_modules()), dict(teacher.named_modules()), choice)
    source = apply_plan(teacher, plan, graph).state_dict()
    own = {key: value for key, value in student.state_dict().items() if isinstance(value, Tensor)}
    taken = {key: value for key, value in own.items() if key.partition(".")[0] in DEFAULT_SCOPE}
    for key, value in taken.items():
        if key not in source or source[key].shape != value.shape:
            theirs = f"has {tuple(source[key].shape)}" if key in source else "has no such tensor"
            raise ConfigError(
                f"the student cannot start from the teacher's weights: {key} has shape {tuple(value.shape)}, the "
                f"teacher {theirs}; give both the same backbones but for WIDTH, or set TEACHER_WEIGHTS: none"
            )
    head = {key: value for key, value in own.items() if key.startswith(_HEAD)}
    if _is_same_head(student, teacher, head, source):
        taken.update(head)
    with torch.no_grad():
        for key, value in taken.items():
            value.copy_(source[key])
    LOG.info("the student starts from the teacher's weights: %d tensors of %d", len(taken), len(own))


def _plan(
    graph: ChannelGraph, student: Mapping[str, nn.Module], teacher: Mapping[str, nn.Module], choice: str
) -> PruningPlan:
    """Choose the teacher's filters: of each layer as many as the student's has."""
    counts = {layer.name: num_filters(student[layer.name]) for layer in graph.prunable if layer.name in student}
    by_width = {layer.num_filters: counts[layer.name] for layer in graph.prunable if layer.name in counts}
    sizes = {layer.name: _filter_sizes(teacher[layer.name]) for layer in graph.prunable}
    kept: list[int] = []
    for numbers in alike(graph):
        names = [layer for layer, _ in graph.groups[numbers[0]]]
        count = next((counts[name] for name in names if name in counts), by_width.get(len(numbers), len(numbers)))
        if count > len(numbers):
            raise ConfigError(
                f"the student cannot start from the teacher's weights: {names[0]} has {count} filters, the "
                f"teacher's {len(numbers)}; lower MODEL.WIDTH, or set TEACHER_WEIGHTS: none"
            )
        if choice == "largest":
            totals = {
                number: sum(sizes[layer][channel] for layer, channel in graph.groups[number]) for number in numbers
            }
            numbers = sorted(numbers, key=lambda number, totals=totals: -totals[number])  # type: ignore[misc]
        kept += numbers[:count]
    return keep_groups(graph, kept)


def _filter_sizes(module: nn.Module) -> list[float]:
    """Sum the absolute weights of every filter; spconv lays 1x1 weights out as ``(C_in, C_out)``."""
    sizes = weight_of(module).detach().abs()
    if getattr(module, "conv1x1", False):
        return sizes.reshape(num_inputs(module), num_filters(module)).sum(dim=0).tolist()
    return sizes.movedim(filter_axis(module), 0).flatten(1).sum(dim=1).tolist()


def _is_same_head(student: Any, teacher: Any, head: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> bool:
    """Tell whether the heads say the same things in the same order."""
    ours, theirs = student.sites, teacher.sites
    if ours.class_names != theirs.class_names or (ours.anchors is None) != (theirs.anchors is None):
        return False
    if ours.anchors is not None and not (
        ours.anchors.shape == theirs.anchors.shape and torch.allclose(ours.anchors, theirs.anchors.to(ours.anchors))
    ):
        return False
    return all(key in source and source[key].shape == value.shape for key, value in head.items())
