"""Registration when OpenPCDet is imported, whether that was before us or will be after."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

WATCHED = "pcdet.models"
"""Once it has been imported, all of OpenPCDet's registries of modules exist."""


def install(register: Callable[[], None]) -> None:
    """Call ``register`` after OpenPCDet's models have been imported; at once where they have been already.

    Where CAKDP_OPENPCDET_CPU=1 asks for it, OpenPCDet is made to run on CPU first.

    Args:
        register: is called once an import; importing pcdet itself costs nothing until somebody does it.
    """
    if os.environ.get("CAKDP_OPENPCDET_CPU", "0") == "1":
        from cakdp_ext.openpcdet import use_cpu

        use_cpu()
    if WATCHED in sys.modules:
        register()
    elif not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImport(register))


class AfterImport(importlib.abc.MetaPathFinder):
    """Finds the watched module where everybody else does, and calls back when it has been executed."""

    def __init__(self, register: Callable[[], None]) -> None:
        self.register = register
        self._is_searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the watched module; every other one is left to the finders that follow."""
        if fullname != WATCHED or self._is_searching:
            return None
        self._is_searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.register)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, register: Callable[[], None]) -> None:
        self._loader, self._register = loader, register

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader  # from here on the module is as if we had never been there
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._register()
