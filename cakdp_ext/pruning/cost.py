"""What does a network cost? Parameters, multiply-accumulates, latency, memory: counted and measured."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from cakdp_ext.pruning.layers import (
    evaluating,
    is_convolution,
    is_norm,
    is_sparse_conv,
    num_filters,
    num_inputs,
    weight_of,
)
from cakdp_ext.pruning.rulebooks import num_pairs

EXACT, THOP = "exact", "thop"
"""Conventions of counting multiply-accumulates, see :func:`count_macs_by`."""

_RESET_WITHIN = 16 * 2**20  # bytes; the kernel counts a process's pages in batches for each processor


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates of one forward.

    Attributes:
        layers: module name -> multiply-accumulates, in the order in which the modules first run.
    """

    layers: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum over the layers."""
        return sum(self.layers.values())

    def under(self, prefix: str) -> int:
        """Sum over the layers of one submodule."""
        return sum(macs for name, macs in self.layers.items() if f"{name}.".startswith(f"{prefix}."))


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


def count_parameters(model: nn.Module, *, trainable_only: bool = True) -> int:
    """Count the parameters of a network, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_macs(run: Callable[[nn.Module], Any], model: nn.Module) -> MacCount:
    """Count the multiply-accumulates of convolutions and linear layers in one forward.

    A dense layer counts every output value, padding included; a sparse convolution counts the pairs of input and
    output voxels that its rulebook really holds. Norms, activations and what the network's own code multiplies do not
    count.

    Args:
        run: does one forward of the network, in eval mode; give it one frame for the cost of a frame.
        model: the network.

    Returns:
        Counts by layer, for all frames that ``run`` processes together.
    """
    return count_macs_by(run, model, (EXACT,))[EXACT]


def count_macs_by(
    run: Callable[[nn.Module], Any], model: nn.Module, conventions: Sequence[str] = (EXACT, THOP)
) -> dict[str, MacCount]:
    """Count the multiply-accumulates of one forward, by several conventions at once.

    ``exact`` is :func:`count_macs`. ``thop`` is what the paper's figures were counted by, THOP with a rule for spconv.
    It differs: a transposed convolution costs the whole kernel for every output value, stride x stride times what it
    multiplies; each value that goes into a batch norm costs 2, each that a convolution adds its bias to 1 (a sparse
    one: each voxel); inverse sparse convolutions cost nothing.

    Args:
        run: as there.
        model: the network.
        conventions: of ``exact`` and ``thop``.

    Returns:
        Convention -> counts by layer, of which ``thop`` has the norms too.

    Source: the counter is named in the published code of CaKDP (CVPR 2024) and of SparseKD (NeurIPS 2022).
    """
    counts: dict[str, dict[str, int]] = {name: defaultdict(int) for name in conventions}

    def counting(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            for convention, layers in counts.items():
                if convention == THOP or not is_norm(module):
                    layers[name] += _COUNTERS[convention](module, args[0], output)

        return hook

    layers = [(name, module) for name, module in model.named_modules() if is_convolution(module) or is_norm(module)]
    hooks = [module.register_forward_hook(counting(name)) for name, module in layers]
    try:
        with evaluating(model):
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return {convention: MacCount(dict(layers)) for convention, layers in counts.items()}


def _exact(module: nn.Module, input: Any, output: Any) -> int:
    """Multiply-accumulates of one call of a convolution or linear layer."""
    if is_sparse_conv(module):
        return num_pairs(module, input, output) * num_inputs(module) * num_filters(module)
    weights = weight_of(module).numel()
    if isinstance(module, _ConvTransposeNd):
        return input.numel() * weights // num_inputs(module)
    return output.numel() * weights // num_filters(module)


def _thop(module: nn.Module, input: Any, output: Any) -> int:
    """What THOP counts of one call."""
    if is_norm(module):
        return 2 * input.numel()
    if isinstance(module, nn.Linear):
        return _exact(module, input, output)
    has_bias = getattr(module, "bias", None) is not None
    if is_sparse_conv(module):
        return 0 if module.inverse else _exact(module, input, output) + has_bias * len(output.features)
    products = weight_of(module)[0, 0].numel() * num_inputs(module) // int(getattr(module, "groups", 1))
    return output.numel() * (products + has_bias)


_COUNTERS = {EXACT: _exact, THOP: _thop}


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
