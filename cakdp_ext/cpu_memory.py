"""Where does a CPU spend time without computing? On memory given back and asked for again in every step."""

from __future__ import annotations

import ctypes
import gc
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>


def keep_freed_memory() -> bool:
    """Let this process reuse the memory of large tensors instead of returning it to the system (glibc's malloc).

    PyTorch has no pool of its own on CPU: glibc maps every large tensor afresh, and the system clears its pages one by
    one. In a full-size training step that is up to a third of the time. What was freed stays with the process.

    Returns:
        Whether the C library took the setting; others than glibc have no such.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> None:
    """Return to the system, once, what this process has freed; where the C library cannot, nothing happens."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
