"""From where does a training under OpenPCDet go on? Its own answer is: from anything it can load, else from nothing."""

from __future__ import annotations

from pathlib import Path

from easydict import EasyDict

from cakdp_ext.checkpoint import CheckpointError, epoch_of, read_checkpoint
from cakdp_ext.config import load_config
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.train import settings_of


def newest_checkpoint(run: RunFolder) -> Path | None:
    """The checkpoint that a killed training goes on from: the one of the most iterations; None where there is none.

    Raises:
        CheckpointError: when there are checkpoints and none of them can be read.
    """
    readable: dict[Path, int] = {}
    refused: list[CheckpointError] = []
    for file in _checkpoints(run):
        try:
            readable[file] = int(read_checkpoint(file).get("it", -1))
        except CheckpointError as error:
            refused.append(error)
        if any(epoch_of(file).isdigit() for file in readable):  # older epochs have fewer iterations
            break
    if refused and not readable:
        raise CheckpointError(f"{refused[0]}. None of {run.ckpt} can be read; empty it, or use another --extra_tag")
    for reason in refused:
        LOG.warning("%s; going on from an older checkpoint", reason)
    return max(readable, key=lambda file: readable[file], default=None)


def _checkpoints(run: RunFolder) -> list[Path]:
    """What a training has saved, latest first."""
    within = run.ckpt / "latest_model.pth"
    return [*([within] if within.is_file() else []), *reversed(run.checkpoints())]


def require_same_settings(config: EasyDict, run: RunFolder) -> None:
    """Refuse to go on with a training under another YAML than it was started with, as the built-in engine does.

    Args:
        config: what is asked for now.
        run: its ``merged_config.yaml`` holds what was asked for before.

    Raises:
        CheckpointError: naming the first key that differs.
    """
    merged = run.path / "merged_config.yaml"
    if not merged.is_file() or not any(_checkpoints(run)):
        return
    before, now = settings_of(load_config(merged)), settings_of(config)
    changed = next((key for key in {**now, **before} if before.get(key) != now.get(key)), None)
    if changed is not None:
        raise CheckpointError(
            f"{run.path} holds a training with {changed} {before.get(changed)}, now {now.get(changed)} is asked for; "
            "keep it, or use another --extra_tag"
        )


def require_openpcdets(file: Path) -> None:
    """Refuse to go on from a checkpoint whose optimizer OpenPCDet does not know.

    Raises:
        CheckpointError: for one that the built-in engine wrote.
    """
    if str(read_checkpoint(file).get("version")).startswith("cakdp_ext"):
        raise CheckpointError(
            f"{file} was written by the built-in engine, whose optimizer is another; give it as --pretrained_model "
            "with another --extra_tag, or go on with CAKDP_ENGINE=builtin"
        )
