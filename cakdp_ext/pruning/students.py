"""Which network is cut? The channel graph of a student, the weights it inherits, and the cut itself."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from cakdp_ext.checkpoint import find_checkpoint, load_weights, read_checkpoint
from cakdp_ext.config import ConfigError
from cakdp_ext.looking import example_frame
from cakdp_ext.pruning.graph import ChannelGraph, trace_channels
from cakdp_ext.pruning.settings import PruningConfig
from cakdp_ext.pruning.surgery import apply_plan_
from cakdp_ext.types import Batch, LidarGeometry, PruningPlan

_IOU_BRANCH = re.compile(r"dense_head\.(conv_iou|heads_list\.\d+\.iou)\.")


def class_logits(model: Any, batch: Batch) -> Tensor:
    """The category predictions that filters are judged by: ``(B, A, C)`` raw logits."""
    return model.predict_dense(batch).cls_logits


def channel_graph(model: nn.Module, geometry: LidarGeometry) -> ChannelGraph:
    """Discover which filter feeds what in a detector."""
    batch = example_frame(geometry, next(model.parameters()).device)
    return trace_channels(model, lambda network: class_logits(network, batch))


def cut_student_(model: nn.Module, plan: PruningPlan, geometry: LidarGeometry) -> None:
    """Cut a student by a plan, in place.

    Raises:
        ValueError: when the plan is of another architecture.
    """
    apply_plan_(model, plan, channel_graph(model, geometry))


def inherit_weights(model: nn.Module, pruning: PruningConfig) -> None:
    """Load the trained student's weights into the network that is to be cut, where the YAML asks for that.

    An IoU branch, which a student need not have, keeps its own.

    Raises:
        CheckpointError: when the weights do not fit.
    """
    if pruning.initial_weights != "inherited":
        return
    ckpt = find_checkpoint(pruning.student.ckpt)
    load_weights(model, read_checkpoint(ckpt)["model_state"], ckpt, may_miss=iou_branch(model))


def iou_branch(model: nn.Module) -> tuple[str, ...]:
    """Name the tensors of a detector's IoU branch; none where it has none."""
    return tuple(key for key in model.state_dict() if _IOU_BRANCH.match(key))


def require_match(pruning: PruningConfig | None, plan: PruningPlan | None, config_file: str) -> None:
    """Refuse a plan where the YAML prunes nothing, and no plan where it does.

    Raises:
        ConfigError: naming the YAML.
    """
    if pruning is None and plan is not None:
        raise ConfigError(
            f"the checkpoint is pruned (keeps {plan.keep_ratio:.0%} of the filters), but {config_file} has no "
            "MODEL.PRUNING section; use the YAML it was trained with"
        )
    if pruning is not None and plan is None:
        raise ConfigError(
            f"{config_file} has a MODEL.PRUNING section, but nothing was pruned here; use the YAML it was trained "
            "with, or run tools/score_filters.py and tools/prune.py first"
        )
