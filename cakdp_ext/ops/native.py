"""Which implementation an op runs: the compiled one of ``cakdp_ext._C`` where there is a kernel, else the reference."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

from cakdp_ext.ops import autograd, fake

SWITCH = "CAKDP_NATIVE"
EXTENSION = os.environ.get("CAKDP_EXTENSION", "cakdp_ext._C")
"""The module whose import registers the ops; the tests put another build of them here."""
HOW_TO_BUILD = "pip install --no-build-isolation -e . (with a C++ compiler)"
NAMES = (
    "boxes_overlap_bev",
    "boxes_overlap_bev_aligned",
    "boxes_iou_bev",
    "boxes_iou_bev_aligned",
    "boxes_iou_3d",
    "boxes_iou_3d_aligned",
    "nearest_bev_iou",
    "nms_sorted",
    "points_in_boxes",
    "voxel_query",
    "farthest_point_sampling",
    "ball_query",
    "group_points",
    "group_points_backward",
    "three_nn",
    "three_interpolate",
    "three_interpolate_backward",
    "neighbors_in_boxes",
    "neighbors_in_balls",
    "three_nn_local",
    "group_by_cell",
    "pool_cells_mean",
    "pool_cells_mean_backward",
    "pool_cells_max",
    "pool_cells_max_backward",
)


def _load() -> str:
    """Import the extension and return why it is not in use, nothing where it is."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH}=0"
    try:
        importlib.import_module(EXTENSION)
    except ModuleNotFoundError:
        return f"{EXTENSION} is not built"
    except ImportError as error:
        return f"{EXTENSION} does not load ({error})"
    missing = [name for name in NAMES if not hasattr(torch.ops.cakdp, name)]
    if missing:
        return f"{EXTENSION} is older than these sources, it lacks {', '.join(missing)}"
    fake.register()
    autograd.register()
    return ""


REASON = _load()
"""Why no native op runs; empty where the extension is loaded."""


@functools.cache
def has_kernel(name: str, device_type: str) -> bool:
    """Tell whether an op has a compiled kernel for a device type such as ``cpu`` or ``cuda``."""
    if REASON:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"cakdp::{name}", device_type.upper())


def implementation(name: str, device: torch.device) -> Callable[..., Any] | None:
    """Return the native op for tensors on a device, or None; the first None on a CPU warns, unless it was asked for."""
    if has_kernel(name, device.type):
        return getattr(torch.ops.cakdp, name)
    if device.type == "cpu" and REASON and not REASON.startswith(SWITCH):
        _warn_once(name)
    return None


@functools.cache
def _warn_once(name: str) -> None:
    warnings.warn(f"{name} runs its slow PyTorch reference: {REASON}; to build it: {HOW_TO_BUILD}", stacklevel=5)


def describe(device_types: tuple[str, ...] = ("cpu", "cuda")) -> list[tuple[str, str, str]]:
    """List ``(op, device type, implementation)``, the reason beside every reference."""
    rows = []
    for name in NAMES:
        for device_type in device_types:
            why = REASON or f"no {device_type} kernel"
            rows.append((name, device_type, "native" if has_kernel(name, device_type) else f"reference ({why})"))
    return rows
