"""Checkpoints: OpenPCDet's dictionary plus a ``pruning`` entry, written atomically, loaded strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cakdp_ext import __version__
from cakdp_ext.files import atomic_path

PLAN_KEY = "pruning_plan"
"""Where the state dict of a pruned detector of OpenPCDet's keeps its plan: its own loop saves nothing but tensors."""
PROJECTORS = "distill_state"
"""Where a checkpoint keeps what is trained beside the student; a resume needs it, nobody else looks there."""
_EPOCH = re.compile(r"checkpoint_epoch_(\d+)\.pth$")
_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
"""The private function that NumPy pickles its scalars with."""
_NUMPY_NUMBERS = ("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message names the file, the first tensor that differs and the cure."""


def allow_numpy_scalars() -> None:
    """Let ``torch.load(weights_only=True)``, the default since PyTorch 2.6, read the NumPy numbers in optimizer states.

    OpenPCDet's hold some, and where they are refused its automatic resume starts again from nothing without a word.
    Nothing but numbers is allowed, for the rest of the process: taking them back would undo what others allowed.
    """
    dtypes = [type(np.dtype(name)) for name in _NUMPY_NUMBERS]
    torch.serialization.add_safe_globals([_NUMPY_SCALAR, np.dtype, *dtypes])
    if _allows_names(torch.__version__):  # the file may have been written under another NumPy than this one
        names: list[Any] = [(_NUMPY_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
        torch.serialization.add_safe_globals(names)


def _allows_names(version: str) -> bool:
    """Tell whether PyTorch's allow-list takes an object with the name that it has in a file."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) >= (2, 6)


def find_checkpoint(path: str | Path) -> Path:
    """Take a checkpoint file, or a run folder whose last epoch is meant.

    Raises:
        CheckpointError: when there is neither.
    """
    path = Path(path)
    if path.is_file():
        return path
    for folder in (path / "ckpt", path):
        if found := epoch_checkpoints(folder):
            return found[-1]
    if path.is_dir():
        raise CheckpointError(f"{path} holds no ckpt/checkpoint_epoch_*.pth; has the training finished an epoch?")
    raise CheckpointError(f"no checkpoint at {path}; train the model first or name another file")


def epoch_checkpoints(folder: Path) -> list[Path]:
    """Epoch checkpoints of a folder, oldest first."""
    found = [(int(m.group(1)), p) for p in folder.glob("checkpoint_epoch_*.pth") if (m := _EPOCH.search(p.name))]
    return [p for _, p in sorted(found)]


def epoch_of(checkpoint: Path) -> str:
    """Epoch that a checkpoint's file name tells, ``no_number`` if none."""
    match = _EPOCH.search(checkpoint.name)
    return match.group(1) if match else "no_number"


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
    allow_numpy_scalars()
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch.load raises half a dozen unrelated types for a broken file
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise CheckpointError(
            f"{file} cannot be read as a checkpoint ({type(error).__name__}: {reason}); it is damaged or of another "
            "kind: copy it again, or name another one"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model_state"), dict):
        raise CheckpointError(f"{file} holds no model_state; it is not a checkpoint of OpenPCDet's kind")
    try:
        plan = unpack_plan(content["model_state"])
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if plan is not None:
        content["pruning"] = plan
    return content


def unpack_plan(state: dict[str, Tensor], prefix: str = "") -> dict[str, Any] | None:
    """Take a plan that travels among the tensors of a state dict out of it; None where there is none.

    Raises:
        CheckpointError: for one that cannot be read.
    """
    packed = state.pop(prefix + PLAN_KEY, None)
    if packed is None:
        return None
    try:
        return dict(json.loads(bytes(packed.tolist())))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"its pruning plan is damaged ({error}); take another checkpoint") from error


def pack_plan(content: Mapping[str, Any]) -> Tensor:
    """Turn ``pruning.plan_to_dict``'s dictionary into bytes ``(n,)`` uint8, so that it can be one of the tensors."""
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


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
    model: nn.Module, state: Mapping[str, Tensor], where: str | Path, may_miss: tuple[str, ...] = ()
) -> list[str]:
    """Load a state dict whose every tensor must fit; kernels as spconv 1 laid them out are turned round.

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
    own, state = dict(model.state_dict()), dict(state)
    unpack_plan(own)
    plan = {PLAN_KEY: state.pop(PLAN_KEY)} if PLAN_KEY in state else {}
    state = {key: _as_spconv_2(value, own[key].shape) if key in own else value for key, value in state.items()}
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
    model.load_state_dict({**state, **plan}, strict=False)
    return [key for key in missing if key not in refused]


def _as_spconv_2(value: Tensor, shape: torch.Size) -> Tensor:
    """Bring a sparse kernel ``(z, y, x, in, out)``, as spconv 1 has it, into the ``(out, z, y, x, in)`` of spconv 2."""
    if value.shape == shape or value.dim() != 5 or len(shape) != 5:
        return value
    turned = value.permute(4, 0, 1, 2, 3)
    return turned.contiguous() if turned.shape == shape else value
