"""Modules that import and do nothing: whatever is called in them says what is missing."""

from __future__ import annotations

import logging
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

DOES_NOT_LOAD = "{name} is used, but its module does not load here: {error}"


class InertType(type):
    """Type of what an inert module holds: fits into imports, defaults and ``isinstance``, and refuses to be used."""

    refusal: Exception

    def __call__(cls, *_: Any, **__: Any) -> Any:
        """Refuse."""
        raise cls.refusal

    def __getattr__(cls, name: str) -> Any:
        """Refuse, but for the names that Python itself asks for."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise cls.refusal


def make_inert(module: ModuleType, reason: str, error: type[Exception] = ImportError) -> None:
    """Let a module answer every name with something that raises an error when it is used.

    Args:
        module: its ``__name__`` is known.
        reason: the error's text; ``{name}`` in it becomes the full name of what was used.
        error: its type.
    """

    def __getattr__(name: str) -> InertType:  # noqa: N807 (PEP 562)
        if name.startswith("__"):
            raise AttributeError(f"{module.__name__} has no attribute {name}")
        refusal = error(reason.replace("{name}", f"{module.__name__}.{name}"))
        return InertType(name, (), {"refusal": refusal, "__module__": module.__name__})

    vars(module)["__getattr__"] = __getattr__


class InertLoader(Loader):
    """Loads an inert module."""

    def __init__(self, reason: str, error: type[Exception] = ImportError) -> None:
        self.reason = reason
        self.error = error

    def exec_module(self, module: ModuleType) -> None:
        """Make the module inert."""
        make_inert(module, self.reason, self.error)


class TolerantLoader(Loader):
    """Loads a module as another loader does; what fails to load becomes inert."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.failure: Exception | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make the module that the other loader makes, or an empty one."""
        try:
            return self.loader.create_module(spec)
        except Exception as error:  # noqa: BLE001 (whatever it raises, OpenPCDet can do without it)
            self.failure = error
            return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the module."""
        before = set(sys.modules)
        try:
            if self.failure is not None:
                raise self.failure
            _hand_over(module, self.loader)
            self.loader.exec_module(module)
        except Exception as error:  # noqa: BLE001 (as above)
            _forget_children(module.__name__, before)
            _empty(module)
            make_inert(module, DOES_NOT_LOAD.replace("{error}", f"{type(error).__name__}: {error}"))
            logging.getLogger(__name__).info("%s does not load (%s); going on without it", module.__name__, error)


def _hand_over(module: ModuleType, loader: Loader) -> None:
    """Let a module know its own loader, which finds its resources."""
    module.__loader__ = loader
    if module.__spec__ is not None:
        module.__spec__.loader = loader


def _forget_children(package: str, before: set[str]) -> None:
    """Drop the parts of a package that were loaded before it failed."""
    for name in set(sys.modules) - before:
        if name.startswith(f"{package}."):
            del sys.modules[name]


def _empty(module: ModuleType) -> None:
    for name in [name for name in vars(module) if not name.startswith("__") or name == "__getattr__"]:
        del vars(module)[name]
    if hasattr(module, "__path__"):
        module.__path__ = []
