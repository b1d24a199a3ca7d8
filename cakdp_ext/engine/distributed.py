"""One process or many: torchrun's environment or SLURM's, NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cakdp_ext.cpu_memory import keep_freed_memory


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
def workers(device: str | None = None, launcher: str = "none", port: int = 18888) -> Iterator[Workers]:
    """Join the process group that torchrun or SLURM announces in the environment, or run alone.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes CUDA where there is a device.
        launcher: ``slurm`` where ``srun`` started the processes; torchrun is found whatever is said here.
        port: of the first process, under SLURM.

    Yields:
        This process's place. The group is left on the way out.

    Raises:
        ValueError: when CUDA or SLURM is asked for and absent.
    """
    if launcher == "slurm":
        os.environ.update(torchrun_environment(os.environ, port))
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = Workers(rank, world_size, _pick_device(device, int(os.environ.get("LOCAL_RANK", "0"))))
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    else:
        keep_freed_memory()
    if world_size > 1:
        _join(place, "first")
    try:
        yield place
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(place: Workers, name: str) -> None:
    """Join a process group that keeps to itself in the store that all groups of these processes share."""
    store, rank, world_size = next(dist.rendezvous("env://"))
    dist.init_process_group(
        "nccl" if place.device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"cakdp_ext/{name}", store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(days=2),  # others wait while one is busy with a frame, or measures
    )


@contextmanager
def outside_group(place: Workers) -> Iterator[None]:
    """Leave the process group for somebody who makes one of his own, and join another one afterwards."""
    if not dist.is_initialized():
        yield
        return
    dist.destroy_process_group()
    try:
        yield
    finally:
        _join(place, "again")


def torchrun_environment(slurm: Mapping[str, str], port: int) -> dict[str, str]:
    """Say in torchrun's variables what SLURM's say about a task.

    Args:
        slurm: what ``srun`` puts into a task's environment.
        port: where the first process listens, on the first host.

    Raises:
        ValueError: outside ``srun``.
    """
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    missing = [name for name in (*names.values(), "SLURM_STEP_NODELIST") if name not in slurm]
    if missing:
        raise ValueError(f"--launcher slurm, but {missing[0]} is not set; start the command with srun")
    places = {name: slurm[theirs] for name, theirs in names.items()}
    return {**places, "MASTER_ADDR": _first_host(slurm["SLURM_STEP_NODELIST"]), "MASTER_PORT": str(port)}


def _first_host(hosts: str) -> str:
    """Take the first of SLURM's hosts: ``gpu03`` of ``gpu[03-05,11],cpu1``."""
    first = re.match(r"(\[[^]]*\]|[^,])*", hosts)
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first.group() if first else "")


def _pick_device(name: str | None, local_rank: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"--device {name}, but this PyTorch ({torch.__version__}) sees no CUDA device; use --device cpu"
        )
    try:
        if name == "cuda":  # SLURM may show each process its own GPU only
            return torch.device("cuda", local_rank % max(torch.cuda.device_count(), 1))
        return torch.device(name)
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
