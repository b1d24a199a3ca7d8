"""Which network is cut? The channel graph of a student, the weights it inherits, and the cut itself."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.checkpoint import find_checkpoint, load_weights, read_checkpoint
from cakdp_ext.config import ConfigError
from cakdp_ext.pruning.graph import ChannelGraph, trace_channels
from cakdp_ext.pruning.settings import PruningConfig
from cakdp_ext.pruning.surgery import apply_plan_
from cakdp_ext.types import Batch, LidarGeometry, PruningPlan

_IOU_BRANCH = re.compile(r"dense_head\.(conv_iou|heads_list\.\d+\.iou)\.")


def example_batch(geometry: LidarGeometry, device: torch.device | str = "cpu") -> Batch:
    """Make one small frame of scattered voxels that reaches every layer of a detector, for tracing channels."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor(geometry.grid_size[::-1])
    coords = (torch.rand(64, 3, generator=generator) * size).long().unique(dim=0)
    voxels = torch.rand(len(coords), 1, geometry.num_point_features, generator=generator)
    centers = torch.tensor(geometry.point_cloud_range[:3]) + (coords.flip(1) + 0.5) * torch.tensor(geometry.voxel_size)
    frame = torch.zeros(len(coords), 1)
    batch = Batch(
        batch_size=1,
        voxels=voxels,
        voxel_coords=torch.cat([frame, coords], dim=1).int(),
        voxel_num_points=torch.ones(len(coords), dtype=torch.int32),
        gt_boxes=torch.zeros(1, 0, 7),
        gt_labels=torch.zeros(1, 0, dtype=torch.long),
        frame_ids=("example",),
        points=torch.cat([frame, centers, voxels[:, 0, 3:]], dim=1),  # for networks that sort them themselves
    )
    return batch.to(device)


def class_logits(model: Any, batch: Batch) -> Tensor:
    """The category predictions that filters are judged by: ``(B, A, C)`` raw logits."""
    return model.predict_dense(batch).cls_logits


def channel_graph(model: nn.Module, geometry: LidarGeometry) -> ChannelGraph:
    """Discover which filter feeds what in a detector."""
    batch = example_batch(geometry, next(model.parameters()).device)
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
