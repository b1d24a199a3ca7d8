"""How do the processes that this one starts follow? Data loaders start some, forked or afresh."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import cakdp_ext

SWITCH = "CAKDP_OPENPCDET_CPU"


def let_follow() -> None:
    """Set the switch for programs, and let processes that begin afresh import this package before anything else."""
    os.environ[SWITCH] = "1"
    setattr(spawn, "get_preparation_data", _with_import(spawn.get_preparation_data))  # noqa: B010 (mypy)


class ImportFirst:
    """Is pickled for a new process, whose reading it imports this package: before the main module, before pcdet."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        """Say what reading it means."""
        folder = str(Path(cakdp_ext.__file__).parents[1])
        return exec, (f"import sys; sys.path.append({folder!r}); import cakdp_ext",)


def _with_import(get_preparation_data: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    @functools.wraps(get_preparation_data)
    def wrapped(name: str) -> dict[str, Any]:
        return {"cakdp_ext": ImportFirst(), **get_preparation_data(name)}

    return wrapped
