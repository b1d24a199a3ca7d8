"""One process or many: torchrun's environment, NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """Which process this is, of how many, and where it computes."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0


@contextmanager
def workers(device: str | None = None) -> Iterator[Workers]:
    """Join the process group that torchrun announces in the environment, or run alone.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes CUDA where there is a device.

    Yields:
        This process's place. The group is left on the way out.

    Raises:
        ValueError: when CUDA is asked for and absent.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = Workers(rank, world_size, _pick_device(device, int(os.environ.get("LOCAL_RANK", "0"))))
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    if world_size > 1:
        backend = "nccl" if place.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=2))  # others wait while the first one scores
    try:
        yield place
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _pick_device(name: str | None, local_rank: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"--device {name}, but this PyTorch ({torch.__version__}) sees no CUDA device; use --device cpu"
        )
    try:
        return torch.device(f"cuda:{local_rank}") if name == "cuda" else torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is none that PyTorch knows; use cpu, cuda or cuda:N") from error


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """Collect one picklable value of every process, in rank order, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def mean_over_workers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Average named scalars over the processes."""
    if not values:
        return {}
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if dist.is_initialized():
        dist.all_reduce(stacked)
        stacked /= dist.get_world_size()
    return dict(zip(values, stacked.tolist(), strict=True))
