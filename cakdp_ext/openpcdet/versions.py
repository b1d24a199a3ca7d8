"""What did PyTorch and NumPy change since OpenPCDet was written? Cures that its runs on GPUs need as much as on CPU."""

from __future__ import annotations

from typing import Any


def allow_checkpoints() -> None:
    """Let ``torch.load`` read the checkpoints that OpenPCDet writes, whose optimizer state holds NumPy scalars.

    PyTorch 2.6 and later refuse them otherwise, and OpenPCDet's resume then starts again at epoch 0 without a word.
    Nothing but numbers is allowed; repeating it changes nothing.
    """
    import torch

    add = getattr(torch.serialization, "add_safe_globals", None)
    if add is not None and _knows_pairs(torch.__version__):
        add(_numpy_scalars())


def _knows_pairs(version: str) -> bool:
    """Tell whether allow-lists take ``(object, name)``; before 2.6 nothing has to be allowed."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) >= (2, 6)


def _numpy_scalars() -> list[Any]:
    """List what a pickled NumPy number consists of, under the names that NumPy 1 and 2 give it."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    numbers = [np.bool_, np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8]
    return [*((scalar, name) for name in names), np.dtype, *(type(np.dtype(number)) for number in numbers)]


def restore_numpy_names() -> None:
    """Give NumPy back the aliases ``int``, ``float`` and ``bool``, which OpenPCDet still uses, where it lacks them."""
    import numpy as np

    for builtin in (int, float, bool):
        if builtin.__name__ not in vars(np):
            setattr(np, builtin.__name__, builtin)
