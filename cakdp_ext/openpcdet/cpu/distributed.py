"""How do several CPU processes train together? OpenPCDet asks for NCCL and GPUs; it gets Gloo and none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def use_gloo() -> None:
    """Let ``init_process_group("nccl")`` mean gloo, and ``DistributedDataParallel`` forget its ``device_ids``."""
    if dist.is_available():
        setattr(dist, "init_process_group", _with_gloo(dist.init_process_group))  # noqa: B010 (mypy)
    setattr(DistributedDataParallel, "__init__", _without_devices(DistributedDataParallel.__init__))  # noqa: B010


def _with_gloo(init_process_group: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init_process_group)
    def wrapped(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        init_process_group("gloo" if backend == "nccl" else backend, *args, **kwargs)

    return wrapped


def _without_devices(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapped(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any, **kw: Any
    ) -> None:
        init(self, module, None, None, *args, **kw)

    return wrapped
