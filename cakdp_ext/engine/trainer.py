"""The training loop: AMP, gradient clipping, progress, TensorBoard, checkpoints and exact resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from cakdp_ext.checkpoint import CheckpointError, load_weights, read_checkpoint, write_checkpoint
from cakdp_ext.engine.calibrate import calibrate_batch_norm
from cakdp_ext.engine.data import EpochSampler
from cakdp_ext.engine.distributed import Workers, barrier, gather, mean_over_workers
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.schedule import OptimizationConfig, build_optimizer, build_schedule
from cakdp_ext.engine.step import TrainingStep, mixed_precision
from cakdp_ext.types import Batch


@dataclass(frozen=True)
class TrainOptions:
    """What the command line adds to the YAML.

    Attributes:
        epochs: how many in all.
        use_amp: float16 with loss scaling on CUDA, bfloat16 on CPU.
        save_every: epochs between checkpoints.
        keep_last: how many epoch checkpoints stay.
        save_seconds: seconds between two saves of ``latest_model.pth`` within an epoch.
        log_every: steps between two TensorBoard entries.
    """

    epochs: int
    use_amp: bool = False
    save_every: int = 1
    keep_last: int = 30
    save_seconds: float = 300.0
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("epochs", "save_every", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a training must be at least 1, got {getattr(self, name)}")


@dataclass
class Position:
    """How far the training has come."""

    epoch: int = 0
    step_in_epoch: int = 0
    iteration: int = 0


@dataclass
class Trainer:
    """Trains the student of a step over a loader, from wherever its run folder's newest checkpoint stands.

    Attributes:
        step: gives the losses.
        loader: training batches.
        sampler: of the loader.
        place: this process.
        run: where checkpoints go.
        optimization: the YAML's ``OPTIMIZATION``.
        options: the command line's part.
        extra_state: saved with every checkpoint: ``pruning`` (the plan as a dictionary) and what else identifies it.
        forward: what is called in training, the step itself (by default) or its DDP wrapper.
    """

    step: TrainingStep
    loader: DataLoader
    sampler: EpochSampler
    place: Workers
    run: RunFolder
    optimization: OptimizationConfig
    options: TrainOptions
    extra_state: Mapping[str, Any] = field(default_factory=dict)
    forward: Callable[[Batch], dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        self.model = self.step.student
        self.optimizer = build_optimizer(self.step, self.optimization)
        self.schedule = build_schedule(self.optimizer, self.optimization, self.options.epochs * len(self.loader))
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.options.use_amp and self.place.device.type == "cuda")
        self.position = Position()
        self._last_save = time.monotonic()

    def fit(self) -> None:
        """Train to the last epoch; the run folder then holds ``checkpoint_epoch_<epochs>.pth``."""
        # events of steps that are taken again now are no longer shown
        events, again = str(self.run.tensorboard), self.position.iteration + 1
        writer = SummaryWriter(events, purge_step=again) if self.place.is_main else None
        try:
            for epoch in range(self.position.epoch, self.options.epochs):
                self._train_epoch(epoch, writer)
                self._finish_epoch(epoch + 1)
        finally:
            if writer is not None:
                writer.close()

    def _train_epoch(self, epoch: int, writer: SummaryWriter | None) -> None:
        done = self.position.step_in_epoch
        self.sampler.set_position(epoch, done)
        bar = tqdm(
            total=len(self.loader),
            initial=done,
            desc=f"epoch {epoch + 1}/{self.options.epochs}",
            disable=not self.place.is_main,
            leave=False,
            mininterval=1.0,
        )
        self.step.train()
        sums: dict[str, float] = {}
        with bar:
            for batch in self.loader:
                rate = float(self.schedule.get_last_lr()[0])
                losses = self.train_step(batch.to(self.place.device))
                self.position.step_in_epoch += 1
                self.position.iteration += 1
                named = {"loss": torch.stack([value.float() for value in losses.values()]).sum(), **losses}
                if self.position.iteration % self.options.log_every == 0 or self.position.step_in_epoch == 1:
                    self._log(named, rate, writer)
                for key, value in named.items():
                    sums[key] = sums.get(key, 0.0) + float(value)
                bar.set_postfix(loss=f"{float(named['loss']):.3f}", lr=f"{rate:.1e}")
                bar.update()
                self._save_in_time()
        steps = max(self.position.step_in_epoch - done, 1)
        text = "  ".join(f"{key} {value / steps:.4f}" for key, value in sums.items())
        LOG.info("epoch %d/%d  %s", epoch + 1, self.options.epochs, text)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one optimizer step on a batch that lies on the device; give its weighted losses by name."""
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self.place.device, self.options.use_amp):
            losses = (self.forward or self.step)(batch)
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        if not torch.isfinite(loss):
            values = ", ".join(f"{key} {float(value.detach()):g}" for key, value in losses.items())
            raise FloatingPointError(
                f"loss is {float(loss.detach())} at iteration {self.position.iteration} ({values}) in frames "
                f"{', '.join(batch.frame_ids)}; lower OPTIMIZATION.LR or train without --use_amp"
            )
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.step.parameters(), self.optimization.grad_norm_clip or torch.inf)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):  # a scaler skips such a step by itself
            raise FloatingPointError(
                f"the gradient is not finite at iteration {self.position.iteration} in frames "
                f"{', '.join(batch.frame_ids)}; the last checkpoint is sound, lower OPTIMIZATION.LR"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if isinstance(step_count := getattr(self.model, "global_step", None), Tensor):
            step_count += 1
        return {key: value.detach() for key, value in losses.items()}

    def _log(self, named: Mapping[str, Tensor], rate: float, writer: SummaryWriter | None) -> None:
        means = mean_over_workers(named)
        if writer is not None:
            writer.add_scalar("meta_data/learning_rate", rate, self.position.iteration)
            for key, value in means.items():
                writer.add_scalar(f"train/{key}", value, self.position.iteration)

    def _finish_epoch(self, epoch: int) -> None:
        self.position = Position(epoch, 0, self.position.iteration)
        if epoch == self.options.epochs:
            self._calibrate(epoch)
        if epoch % self.options.save_every == 0 or epoch == self.options.epochs:
            self.save(self.run.ckpt / f"checkpoint_epoch_{epoch}.pth")
            if self.place.is_main:
                for old in self.run.checkpoints()[: -self.options.keep_last]:
                    old.unlink()

    def _calibrate(self, epoch: int) -> None:
        """Measure batch norm again; the first process's statistics are saved, and synchronised ones need them all."""
        steps = self.optimization.bn_calibration_steps
        is_synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in self.model.modules())
        if not steps or not (self.place.is_main or is_synchronised):
            return
        self.sampler.set_position(epoch)
        batches = islice(chain.from_iterable(repeat(self.loader)), steps)
        with mixed_precision(self.place.device, self.options.use_amp):
            calibrate_batch_norm(self.model, (batch.to(self.place.device) for batch in batches))
        LOG.info("batch norm measured again on %d batches", steps)

    def _save_in_time(self) -> None:
        if self.place.world_size > 1 and self.position.iteration % self.options.log_every:
            return  # the processes must agree, and asking costs a round trip
        if gather(time.monotonic() - self._last_save >= self.options.save_seconds)[0]:
            self.save(self.run.ckpt / "latest_model.pth")

    def save(self, path: Path) -> None:
        """Write everything that an exact resume needs (every process takes part: each has its own random state)."""
        random = gather(_random_state(self.place.device))
        self._last_save = time.monotonic()
        if self.place.is_main:
            write_checkpoint(path, self.model, self._state(random))
        barrier()  # nobody goes on to read what is still being written

    def _state(self, random: list[Any]) -> dict[str, Any]:
        return {
            "epoch": self.position.epoch,
            "step_in_epoch": self.position.step_in_epoch,
            "it": self.position.iteration,
            "optimizer_state": self.optimizer.state_dict(),
            "schedule_state": self.schedule.state_dict(),
            "scaler_state": self.scaler.state_dict(),
            "random_state": random,
            "batch_size": self.sampler.batch_size,
            **self.extra_state,
            **(self.step.distiller.kept() if self.step.distiller is not None else {}),
        }

    def resume(self, file: Path | None = None) -> bool:
        """Go on from a checkpoint.

        Args:
            file: the checkpoint; None takes the newest of the run folder.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: when it belongs to another model, plan, settings or length of training.
        """
        content = self._newest() if file is None else read_checkpoint(file)
        if content is None:
            return False
        where = f"the checkpoint to resume {f'in {self.run.ckpt}' if file is None else file}"
        self._require_same_run(content, where)
        load_weights(self.model, content["model_state"], where)
        if self.step.distiller is not None:
            self.step.distiller.resume(content, where)
        self.optimizer.load_state_dict(content["optimizer_state"])
        self.schedule.load_state_dict(content["schedule_state"])
        self.scaler.load_state_dict(content["scaler_state"])
        self.position = Position(content["epoch"], content["step_in_epoch"], content["it"])
        states = content["random_state"]
        if self.place.rank < len(states):
            _set_random_state(states[self.place.rank], self.place.device)
        LOG.info("resumed at epoch %d, step %d", self.position.epoch, self.position.step_in_epoch)
        return True

    def _newest(self) -> dict[str, Any] | None:
        candidates = self.run.checkpoints()[-1:]
        latest = self.run.ckpt / "latest_model.pth"
        candidates += [latest] if latest.is_file() else []
        found = [read_checkpoint(path) for path in candidates]
        return max(found, key=lambda content: content.get("it", -1), default=None)

    def _require_same_run(self, content: Mapping[str, Any], where: str) -> None:
        if "schedule_state" not in content:
            raise CheckpointError(f"{where} was not written by this engine; give it as --pretrained_model instead")
        if _cut_of(content) != _cut_of(self.extra_state):
            raise CheckpointError(f"{where} was cut by another plan; use another --extra_tag")
        settings, asked = content.get("settings", {}), self.extra_state.get("settings", {})
        changed = [key for key in {**asked, **settings} if settings and settings.get(key) != asked.get(key)]
        if changed:
            key = changed[0]
            raise CheckpointError(
                f"{where} was trained with {key} {settings.get(key)}, now {asked.get(key)} is asked for; keep it, "
                "or use another --extra_tag"
            )
        before = content["schedule_state"]["total_steps"], content["batch_size"] * len(content["random_state"])
        now = self.schedule.total_steps, self.sampler.batch_size * self.place.world_size  # type: ignore[attr-defined]
        if before != now:
            raise CheckpointError(
                f"{where} belongs to a training of {before[0]} steps of {before[1]} frames, this one has {now[0]} of "
                f"{now[1]}; keep epochs, batch size and frames, or use another --extra_tag"
            )


def _cut_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the plan of a training takes away, wherever the plan came from; nothing without one."""
    return {key: value for key, value in (state.get("pruning") or {}).items() if key != "source"}


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
