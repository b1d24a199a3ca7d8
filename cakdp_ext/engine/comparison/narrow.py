"""Which plain narrower network is as fast as the compact student? Its plan keeps the same share of every layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from easydict import EasyDict
from torch import nn

from cakdp_ext.datasets import LidarDataset
from cakdp_ext.engine.distributed import Workers
from cakdp_ext.engine.measure import cost_frames
from cakdp_ext.engine.runs import LOG
from cakdp_ext.engine.score import required_pruning, unpruned_student
from cakdp_ext.pruning import ChannelGraph, apply_plan, channel_graph, proportional_plan
from cakdp_ext.types import Batch, PruningPlan

LOWEST, ROUNDS, HALVINGS, CLOSE = 0.1, 3, 5, 0.02
"""The smallest share that is tried, turns over the frames at each, how often the interval is halved, what is enough."""


@torch.inference_mode()
def plan_of_equal_latency(config: EasyDict, plan: PruningPlan, dataset: LidarDataset, place: Workers) -> PruningPlan:
    """Search the ProPr plan whose network takes as long as that of another plan.

    Both are cut from the student that the YAML names and run in turns on the same frames, from voxels to dense
    predictions: what comes behind depends on training. The share is searched by halving an interval; of the shares that
    were tried the one whose ratio of medians is closest to 1 is taken.

    Args:
        config: of ``load_config``, with ``MODEL.PRUNING``.
        plan: of the compact student.
        dataset: the frames; eight of them are run.
        place: this process.

    Returns:
        The plan; its source names the share and the ratio of latencies.
    """
    student = unpruned_student(config, dataset.geometry).to(place.device).eval()
    graph = channel_graph(student, dataset.geometry)
    compact, frames = apply_plan(student, plan, graph), cost_frames(dataset, place.device)
    tried: list[tuple[float, float]] = []
    low, high = LOWEST, 1.0
    for _ in range(HALVINGS):
        share = (low + high) / 2
        narrow = apply_plan(student, _proportional(config, graph, share), graph)
        tried.append((share, latency_ratio(narrow, compact, frames)))
        LOG.info("ProPr at %.3f takes %.2f times as long as the compact student", *tried[-1])
        if abs(tried[-1][1] - 1) < CLOSE:
            break
        low, high = (low, share) if tried[-1][1] > 1 else (share, high)
    share, ratio = min(tried, key=lambda pair: abs(pair[1] - 1))
    return _proportional(config, graph, share, latency_ratio=ratio)


def _proportional(config: EasyDict, graph: ChannelGraph, share: float, **source: float) -> PruningPlan:
    pruning = required_pruning(config)
    return proportional_plan(
        graph,
        share,
        min_filters=max(pruning.min_filters, 1),
        round_to=pruning.round_to,
        protect=pruning.protect,
        source=source,
    )


def latency_ratio(one: nn.Module, other: nn.Module, frames: Sequence[Batch]) -> float:
    """Run two detectors in turns and divide the medians of their times.

    Args:
        one: in eval mode, on the frames' device.
        other: likewise.
        frames: of one frame each.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for batch in frames:
            for model, seconds in zip((one, other), times, strict=True):
                taken = _seconds(model, batch)
                if turn:  # the first warms up
                    seconds.append(taken)
    return statistics.median(times[0]) / statistics.median(times[1])


def _seconds(model: Any, batch: Batch) -> float:
    start = time.perf_counter()
    model.predict_dense(batch)
    if batch.voxels.device.type == "cuda":
        torch.cuda.synchronize(batch.voxels.device)
    return time.perf_counter() - start
