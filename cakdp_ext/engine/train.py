"""Train what a YAML describes: a teacher, a student, or a compact student under a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cakdp_ext.checkpoint import find_checkpoint, load_weights, read_checkpoint
from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.engine.build import (
    Student,
    build_student,
    build_teacher,
    distill_config,
    pruning_config,
)
from cakdp_ext.engine.data import build_split, training_loader
from cakdp_ext.engine.distributed import Workers, barrier
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.schedule import OptimizationConfig
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.engine.trainer import Trainer, TrainOptions
from cakdp_ext.pruning import criterion_of, first_difference, load_plan, plan_to_dict, read_width, width_entry
from cakdp_ext.types import Batch, LidarGeometry, PruningPlan
from cakdp_ext.voxel_norm import synchronise_batch_norm


@dataclass(frozen=True)
class TrainRequest:
    """The command line of a training.

    Attributes:
        batch_size: over all processes; None takes ``BATCH_SIZE_PER_GPU`` for each.
        epochs: None takes ``NUM_EPOCHS``.
        num_workers: loader processes.
        seed: of weights, order and augmentation.
        use_amp: mixed precision.
        sync_bn: batch norm over all GPUs.
        ckpt: checkpoint to go on from; None takes the newest of the run folder.
        pretrained_model: checkpoint whose weights the training starts from.
        save_every: epochs between checkpoints.
        keep_last: epoch checkpoints that stay.
        save_seconds: seconds between saves within an epoch.
        log_every: steps between TensorBoard entries.
    """

    batch_size: int | None = None
    epochs: int | None = None
    num_workers: int = 4
    seed: int = 666
    use_amp: bool = False
    sync_bn: bool = False
    ckpt: str | None = None
    pretrained_model: str | None = None
    save_every: int = 1
    keep_last: int = 30
    save_seconds: float = 300.0
    log_every: int = 50


def train(config: EasyDict, run: RunFolder, place: Workers, request: TrainRequest) -> Student:
    """Train to the end, from the beginning or from where a checkpoint stands.

    Args:
        config: of ``load_config``.
        run: where everything is kept.
        place: this process.
        request: the command line.

    Returns:
        The trained student, on the device of ``place``.

    Raises:
        ConfigError, CheckpointError: when the parts do not fit; nothing has been written then.
        FloatingPointError: when the loss stops being finite.
    """
    optimization = from_node(OptimizationConfig, config.OPTIMIZATION, f"OPTIMIZATION of {config.CONFIG_FILE}")
    options = _options(request, optimization)
    batch_size = _batch_size_per_process(request, optimization, place)
    distill = distill_config(config)
    dataset = build_split(config, str(config.DATA_CONFIG.DATA_SPLIT["train"]), training=True, seed=request.seed)
    torch.manual_seed(request.seed)
    student = build_student(config, dataset.geometry, find_plan(config, run))
    if request.pretrained_model:
        file = find_checkpoint(request.pretrained_model)
        load_weights(student.model, read_checkpoint(file)["model_state"], file)
    student.model.to(place.device)
    step = TrainingStep(student.model, build_teacher(config, dataset.geometry, place.device), distill)
    if not (request.pretrained_model or _inherits(config)):
        step.start_from_teacher(dataset.geometry)
    forward = _wrapped(step, place, request.sync_bn)
    torch.manual_seed(request.seed + 1 + place.rank)
    loader, sampler = training_loader(
        dataset, place, batch_size=batch_size, num_workers=request.num_workers, seed=request.seed
    )
    extra: dict[str, Any] = {"settings": identity_of(config, request), **width_entry(read_width(config.MODEL))}
    if student.plan:
        extra["pruning"] = plan_to_dict(student.plan)
    trainer = Trainer(step, loader, sampler, place, run, optimization, options, extra, forward)
    trainer.resume(find_checkpoint(request.ckpt) if request.ckpt else None)
    if place.is_main:
        run.create(config)
    barrier()
    _announce(config, student, dataset.geometry, trainer)
    trainer.fit()
    return student


def _inherits(config: EasyDict) -> bool:
    """Tell whether the student begins with the weights of a trained one that was cut."""
    pruning = pruning_config(config)
    return pruning is not None and pruning.initial_weights == "inherited"


def identity_of(config: EasyDict, request: TrainRequest) -> dict[str, str]:
    """Everything that the weights depend on besides plan, frames and steps, flat and as text.

    A checkpoint keeps it, so that a resume with other settings is refused instead of half obeyed.
    """
    return {"--seed": str(request.seed), "--use_amp": str(request.use_amp), **settings_of(config)}


def settings_of(config: EasyDict) -> dict[str, str]:
    """The YAML's part of what the weights depend on.

    How a center head chooses its boxes is part of it where a second stage learns from them.
    """
    ignored: tuple[str, ...] = (
        "DATA_CONFIG.DATA_PATH",
        "MODEL.POST_PROCESSING",
        "MODEL.PRUNING",
        "OPTIMIZATION.NUM_EPOCHS",
        "OPTIMIZATION.BATCH_SIZE_PER_GPU",
    )
    if not config.MODEL.get("ROI_HEAD"):
        ignored += ("MODEL.DENSE_HEAD.POST_PROCESSING",)
    flat: dict[str, str] = {}

    def collect(prefix: str, value: Any) -> None:
        if prefix.startswith(ignored):
            return
        if isinstance(value, dict):
            for key, item in value.items():
                collect(f"{prefix}.{key}", item)
        else:
            flat[prefix] = str(list(value) if isinstance(value, tuple) else value)

    for section in ("CLASS_NAMES", "DATA_CONFIG", "MODEL", "OPTIMIZATION"):
        collect(section, config[section])
    return flat


def plan_file(config: EasyDict, run: RunFolder) -> Path | None:
    """Where the plan of a training lies: where the YAML says, or in the run folder; None where it prunes nothing.

    Raises:
        ConfigError: when there is none yet.
    """
    pruning = pruning_config(config)
    if pruning is None:
        return None
    if not run.plan.is_file() and not pruning.plan:
        raise ConfigError(
            f"no pruning plan at {run.plan}; run tools/score_filters.py and tools/prune.py with the same --cfg and "
            "--extra_tag, or name a plan with --set MODEL.PRUNING.PLAN"
        )
    return Path(pruning.plan or run.plan)


def find_plan(config: EasyDict, run: RunFolder) -> PruningPlan | None:
    """The plan that the YAML names, or the one in the run folder; None where the YAML prunes nothing."""
    path, pruning = plan_file(config, run), pruning_config(config)
    if path is None or pruning is None:
        return None
    plan = load_plan(path)
    difference = first_difference(plan.source, pruning)
    if difference is not None:
        LOG.warning("%s was made with %s, the YAML asks for %s", path, *difference)
    return plan


def _options(request: TrainRequest, optimization: OptimizationConfig) -> TrainOptions:
    return TrainOptions(
        epochs=optimization.num_epochs if request.epochs is None else request.epochs,
        use_amp=request.use_amp,
        save_every=request.save_every,
        keep_last=request.keep_last,
        save_seconds=request.save_seconds,
        log_every=request.log_every,
    )


def _batch_size_per_process(request: TrainRequest, optimization: OptimizationConfig, place: Workers) -> int:
    if request.batch_size is not None and request.batch_size < 1:
        raise ConfigError(f"--batch_size must be at least 1, got {request.batch_size}")
    if request.batch_size is None:
        return optimization.batch_size_per_gpu
    if request.batch_size % place.world_size:
        raise ConfigError(f"--batch_size {request.batch_size} cannot be dealt out to {place.world_size} processes")
    return request.batch_size // place.world_size


def _wrapped(step: TrainingStep, place: Workers, sync_bn: bool) -> Callable[[Batch], dict[str, Tensor]]:
    """Let the processes share gradients: one DDP around student and projectors, so that all wait in one order."""
    if place.world_size == 1:
        if sync_bn:
            raise ConfigError("--sync_bn needs several processes; start tools/dist_train.sh")
        return step
    if sync_bn:
        if place.device.type != "cuda":
            raise ConfigError("--sync_bn needs CUDA; PyTorch has no synchronised batch norm for CPUs")
        synchronise_batch_norm(step)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(step, _constants(step))
    return DistributedDataParallel(step, device_ids=[place.device] if place.device.type == "cuda" else None)


def _constants(model: nn.Module) -> set[str]:
    """Buffers that no checkpoint holds, such as anchors: the same in every process, so that none need be sent."""
    return {name for name, _ in model.named_buffers(remove_duplicate=False)} - set(model.state_dict())


def _announce(config: EasyDict, student: Student, geometry: LidarGeometry, trainer: Trainer) -> None:
    count = sum(p.numel() for p in student.model.parameters())
    LOG.info("%s: %s with %s parameters, range %s", config.CONFIG_FILE, config.MODEL.NAME, f"{count:,}",
             list(geometry.point_cloud_range))  # fmt: skip
    if student.plan:
        chosen = criterion_of(student.plan, pruning_config(config))
        LOG.info("pruned: keeps %.1f %% of the filters, chosen by %s", 100 * student.plan.keep_ratio, chosen)
    if held_out := config.DATA_CONFIG.get("NUM_HELD_OUT", 0):
        LOG.info("%d frames of the training split are held out for scoring (DATA_CONFIG.NUM_HELD_OUT)", held_out)
    LOG.info("%d frames, %d steps an epoch, on %s", trainer.sampler.num_frames, len(trainer.loader), trainer.place)
