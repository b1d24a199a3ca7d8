"""Pickles of arrays and plain containers: read without running anything else, written for every NumPy."""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

_NUMPY_CORE = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0b1" else "numpy.core"
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "bytes"),
    ("builtins", "bytearray"),
    ("builtins", "complex"),
}
_DAMAGE = (EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError, OverflowError)


class RefusedPickleError(ValueError):
    """A pickle that asks for something other than arrays and plain containers."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        modern = module.replace("numpy.core", "numpy._core", 1).replace("__builtin__", "builtins", 1)
        if (modern, name) not in _ALLOWED:
            raise RefusedPickleError(f"{module}.{name}")
        return getattr(import_module(modern.replace("numpy._core", _NUMPY_CORE, 1)), name)


def _reduce(array: np.ndarray) -> tuple[type, tuple[tuple[int], str], Any]:
    return np.ndarray, ((0,), "b"), array.__reduce__()[2]


class _ArrayPickler(pickle.Pickler):
    """Names ``numpy.ndarray`` alone, where NumPy itself names a module that moved in version 2."""

    dispatch_table: Any = {**copyreg.dispatch_table, np.ndarray: _reduce}


def dump_arrays(value: Any, path: Path) -> None:
    """Write containers of arrays, numbers and strings so that NumPy 1 and NumPy 2 both read them.

    Args:
        value: NumPy scalars in it are better made plain numbers; they are readable by NumPy 1.26 and later only.
        path: the file; it is replaced.
    """
    with path.open("wb") as file:
        _ArrayPickler(file, protocol=4).dump(value)


def load_arrays(path: Path) -> Any:
    """Read a pickle of NumPy arrays and scalars, numbers, strings and containers of these.

    Pickles written under NumPy 1 and under NumPy 2 are both read.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: when it is not there.
        RefusedPickleError: when it asks for any other class or function; nothing of it has run.
        ValueError: when it is damaged.
    """
    with path.open("rb") as file:
        try:
            return _ArrayUnpickler(file).load()
        except RefusedPickleError as error:
            raise RefusedPickleError(
                f"{path} asks for {error}, which could run code; only NumPy arrays and plain containers are read"
            ) from error
        except (pickle.UnpicklingError, *_DAMAGE) as error:
            raise ValueError(f"{path} is damaged or no pickle ({error}); write it again") from error
