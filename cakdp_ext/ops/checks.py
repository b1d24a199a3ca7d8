"""What every op refuses, and how it says so."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int64)


def as_float(tensor: Tensor, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """Return a contiguous float32 or float64 tensor of the asked shape; half precision becomes float32.

    Args:
        tensor: what the caller gave.
        name: what errors call it.
        shape: expected sizes, None where any size will do.

    Raises:
        ValueError: for another shape or a dtype that is not floating.
    """
    check_shape(tensor, name, shape)
    if tensor.dtype in HALVES:
        return tensor.float().contiguous()
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32 or float64, got {tensor.dtype}; convert it first")
    return tensor.contiguous()


def as_index(tensor: Tensor, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """Return a contiguous int64 tensor of the asked shape.

    Args:
        tensor: what the caller gave, int32 or int64.
        name: what errors call it.
        shape: expected sizes, None where any size will do.

    Raises:
        ValueError: for another shape or a dtype that is not int32 or int64.
    """
    check_shape(tensor, name, shape)
    if tensor.dtype not in INTEGERS:
        raise ValueError(f"{name} must be int32 or int64, got {tensor.dtype}; convert it first")
    return tensor.long().contiguous()


def as_mask(tensor: Tensor, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """Return a contiguous bool tensor of the asked shape.

    Raises:
        ValueError: for another shape or a dtype that is not bool.
    """
    check_shape(tensor, name, shape)
    if tensor.dtype != torch.bool:
        raise ValueError(f"{name} must be bool, got {tensor.dtype}; convert it first")
    return tensor.contiguous()


def as_counts(counts: Tensor, name: str, rows: Tensor, rows_name: str) -> Tensor:
    """Return how many rows of a stacked tensor belong to each frame, as a contiguous int64 tensor.

    On a CPU the counts are held against the rows. On another device their values are not read, for that would wait
    for it.

    Args:
        counts: ``(B,)`` int32 or int64.
        name: what errors call it.
        rows: the stacked tensor.
        rows_name: what errors call that.

    Raises:
        ValueError: for another shape, dtype or device, and on a CPU for counts below 0 or another sum than the rows.
    """
    counts = as_index(counts, name, (None,))
    check_same_device(counts, rows, (name, rows_name))
    if counts.device.type == "cpu":
        values = counts.tolist()
        if sum(values) != len(rows) or min(values, default=0) < 0:
            raise ValueError(
                f"{name} must say how many of the {len(rows)} rows of {rows_name} belong to each frame: "
                f"numbers of at least 0 that add up to {len(rows)}, got {values}"
            )
    return counts


def check_same_frames(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raise ValueError unless both counts, as :func:`as_counts` gives them, name as many frames."""
    if len(first) != len(second):
        raise ValueError(
            f"{names[0]} and {names[1]} must be of the same frames and name as many, got {len(first)} and {len(second)}"
        )


def check_shape(tensor: Tensor, name: str, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless the tensor has the asked number of dimensions and sizes."""
    same = tensor.dim() == len(shape) and all(w is None or w == g for w, g in zip(shape, tensor.shape, strict=True))
    if not same:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}")


def check_alike(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raise ValueError unless both tensors share device and dtype."""
    check_same_device(first, second, names)
    if first.dtype != second.dtype:
        raise ValueError(
            f"{names[0]} and {names[1]} must share a dtype, got {first.dtype} and {second.dtype}; convert one of them"
        )


def check_same_device(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raise ValueError unless both tensors live on one device."""
    if first.device != second.device:
        raise ValueError(
            f"{names[0]} and {names[1]} must be on one device, got {first.device} and {second.device}; move one of them"
        )
