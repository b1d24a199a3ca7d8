"""How narrow is a student from its birth? The same share of the filters of every layer, without scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from cakdp_ext.checkpoint import CheckpointError
from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.pruning.artefacts import architecture_fingerprint
from cakdp_ext.pruning.criteria import alike
from cakdp_ext.pruning.graph import ChannelGraph
from cakdp_ext.pruning.students import channel_graph
from cakdp_ext.pruning.surgery import apply_plan_
from cakdp_ext.types import LidarGeometry, PruningPlan

WIDTH_KEY = "width"
"""Where a checkpoint keeps what its network's MODEL.WIDTH was."""


@dataclass(frozen=True)
class WidthConfig:
    """Keys of MODEL.WIDTH; a number in place of the mapping stands for both.

    Attributes:
        backbone_3d: share of the filters that each layer of the 3D backbone has, in (0, 1].
        backbone_2d: likewise.
    """

    backbone_3d: float = 1.0
    backbone_2d: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise ValueError(f"{name.upper()} of WIDTH must be a number above 0 and at most 1, got {value!r}")


def read_width(model_cfg: Mapping[str, Any]) -> WidthConfig | None:
    """Read MODEL.WIDTH; None where the YAML has none.

    Raises:
        ConfigError: for unknown keys, a value out of range, or a two-stage detector, whose second stage reads the
            backbone's features at their full widths.
    """
    node = model_cfg.get("WIDTH")
    if node is None:
        return None
    if not isinstance(node, Mapping):
        node = {"BACKBONE_3D": node, "BACKBONE_2D": node}
    width = from_node(WidthConfig, node, "MODEL.WIDTH")
    if model_cfg.get("ROI_HEAD"):
        raise ConfigError(
            f"MODEL.WIDTH makes students of one stage narrow, {model_cfg.get('NAME')} has a ROI_HEAD; leave WIDTH out"
        )
    return width


def width_plan(graph: ChannelGraph, width: WidthConfig) -> PruningPlan:
    """Keep the first ``int(share * filters)`` filters of every layer, one at least.

    Layers that sums tie together keep the same ones.

    Args:
        graph: of the network at full width.
        width: the shares.
    """
    shares = asdict(width)
    kept: list[int] = []
    for numbers in alike(graph):
        section = graph.groups[numbers[0]][0].layer.partition(".")[0]
        kept += numbers[: max(int(shares[section] * len(numbers)), 1)]
    return keep_groups(graph, kept)


def keep_groups(graph: ChannelGraph, numbers: Iterable[int]) -> PruningPlan:
    """Write down which filters some groups are, by the groups' numbers; every layer must keep one."""
    keep: dict[str, list[int]] = {layer.name: [] for layer in graph.prunable}
    for layer, channel in (each for number in numbers for each in graph.groups[number]):
        keep[layer].append(channel)
    return PruningPlan(
        keep_indices={name: tuple(sorted(channels)) for name, channels in keep.items()},
        num_filters={layer.name: layer.num_filters for layer in graph.prunable},
        fingerprint=architecture_fingerprint(graph),
    )


def narrow_(model: nn.Module, width: WidthConfig, geometry: LidarGeometry) -> None:
    """Make a fresh detector narrow in place; what is left keeps the weights that it had.

    Source: Yang et al., Towards Efficient 3D Object Detection with Knowledge Distillation (NeurIPS 2022), section 3,
    whose students are made by the widths of their layers.
    """
    graph = channel_graph(model, geometry)
    apply_plan_(model, width_plan(graph, width), graph)


def width_entry(width: WidthConfig | None) -> dict[str, dict[str, float]]:
    """Give what a checkpoint keeps of the width; nothing at full width."""
    return {WIDTH_KEY: asdict(width)} if width is not None else {}


def require_width(content: Mapping[str, Any], width: WidthConfig | None, where: Any) -> None:
    """Refuse a checkpoint that says that its network had another width.

    One that says nothing, of OpenPCDet's own script, is told by the shapes of its tensors.

    Args:
        content: of the checkpoint.
        width: of the network that is to be filled.
        where: what errors call the checkpoint.

    Raises:
        CheckpointError: naming both widths.
    """
    theirs, ours = content.get(WIDTH_KEY), width_entry(width).get(WIDTH_KEY)
    if theirs is not None and theirs != ours:
        raise CheckpointError(
            f"{where} was trained with MODEL.WIDTH {_text(theirs)}, the YAML has {_text(ours)}; use the YAML it was "
            "trained with"
        )


def _text(width: Mapping[str, float] | None) -> str:
    if width is None:
        return "none"
    return "{" + ", ".join(f"{key.upper()}: {value:g}" for key, value in width.items()) + "}"
