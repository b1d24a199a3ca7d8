"""What does running a network take? Latency of single calls and peak memory, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cakdp_ext.cpu_memory import give_back_freed_memory
from cakdp_ext.pruning.layers import replaced_forwards

REST = "rest"
"""What of a network is in none of its parts."""

_RESET_WITHIN = 16 * 2**20  # bytes; the kernel counts a process's pages in batches for each processor


@dataclass(frozen=True)
class LatencyStats:
    """How long one call took, in milliseconds: percentiles and mean over ``iterations`` calls."""

    p50: float
    p90: float
    p99: float
    mean: float
    iterations: int


@dataclass(frozen=True)
class PartCost:
    """What one part of a network took: time a call, and bytes on the device at the peak of its calls, on CUDA."""

    latency: LatencyStats
    memory: int | None = None


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
    return _stats([_milliseconds(run, device) for _ in range(iterations)])


def measure_parts(
    run: Callable[[], Any],
    parts: Mapping[str, nn.Module],
    *,
    warmup: int = 10,
    iterations: int = 100,
    device: torch.device | str = "cpu",
) -> dict[str, PartCost]:
    """Measure what single calls spend in some modules, each of which is waited for to its end on the device.

    Args:
        run: as in :func:`measure_latency`; what the waiting itself takes is in no part.
        parts: modules that are called, none inside of another.
        warmup: calls before the first timed one.
        iterations: timed calls.
        device: where ``run`` computes.

    Returns:
        Name -> the sum of its calls in one call of ``run``, and its peak memory on CUDA; then ``REST`` for the time
        outside of all of them.
    """
    spent: list[dict[str, float]] = []
    peaks: dict[str, int] = {}

    def watched(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            output: list[Any] = []
            with peak_memory(device) if torch.device(device).type == "cuda" else nullcontext() as peak:
                took = _milliseconds(lambda: output.append(forward(*args, **kwargs)), device)
            spent[-1][name] = spent[-1].get(name, 0.0) + took
            if peak is not None:
                peaks[name] = max(peaks.get(name, 0), peak.num_bytes or 0)
            return output[0]

        return timed

    with replaced_forwards({part: watched(name, part.forward) for name, part in parts.items()}):
        for _ in range(warmup + iterations):
            spent.append({})
            total = _milliseconds(run, device)
            spent[-1][REST] = max(total - sum(spent[-1].values()), 0.0)
    columns = {name: [row.get(name, 0.0) for row in spent[warmup:]] for name in (*parts, REST)}
    return {name: PartCost(_stats(column), peaks.get(name)) for name, column in columns.items()}


def _milliseconds(run: Callable[[], Any], device: torch.device | str) -> float:
    """Time one call to its end on the device."""
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def _stats(milliseconds: list[float]) -> LatencyStats:
    p50, p90, p99 = np.percentile(milliseconds, [50, 90, 99]).tolist()
    return LatencyStats(p50, p90, p99, float(np.mean(milliseconds)), len(milliseconds))


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
    give_back_freed_memory()  # else what was freed before counts
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
