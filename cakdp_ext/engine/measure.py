"""What a detector costs: parameters, multiply-accumulates, latency, memory, on frames of the data set."""

from __future__ import annotations

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
from cakdp_ext.pruning import LatencyStats, count_macs, count_parameters, measure_latency, peak_memory
from cakdp_ext.types import Batch


@dataclass(frozen=True)
class Cost:
    """What one frame costs.

    Attributes:
        params: trainable parameters.
        macs: multiply-accumulates, mean over the frames.
        latency: milliseconds from voxels to detections, one frame at a time.
        memory: bytes on the device at the peak of a forward; None on CPU, where only the whole process is known.
    """

    params: int
    macs: float
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
    model.eval()
    device = frames[0].voxels.device
    turns = cycle(frames)
    with torch.inference_mode():
        macs = [count_macs(partial(_call, batch=batch), model).total for batch in frames]
        with peak_memory(device) as peak:
            latency = measure_latency(
                lambda: model(next(turns)), warmup=2, iterations=max(2 * len(frames), 10), device=device
            )
    memory = peak.num_bytes if device.type == "cuda" else None
    return Cost(count_parameters(model), float(np.mean(macs)), latency, memory)


def _call(model: nn.Module, batch: Batch) -> None:
    model(batch)
