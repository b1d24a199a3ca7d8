"""What must OpenPCDet's scripts not do in silence? Load or save half a network, wait for ever, divide by zero."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from cakdp_ext.checkpoint import CheckpointError, epoch_checkpoints, epoch_of
from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.stock import require_obeyed, warn_of_targets
from cakdp_ext.pruning import width_entry

LOG = logging.getLogger("cakdp_ext")
Wrappers = Mapping[str, Callable[[Any], Any]]
CYCLES = ("adam_onecycle", "adam_cosineanneal")


@contextmanager
def guarded(script: ModuleType, tests: bool = True) -> Iterator[None]:
    """Watch over a script of OpenPCDet's while the block runs.

    Args:
        script: ``tools/train.py`` or ``tools/test.py``, loaded.
        tests: whether a training is followed by the tests that its script makes.
    """
    is_test = script.__name__ == "test"
    loading, waiting = LoadingGuard(is_strict=is_test), WaitingGuard(is_test, tests)
    of_script = {
        "build_network": loading.build_network,
        "build_scheduler": loading.build_scheduler,
        "repeat_eval_ckpt": waiting.repeat_eval_ckpt,
    }
    changes: list[tuple[ModuleType | None, Wrappers]] = [
        (_home(script, "repeat_eval_ckpt"), {"get_no_evaluated_ckpt": waiting.get_no_evaluated_ckpt}),
        (_home(script, "train_model"), {"save_checkpoint": loading.save_checkpoint}),
        (script, of_script),
    ]
    with ExitStack() as stack:
        for module, wrappers in changes:
            stack.enter_context(replaced(module, wrappers))
        yield


@contextmanager
def replaced(owner: ModuleType | None, wrappers: Wrappers) -> Iterator[None]:
    """Wrap functions of a module, those that it has, while the block runs."""
    originals = {name: getattr(owner, name) for name in wrappers if hasattr(owner, name)}
    for name, original in originals.items():
        setattr(owner, name, wrappers[name](original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


def _home(script: ModuleType, name: str) -> ModuleType | None:
    """The module that a function of a script was defined in, whose names it uses; None where the script has it not."""
    return sys.modules.get(getattr(getattr(script, name, None), "__module__", ""))


def saving_whole(original: Callable[..., None]) -> Callable[..., None]:
    """Save a checkpoint so that a killed process leaves the previous file, or none, but never half a file."""

    def save(state: Any, filename: Any = "checkpoint") -> None:
        target = Path(f"{filename}.pth")
        begun = target.with_name(f".{target.stem}.begun")  # hidden, as OpenPCDet looks for *.pth
        original(state, filename=begun)
        with Path(f"{begun}.pth").open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(f"{begun}.pth", target)

    return save


class LoadingGuard:
    """Sees to it that a checkpoint is loaded whole or refused.

    One of OpenPCDet's loaders passes over every tensor of another shape. Our own detectors refuse such checkpoints by
    themselves.

    Args:
        is_strict: whether a partial load is an error; where training starts it is what ``--pretrained_model`` is for.
    """

    def __init__(self, is_strict: bool) -> None:
        self.is_strict = is_strict
        self.model: Any = None
        self.file = "the checkpoint"

    def build_network(self, original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        """Watch the detector that is built; one of OpenPCDet's own must not pass over sections of the YAML."""

        def build(*args: Any, **kwargs: Any) -> nn.Module:
            model: Any = original(*args, **kwargs)
            self.model = model
            if not getattr(model, "is_student", False):
                require_obeyed(model, inspect.signature(original).bind(*args, **kwargs).arguments["model_cfg"])
                if not self.is_strict:
                    warn_of_targets(model)
            for name in ("load_params_from_file", "load_params_with_optimizer"):
                setattr(model, name, self._naming(getattr(model, name)))
            if not type(model).__module__.startswith("cakdp_ext.") and hasattr(model, "_load_state_dict"):
                model._load_state_dict = self._checking(model, model._load_state_dict)
            return model

        return build

    def save_checkpoint(self, original: Callable[..., None]) -> Callable[..., None]:
        """Save a checkpoint whole or not at all; with it the network's width, and what is trained beside it."""
        whole = saving_whole(original)

        def save(state: Any, filename: Any = "checkpoint") -> None:
            distillation = getattr(self.model, "_distillation", None)
            trained = distillation.distiller.kept() if distillation else {}
            whole({**state, **trained, **width_entry(getattr(self.model, "width", None))}, filename)

        return save

    def build_scheduler(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Check how long the training will be; weights to start from are loaded by now."""

        def build(*args: Any, **kwargs: Any) -> Any:
            self.is_strict = True
            asked = inspect.signature(original).bind(*args, **kwargs).arguments
            _require_steps(asked["total_iters_each_epoch"] * asked["total_epochs"], asked["optim_cfg"])
            return original(*args, **kwargs)

        return build

    def _naming(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def load(filename: Any, *args: Any, **kwargs: Any) -> Any:
            self.file = str(filename)
            return original(filename, *args, **kwargs)

        return load

    def _checking(self, model: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def load(state: Mapping[str, Tensor], *, strict: bool = True) -> Any:
            misfit = first_misfit(model, state)
            if misfit and (strict or self.is_strict):
                raise CheckpointError(f"{self.file} {misfit}")
            if misfit:
                LOG.warning("%s %s; tensors that do not fit keep their values", self.file, misfit)
            return original(state, strict=strict)

        return load


def first_misfit(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Say what keeps a checkpoint from filling a network; None where it does.

    A kernel whose dimensions come in another order, as spconv 1 stores them, fits: OpenPCDet permutes it. Tensors that
    the network has no place for do no harm.
    """
    for key, own in model.state_dict().items():
        if key not in state:
            if key == "global_step":
                continue
            return f"lacks tensor {key}; it belongs to another model than the YAML describes"
        if sorted(state[key].shape) != sorted(own.shape):
            return (
                f"has {key} of shape {tuple(state[key].shape)}, the model expects {tuple(own.shape)}; it belongs to "
                "another architecture (pruned, or of other widths or classes)"
            )
    return None


class _NothingLeftError(Exception):
    """There is no checkpoint to test, and nobody waits for another one."""


class WaitingGuard:
    """Ends the loop over a run's checkpoints when the last one has been tested and ``--max_waiting_mins`` are over.

    Args:
        is_test: whether testing is all that was asked for; then having no checkpoint is an error.
        tests: False leaves the loop out.
    """

    def __init__(self, is_test: bool, tests: bool) -> None:
        self.is_test, self.tests = is_test, tests
        self.since = 0.0
        self.has_tested = False

    def repeat_eval_ckpt(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return where the loop would go on waiting."""

        def repeat(*args: Any, **kwargs: Any) -> None:
            self.since = time.monotonic()
            with suppress(_NothingLeftError):
                if self.tests:
                    original(*args, **kwargs)

        return repeat

    def get_no_evaluated_ckpt(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Give every process what the first one finds, or end the loop."""

        def find(ckpt_dir: Any, ckpt_record_file: Any, args: Namespace) -> tuple[Any, Any]:
            found = original(ckpt_dir, ckpt_record_file, args)
            is_over = time.monotonic() - self.since >= 60 * args.max_waiting_mins
            found, is_over = _of_the_first((found, is_over))
            if found[1] is not None:
                self.has_tested, self.since = True, time.monotonic()
            elif is_over:
                if args.start_epoch <= getattr(args, "epochs", args.start_epoch):  # else nobody wants any tested
                    self._say_why(Path(ckpt_dir), Path(ckpt_record_file), args.start_epoch)
                raise _NothingLeftError
            return found

        return find

    def _say_why(self, folder: Path, record: Path, start_epoch: int) -> None:
        if self.has_tested:
            return
        if any(int(epoch_of(file)) >= start_epoch for file in epoch_checkpoints(folder)):
            LOG.warning("nothing to test: %s lists every checkpoint; remove it to test them again", record)
            return
        message = f"{folder} holds no checkpoint_epoch_*.pth from epoch {start_epoch} on"
        if self.is_test:
            raise CheckpointError(f"{message}; train first")
        LOG.warning("nothing to test: %s; --ckpt_save_interval says which epochs are kept", message)


def _of_the_first(value: Any) -> Any:
    """Give every process the first one's value."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _require_steps(steps: int, optim_cfg: Mapping[str, Any]) -> None:
    """Refuse a training so short that OpenPCDet's cycle of learning rates has a phase without a step."""
    if optim_cfg.get("OPTIMIZER") in CYCLES and not 0 < int(steps * optim_cfg["PCT_START"]) < steps:
        raise ConfigError(
            f"{steps} iterations in all are too few for OPTIMIZATION.OPTIMIZER {optim_cfg['OPTIMIZER']}, whose first "
            f"phase takes {optim_cfg['PCT_START']} of them (PCT_START); train more epochs or smaller batches"
        )
