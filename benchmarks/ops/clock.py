"""Times of calls, and what the machine can do at most."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from case import Gradient, Run, Work

from cakdp_ext.ops import native

BUDGET_MS = 1500
"""Calls of one kind go on no longer than this; one that takes half of it is timed once, without a warm-up."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of some calls, and what the last of them gave."""

    calls: list[float]
    answer: object

    @property
    def median(self) -> float:
        return float(np.median(self.calls))

    @property
    def p90(self) -> float:
        return float(np.percentile(self.calls, 90))


@dataclass(frozen=True)
class Peak:
    """Bytes and operations per second."""

    memory: float
    arithmetic: float

    def bound(self, work: Work) -> tuple[float, str]:
        """Milliseconds below which no implementation gets, and what sets them."""
        of_bytes, of_operations = 1e3 * work.moved / self.memory, 1e3 * work.operations / self.arithmetic
        return (of_bytes, "bytes") if of_bytes >= of_operations else (of_operations, "operations")


def timed(run: Run, device: torch.device, repeats: int) -> Times:
    """Time calls after a warm-up."""
    if isinstance(run, Gradient):
        run.prepare()
    first, answer = _one_call(run, device)
    if repeats < 2 or first > BUDGET_MS / 2:
        return Times([first], answer)
    calls: list[float] = []
    while len(calls) < repeats and sum(calls) < BUDGET_MS:
        took, answer = _one_call(run, device)
        calls.append(took)
    return Times(calls, answer)


def _one_call(run: Run, device: torch.device) -> tuple[float, object]:
    if device.type == "cpu":
        begin = time.perf_counter()
        answer = run()
        return 1e3 * (time.perf_counter() - begin), answer
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    answer = run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end), answer


@contextlib.contextmanager
def references() -> Iterator[None]:
    """Set every native op aside."""
    chosen = native.implementation
    native.implementation = lambda name, device: None
    try:
        yield
    finally:
        native.implementation = chosen


def peak_memory(run: Run, device: torch.device) -> float:
    """MiB that a call holds at most beyond its inputs, its answer included; CUDA only."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    answer = run()
    torch.cuda.synchronize(device)
    del answer
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def measure_peak(device: torch.device, quick: bool) -> Peak:
    """Copy much more than any cache holds, and multiply large float32 matrices; the best of some calls counts."""
    floats = 2**20 if quick else 2**26
    side = 256 if quick else 2048 if device.type == "cpu" else 8192
    source, target = torch.ones(floats, device=device), torch.empty(floats, device=device)
    factor = torch.ones(side, side, device=device)
    copy = timed(lambda: target.copy_(source), device, 10)
    product = timed(lambda: factor @ factor, device, 10)
    # a copy reads and writes four bytes a number, a product multiplies and adds side times a number
    return Peak(8e3 * floats / min(copy.calls), 2e3 * side**3 / min(product.calls))
