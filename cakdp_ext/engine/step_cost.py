"""What does a training step cost? Time and memory of forward and backward, the teacher's share included."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from easydict import EasyDict
from torch import Tensor

from cakdp_ext.checkpoint import load_weights, read_checkpoint
from cakdp_ext.datasets import collate
from cakdp_ext.engine.build import build_student, build_teacher, distill_config, pruning_config
from cakdp_ext.engine.choice import OPENPCDET, adapter, engine_name
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.step import TrainingStep, mixed_precision
from cakdp_ext.held_out import evenly_spaced
from cakdp_ext.openpcdet.locate import openpcdet_root
from cakdp_ext.openpcdet.resolve import make_absolute
from cakdp_ext.own_modules import import_modules
from cakdp_ext.pruning import load_plan, peak_memory
from cakdp_ext.types import Batch, LidarGeometry

Step = Callable[[Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class StepCost:
    """What one step of one process costs.

    Attributes:
        milliseconds: median of forward and backward over ``BATCH_SIZE_PER_GPU`` frames; the optimizer apart.
        memory: bytes on a CUDA device at the peak; on a CPU those of the whole process; None where nothing tells.
    """

    milliseconds: float
    memory: int | None


def build_step(config: EasyDict, geometry: LidarGeometry, device: torch.device, ckpt: Path | None = None) -> Step:
    """Build the step that trains a student, with the engine that is asked for.

    Args:
        config: of ``load_config``; ``MODEL.PRUNING``, where there is one, names its plan.
        geometry: of the frames.
        device: where it shall compute.
        ckpt: weights of the student; None for those that the training starts with.

    Returns:
        What turns a batch into losses.

    Raises:
        ConfigError, CheckpointError: where student and teacher do not fit.
    """
    if engine_name() == OPENPCDET:
        model = adapter("build").build_in_training(make_absolute(config, openpcdet_root()), geometry, ckpt)
        return lambda batch: dict(model(batch).losses)
    pruning = pruning_config(config)
    student = build_student(config, geometry, load_plan(str(pruning.plan)) if pruning is not None else None).model
    if ckpt is not None:
        load_weights(student, read_checkpoint(ckpt)["model_state"], ckpt)
    student.to(device)
    return TrainingStep(student, build_teacher(config, geometry, device), distill_config(config)).train()


def measure_step(config: EasyDict, ckpt: Path, device: torch.device, num_steps: int, use_amp: bool) -> StepCost:
    """Measure steps with a trained student on frames of the test split.

    On a CPU it is done in a process of its own, since a process does not give memory back that it once had.

    Args:
        config: of :func:`build_step`.
        ckpt: weights of the student: what a teacher is asked depends on them.
        device: where to measure.
        num_steps: timed steps, behind one that is not.
        use_amp: in mixed precision, as the training.
    """
    asked = (config, ckpt, device, num_steps, use_amp, torch.get_num_threads())
    if device.type != "cpu":
        return _measure(*asked)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, *asked).result()


def _measure(
    config: EasyDict, ckpt: Path, device: torch.device, num_steps: int, use_amp: bool, num_threads: int
) -> StepCost:
    torch.set_num_threads(num_threads)
    import_modules(config)  # in a process of its own nobody has
    dataset = build_split(config, str(config.DATA_CONFIG.DATA_SPLIT["test"]))
    step = build_step(config, dataset.geometry, device, ckpt)
    chosen = evenly_spaced(len(dataset), int(config.OPTIMIZATION.BATCH_SIZE_PER_GPU))
    batch = getattr(dataset, "collate", collate)([dataset[index] for index in chosen]).to(device)
    with peak_memory(device) as peak:
        _train(step, batch, device, use_amp)
        seconds = [_train(step, batch, device, use_amp) for _ in range(num_steps)]
    return StepCost(1e3 * statistics.median(seconds), peak.num_bytes)


def _train(step: Step, batch: Batch, device: torch.device, use_amp: bool) -> float:
    start = time.perf_counter()
    with mixed_precision(device, use_amp):
        losses = step(batch)
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
