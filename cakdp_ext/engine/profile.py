"""Where do a detector's parameters, multiply-accumulates, time and memory go? Module by module, on test frames."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import cycle

import torch
from easydict import EasyDict
from torch import nn

from cakdp_ext import __version__
from cakdp_ext.engine.build import build_student, restore_student
from cakdp_ext.engine.choice import engine_name
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.measure import call, cost_frames, device_name, time_frames
from cakdp_ext.engine.plan_view import aligned
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.engine.train import find_plan
from cakdp_ext.pruning import (
    ACTIVATIONS,
    EXACT,
    REST,
    THOP,
    LatencyStats,
    count_layers,
    count_parameters,
    measure_parts,
    peak_memory,
)
from cakdp_ext.types import Batch, LidarGeometry

TOTAL = "total"


@dataclass(frozen=True)
class ModuleProfile:
    """What one module takes of a frame.

    Attributes:
        module: name of a child of the detector; ``rest``: what is outside of all of them, such as NMS; ``total``.
        params: trainable parameters.
        macs: multiply-accumulates of convolutions and linear layers, mean over the frames.
        macs_thop: the same by the paper's counter.
        activations: values that convolutions and linear layers output, mean over the frames.
        latency_p50_ms: milliseconds, one frame at a time; of a module the sum over its calls.
        latency_p90_ms: the same.
        latency_p99_ms: the same.
        memory_bytes: at the peak; on CUDA allocated there, on CPU resident in the whole process (the total only); None
            where the system does not tell.
    """

    module: str
    params: int
    macs: float
    macs_thop: float
    activations: float
    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Profile:
    """A detector measured.

    Attributes:
        network: YAML, and where the weights came from.
        device: name, and how many threads compute on a CPU.
        frames: ids.
        iterations: timed forwards, of the whole and again of the parts.
        modules: in the order in which the detector registers them, then ``rest``.
        total: of the whole; its latency is measured without the waiting between modules.
    """

    network: str
    device: str
    frames: tuple[str, ...]
    iterations: int
    modules: tuple[ModuleProfile, ...]
    total: ModuleProfile


def profile(
    config: EasyDict,
    run: RunFolder,
    device: torch.device,
    *,
    ckpt: str | None = None,
    num_frames: int = 8,
    iterations: int = 50,
) -> Profile:
    """Measure the detector that a YAML describes, student or teacher, on frames of its test split.

    Args:
        config: of ``load_config``.
        run: whose newest checkpoint, or else whose plan, is taken where ``ckpt`` is None.
        device: where it runs.
        ckpt: checkpoint or run folder.
        num_frames: evenly spaced; they take turns.
        iterations: timed forwards.

    Raises:
        ConfigError, CheckpointError: for a pruned YAML without a plan, or a checkpoint that does not fit.
    """
    dataset = build_split(config, str(config.DATA_CONFIG.DATA_SPLIT["test"]))
    model, weights = _network(config, run, dataset.geometry, ckpt)
    frames = cost_frames(dataset, device, num_frames)
    rows = profile_modules(model.to(device), frames, iterations)
    names = tuple(name for frame in frames for name in frame.frame_ids)
    return Profile(f"{config.CONFIG_FILE}, {weights}", device_name(device), names, iterations, rows[:-1], rows[-1])


def _network(config: EasyDict, run: RunFolder, geometry: LidarGeometry, ckpt: str | None) -> tuple[nn.Module, str]:
    """Give the detector and say where its weights are from."""
    newest = run.checkpoints()[-1:]
    if ckpt or newest:
        file = ckpt or newest[0]
        return restore_student(config, geometry, file).model, str(file)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what NMS and a second stage meet depends on the weights
        student = build_student(config, geometry, find_plan(config, run))
    return student.model, "cut, not trained again" if student.plan else "random weights"


def profile_modules(model: nn.Module, frames: Sequence[Batch], iterations: int) -> tuple[ModuleProfile, ...]:
    """Measure the children of a detector and the whole.

    Args:
        model: on the frames' device.
        frames: batches of one frame each, at least one.
        iterations: timed forwards.

    Returns:
        One row a child, ``rest``, ``total``.
    """
    device = frames[0].voxels.device
    parts = dict(model.eval().named_children())
    with peak_memory(device) as peak:
        whole = time_frames(model, frames, iterations)
    turns = cycle(frames)
    with torch.inference_mode():
        timed = measure_parts(
            lambda: model(next(turns)), parts, warmup=len(frames), iterations=iterations, device=device
        )
    counts = [count_layers(partial(call, batch=frame), model) for frame in frames]
    totals = [sum(count[kind].total for count in counts) / len(frames) for kind in (EXACT, THOP, ACTIVATIONS)]
    rows = []
    for name, part in parts.items():
        amounts = [
            sum(count[kind].under(name) for count in counts) / len(frames) for kind in (EXACT, THOP, ACTIVATIONS)
        ]
        rows.append(_row(name, count_parameters(part), amounts, timed[name].latency, timed[name].memory))
    left = [total - sum(each) for total, each in zip(totals, zip(*map(_amounts, rows), strict=True), strict=True)]
    params = count_parameters(model)
    rows.append(_row(REST, params - sum(row.params for row in rows), left, timed[REST].latency, None))
    return (*rows, _row(TOTAL, params, totals, whole, peak.num_bytes))


def _amounts(row: ModuleProfile) -> tuple[float, float, float]:
    return row.macs, row.macs_thop, row.activations


def _row(name: str, params: int, amounts: Sequence[float], latency: LatencyStats, memory: int | None) -> ModuleProfile:
    macs, thop, activations = amounts
    return ModuleProfile(name, params, macs, thop, activations, latency.p50, latency.p90, latency.p99, memory)


def profile_table(profile: Profile) -> str:
    """Set a profile in columns, with a line above that says of what, and one below that says how."""
    table = [["module", "parameters", "MACs [G]", "by THOP [G]", "activations [M]", "p50 [ms]", "p90", "p99",
              "peak [MiB]"]]  # fmt: skip
    for row in (*profile.modules, profile.total):
        memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.0f}"
        times = (row.latency_p50_ms, row.latency_p90_ms, row.latency_p99_ms)
        table.append([
            row.module, f"{row.params:,}", f"{row.macs / 1e9:.3f}", f"{row.macs_thop / 1e9:.3f}",
            f"{row.activations / 1e6:.2f}", *(f"{time:.2f}" for time in times), memory,
        ])  # fmt: skip
    how = f"{len(profile.frames)} frames in turn, one at a time, {profile.iterations} times; {profile.device}"
    return f"{profile.network}\n{aligned(table)}\n{how}"


def profile_json(profile: Profile) -> bytes:
    """Write a profile as JSON, with the versions that it was measured with."""
    versions = {"cakdp_ext": __version__, "torch": torch.__version__, "engine": engine_name()}
    return (json.dumps({**asdict(profile), **versions}, indent=2) + "\n").encode()


def profile_csv(profile: Profile) -> bytes:
    """Write a profile as CSV: one row a module, then ``total``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(ModuleProfile)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in (*profile.modules, profile.total))
    return text.getvalue().encode()
