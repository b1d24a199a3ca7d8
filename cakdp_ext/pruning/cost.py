"""What does running a network take? Latency of single calls and peak memory, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

_RESET_WITHIN = 16 * 2**20  # bytes; the kernel counts a process's pages in batches for each processor


@dataclass(frozen=True)
class LatencyStats:
    """How long one call took, in milliseconds: percentiles and mean over ``iterations`` calls."""

    p50: float
    p90: float
    p99: float
    mean: float
    iterations: int


@dataclass
class MemoryPeak:
    """Largest amount of memory in use; ``num_bytes`` is None until measured and where it cannot be."""

    num_bytes: int | None = None


def measure_latency(
    run: Callable[[], Any],
    *,
    warmup: int = 10,
    iterations: int = 100,
    device: torch.device | str = "cpu",
) -> LatencyStats:
    """Time single calls, each waited for to its end on the device.

    Args:
        run: what is timed; put the network in eval mode and gradients off beforehand.
        warmup: calls before the first timed one.
        iterations: timed calls.
        device: where ``run`` computes.

    Raises:
        ValueError: for fewer than one timed call.
    """
    if iterations < 1 or warmup < 0:
        raise ValueError(f"need warmup >= 0 and iterations >= 1, got {warmup} and {iterations}")
    for _ in range(warmup):
        run()
    milliseconds = []
    for _ in range(iterations):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    p50, p90, p99 = np.percentile(milliseconds, [50, 90, 99]).tolist()
    return LatencyStats(p50, p90, p99, float(np.mean(milliseconds)), iterations)


def _synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device | str) -> Iterator[MemoryPeak]:
    """Measure the most memory in use while the context is open.

    Args:
        device: a CUDA device: what torch had allocated there; ``cpu``: the whole process, resident, where the
            operating system tells (Linux); else None.

    Yields:
        A result that is filled in when the context closes.
    """
    peak = MemoryPeak()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.num_bytes = int(torch.cuda.max_memory_allocated(device))
        return
    can_reset = _reset_resident_peak()
    yield peak
    peak.num_bytes = _resident("VmHWM") if can_reset else None


def _reset_resident_peak() -> bool:
    """Set the process's high-water mark to its present size (Linux, ``man 5 proc``: clear_refs).

    Returns:
        Whether that was done. Some sandboxes accept the request and ignore it.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    peak, size = _resident("VmHWM"), _resident("VmRSS")
    return peak is not None and size is not None and peak - size < _RESET_WITHIN


def _resident(field: str) -> int | None:
    """Bytes that ``/proc/self/status`` states in ``field``."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith(f"{field}:")]
    return 1024 * int(lines[0][1]) if lines else None
