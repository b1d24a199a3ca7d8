"""Where do OpenPCDet's tensors go when it asks for a GPU? They stay on CPU."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

TENSOR_TYPES = ("Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long", "Bool")
BEFORE_CUDA = 15
"""Rank of our way to restore a tensor in ``torch.load``; PyTorch's own for CUDA has 20."""


def stay_on_cpu() -> None:
    """Make every way to CUDA that OpenPCDet takes end on CPU: ``.cuda()``, ``.to``, ``torch.cuda.*``, ``torch.load``.

    ``torch.cuda.is_available()`` keeps saying no.
    """
    setattr(torch.Tensor, "cuda", _stay)  # noqa: B010 (an assignment here has a type that mypy refuses)
    setattr(torch.nn.Module, "cuda", _stay)  # noqa: B010
    setattr(torch.Tensor, "to", _to_cpu(torch.Tensor.to))  # noqa: B010
    for name in TENSOR_TYPES:
        setattr(torch.cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))
    setattr(torch.cuda, "device_count", _count_devices(torch.cuda.device_count))  # noqa: B010
    for name in ("set_device", "synchronize"):
        setattr(torch.cuda, name, _ignored(getattr(torch.cuda, name)))
    torch.serialization.register_package(BEFORE_CUDA, _tag_nothing, _restore_on_cpu)


def _stay(self: Any, *_: Any, **__: Any) -> Any:
    return self


def _ignored(function: Callable[..., Any]) -> Callable[..., None]:
    """Give a function that does nothing, another one each time, as TorchDynamo demands."""

    @functools.wraps(function)
    def nothing(*_: Any, **__: Any) -> None:
        return None

    return nothing


def _to_cpu(to: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``Tensor.to``: a CUDA device among its arguments becomes the CPU."""

    @functools.wraps(to)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return to(self, *map(_on_cpu, args), **{key: _on_cpu(value) for key, value in kwargs.items()})

    return wrapped


def _on_cpu(value: Any) -> Any:
    """Return the CPU for ``"cuda"``, ``"cuda:1"`` and ``torch.device("cuda")``, anything else as it is."""
    asks_for_cuda = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
    return torch.device("cpu") if asks_for_cuda else value


def _count_devices(count: Callable[[], int]) -> Callable[[], int]:
    """Wrap ``torch.cuda.device_count``: one device a process of this machine, but PyTorch itself is told the truth.

    OpenPCDet takes ranks modulo that number and divides the batch size by it.
    """

    @functools.wraps(count)
    def wrapped() -> int:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] == "torch":
            return count()
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    return wrapped


def _tag_nothing(storage: Any) -> None:
    """Leave it to PyTorch to say where a storage lies when it is saved."""
    return None


def _restore_on_cpu(storage: Any, location: str) -> Any:
    """Give a storage that was saved on a GPU as it was read, on CPU."""
    return storage if location.startswith("cuda") else None
