"""Checkpoints: OpenPCDet's dictionary plus a ``pruning`` entry, written atomically, loaded strictly."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cakdp_ext import __version__
from cakdp_ext.engine.distributed import gather
from cakdp_ext.engine.runs import RunFolder, epoch_checkpoints, epoch_of
from cakdp_ext.files import atomic_path

POLL_SECONDS = 10.0
_NUMPY_SCALARS: list[Any] = [
    np.float64(0).__reduce__()[0],  # the private function that NumPy pickles its scalars with
    np.dtype,
    type(np.dtype(np.float64)),
]


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message names the file, the first tensor that differs and the cure."""


def find_checkpoint(path: str | Path) -> Path:
    """Take a checkpoint file, or a run folder whose last epoch is meant.

    Raises:
        CheckpointError: when there is neither.
    """
    path = Path(path)
    if path.is_file():
        return path
    for folder in (RunFolder(path), RunFolder(path.parent) if path.name == "ckpt" else None):
        if folder is not None and folder.checkpoints():
            return folder.checkpoints()[-1]
    if path.is_dir():
        raise CheckpointError(f"{path} holds no ckpt/checkpoint_epoch_*.pth; has the training finished an epoch?")
    raise CheckpointError(f"no checkpoint at {path}; train the model first or name another file")


def epochs_of(folder: Path, start_epoch: int = 0, patience: float = 0.0) -> Iterator[Path]:
    """Give a folder's epoch checkpoints as they appear, oldest first; every process gets the same ones.

    Args:
        folder: of the checkpoints, or of the run.
        start_epoch: those before it are left out.
        patience: seconds without a new one after which it ends; 0 takes what there is.

    Raises:
        CheckpointError: when there was none.
    """
    folder = folder / "ckpt" if (folder / "ckpt").is_dir() else folder
    given: set[Path] = set()
    since = time.monotonic()
    while True:
        found = [file for file in epoch_checkpoints(folder) if int(epoch_of(file)) >= start_epoch and file not in given]
        found, is_over = gather((found[:1], time.monotonic() - since >= patience))[0]
        if found:
            given.update(found)
            yield from found
            since = time.monotonic()
        elif is_over:
            break
        else:
            time.sleep(min(POLL_SECONDS, patience))
    if not given:
        raise CheckpointError(f"{folder} holds no checkpoint_epoch_*.pth from epoch {start_epoch} on; train first")


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint of either engine without executing anything it holds.

    Args:
        path: file or run folder.
        map_location: where the tensors go.

    Returns:
        The dictionary, with ``model_state`` at least.

    Raises:
        CheckpointError: for a missing, truncated or foreign file.
    """
    file = find_checkpoint(path)
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch.load raises half a dozen unrelated types for a broken file
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise CheckpointError(
            f"{file} cannot be read as a checkpoint ({type(error).__name__}: {reason}); it is damaged or of another "
            "kind: copy it again, or name another one"
        ) from error
    if not isinstance(content, dict) or "model_state" not in content:
        raise CheckpointError(f"{file} holds no model_state; it is not a checkpoint of OpenPCDet's kind")
    return content


def write_checkpoint(path: Path, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Write model and training state; a killed process leaves the previous file whole.

    Args:
        path: the file.
        model: the bare student.
        state: whatever else belongs to it: ``epoch``, ``it``, ``optimizer_state``, ``pruning``, ...
    """
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save({"model_state": weights, "version": f"cakdp_ext+{__version__}", **state}, temporary)


def load_weights(
    model: nn.Module, state: Mapping[str, torch.Tensor], where: str | Path, may_miss: tuple[str, ...] = ()
) -> list[str]:
    """Load a state dict whose every tensor must fit.

    Args:
        model: what is loaded into.
        state: the tensors.
        where: what errors call it.
        may_miss: prefixes of keys that the state need not hold (a head that is trained from now on).

    Returns:
        The keys that were missing and allowed to be.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown or of another shape.
    """
    own = model.state_dict()
    for key, value in state.items():
        if key in own and own[key].shape != value.shape:
            raise CheckpointError(
                f"{where}: {key} has shape {tuple(value.shape)}, the model expects {tuple(own[key].shape)}; "
                "the checkpoint belongs to another architecture (pruned, or of other widths or classes)"
            )
    missing = [key for key in own if key not in state and key != "global_step"]
    refused = [key for key in missing if not key.startswith(may_miss)] if may_miss else missing
    unknown = [key for key in state if key not in own]
    for kind, keys in (("lacks", refused), ("has the unknown", unknown)):
        if keys:
            raise CheckpointError(
                f"{where} {kind} tensor {keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}; "
                "the checkpoint belongs to another model than the YAML describes"
            )
    model.load_state_dict(dict(state), strict=False)
    return [key for key in missing if key not in refused]
