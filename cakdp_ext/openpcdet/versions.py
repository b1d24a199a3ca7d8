"""What did NumPy change since OpenPCDet was written? A cure that its runs on GPUs need as much as on CPU."""

from __future__ import annotations


def restore_numpy_names() -> None:
    """Give NumPy back the aliases ``int``, ``float`` and ``bool``, which OpenPCDet still uses, where it lacks them."""
    import numpy as np

    for builtin in (int, float, bool):
        if builtin.__name__ not in vars(np):
            setattr(np, builtin.__name__, builtin)
