"""What a detector costs: parameters, multiply-accumulates, latency, memory, on frames of the data set."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
import torch
from torch import nn

from cakdp_ext.datasets import LidarDataset
from cakdp_ext.engine.data import one_frame
from cakdp_ext.held_out import evenly_spaced
from cakdp_ext.pruning import (
    ACTIVATIONS,
    EXACT,
    LatencyStats,
    count_layers,
    count_parameters,
    measure_latency,
    peak_memory,
)
from cakdp_ext.types import Batch


@dataclass(frozen=True)
class Cost:
    """What one frame costs.

    Attributes:
        params: trainable parameters.
        macs: multiply-accumulates, mean over the frames.
        activations: values that convolutions and linear layers output, mean over the frames.
        latency: milliseconds from voxels to detections, one frame at a time.
        memory: bytes on the device at the peak of a forward; None on CPU, where only the whole process is known.
    """

    params: int
    macs: float
    activations: float
    latency: LatencyStats
    memory: int | None


def cost_frames(dataset: LidarDataset, device: torch.device, count: int = 8) -> list[Batch]:
    """Up to ``count`` evenly spaced frames, one a batch."""
    return [one_frame(dataset, index).to(device) for index in evenly_spaced(len(dataset), count)]


def measure_cost(model: nn.Module, frames: Sequence[Batch]) -> Cost:
    """Measure a detector in eval mode.

    Args:
        model: on the frames' device.
        frames: batches of one frame each, at least one.

    Raises:
        ValueError: without frames.
    """
    if not frames:
        raise ValueError("cost is measured on frames, got none")
    device = frames[0].voxels.device
    counts = [count_layers(partial(call, batch=batch), model, (EXACT, ACTIVATIONS)) for batch in frames]
    with peak_memory(device) as peak:
        latency = time_frames(model, frames)
    macs, activations = (float(np.mean([count[kind].total for count in counts])) for kind in (EXACT, ACTIVATIONS))
    memory = peak.num_bytes if device.type == "cuda" else None
    return Cost(count_parameters(model), macs, activations, latency, memory)


def time_frames(model: nn.Module, frames: Sequence[Batch], iterations: int = 0) -> LatencyStats:
    """Time single forwards of a detector in eval mode, frames in turn, after a round that warms up.

    Args:
        model: on the frames' device.
        frames: batches of one frame each, at least one.
        iterations: timed forwards; 0 takes two of each frame, at least 10.
    """
    turns, device = cycle(frames), frames[0].voxels.device
    iterations = iterations or max(2 * len(frames), 10)
    model.eval()
    with torch.inference_mode():
        return measure_latency(lambda: model(next(turns)), warmup=len(frames), iterations=iterations, device=device)


def call(model: nn.Module, batch: Batch) -> None:
    """Run a detector on a batch."""
    model(batch)


def device_name(device: torch.device) -> str:
    """Name a device as a report does: what it is, and on CPU how many threads compute."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.processor() or 'CPU'}, {threads} thread{'s' if threads > 1 else ''}"
