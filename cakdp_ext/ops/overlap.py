"""How much boxes overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_float, check_alike
from cakdp_ext.ops.reference import iou, overlap


@torch.no_grad()
def boxes_overlap_bev(boxes1: Tensor, boxes2: Tensor, *, compat: bool = False) -> Tensor:
    """Compute the overlap area of every pair of rotated boxes in the bird's-eye view.

    No gradient flows. A box with a size that is not positive, or with a NaN or an infinity, overlaps nothing.

    Args:
        boxes1: ``(N, 7)``, metres and radians.
        boxes2: ``(M, 7)``, same frame, device and dtype.
        compat: not the true overlap but that of OpenPCDet's rule, whose margin of 1 cm adds to it; only to reproduce
            figures obtained with it.

    Returns:
        ``(N, M)`` square metres; no rows or no columns for no boxes.

    Raises:
        ValueError: for another shape, or boxes that differ in device or dtype.
    """
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    run = native.implementation("boxes_overlap_bev", boxes1.device) or overlap.boxes_overlap_bev
    return run(boxes1, boxes2, compat)


@torch.no_grad()
def boxes_overlap_bev_aligned(boxes1: Tensor, boxes2: Tensor, *, compat: bool = False) -> Tensor:
    """Compute the overlap area of each pair ``(boxes1[i], boxes2[i])``; otherwise as :func:`boxes_overlap_bev`.

    Args:
        boxes1: ``(N, 7)``, metres and radians.
        boxes2: ``(N, 7)``, same frame, device and dtype.
        compat: as there.

    Returns:
        ``(N,)`` square metres.

    Raises:
        ValueError: for another shape, or boxes that differ in number, device or dtype.
    """
    boxes1, boxes2 = _check_aligned(boxes1, boxes2)
    run = native.implementation("boxes_overlap_bev_aligned", boxes1.device) or overlap.boxes_overlap_bev_aligned
    return run(boxes1, boxes2, compat)


@torch.no_grad()
def iou_bev(boxes1: Tensor, boxes2: Tensor, *, compat: bool = False) -> Tensor:
    """Compute the bird's-eye-view IoU of every pair of rotated boxes; arguments as :func:`boxes_overlap_bev`.

    Returns:
        ``(N, M)`` in [0, 1]; with ``compat``, above 1 for some pairs of boxes of a few decimetres.
    """
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    run = native.implementation("boxes_iou_bev", boxes1.device) or iou.boxes_iou_bev
    return run(boxes1, boxes2, compat)


@torch.no_grad()
def iou_bev_aligned(boxes1: Tensor, boxes2: Tensor, *, compat: bool = False) -> Tensor:
    """Compute the bird's-eye-view IoU of each pair; arguments as :func:`boxes_overlap_bev_aligned`.

    Returns:
        ``(N,)``, as of :func:`iou_bev`.
    """
    boxes1, boxes2 = _check_aligned(boxes1, boxes2)
    run = native.implementation("boxes_iou_bev_aligned", boxes1.device) or iou.boxes_iou_bev_aligned
    return run(boxes1, boxes2, compat)


@torch.no_grad()
def iou_3d(boxes1: Tensor, boxes2: Tensor, *, compat: bool = False) -> Tensor:
    """Compute the volume IoU of every pair of rotated boxes; arguments as :func:`boxes_overlap_bev`.

    Returns:
        ``(N, M)`` in [0, 1]; with ``compat``, above 1 for some pairs of boxes of a few decimetres.
    """
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    run = native.implementation("boxes_iou_3d", boxes1.device) or iou.boxes_iou_3d
    return run(boxes1, boxes2, compat)


@torch.no_grad()
def iou_3d_aligned(boxes1: Tensor, boxes2: Tensor, *, compat: bool = False) -> Tensor:
    """Compute the volume IoU of each pair; arguments as :func:`boxes_overlap_bev_aligned`.

    Returns:
        ``(N,)``, as of :func:`iou_3d`.
    """
    boxes1, boxes2 = _check_aligned(boxes1, boxes2)
    run = native.implementation("boxes_iou_3d_aligned", boxes1.device) or iou.boxes_iou_3d_aligned
    return run(boxes1, boxes2, compat)


@torch.no_grad()
def nearest_bev_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the axis-aligned bird's-eye-view IoU after turning each heading to the nearest multiple of 90 degrees.

    No gradient flows.

    Args:
        boxes1: ``(N, 7)``, metres and radians.
        boxes2: ``(M, 7)``, same frame, device and dtype.

    Returns:
        ``(N, M)`` in [0, 1]; no rows or no columns for no boxes.

    Raises:
        ValueError: for another shape, or boxes that differ in device or dtype.
    """
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    run = native.implementation("nearest_bev_iou", boxes1.device) or iou.nearest_bev_iou
    return run(boxes1, boxes2)


def _check_pair(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    boxes1, boxes2 = as_float(boxes1, "boxes1", (None, 7)), as_float(boxes2, "boxes2", (None, 7))
    check_alike(boxes1, boxes2, ("boxes1", "boxes2"))
    return boxes1, boxes2


def _check_aligned(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    if len(boxes1) != len(boxes2):
        raise ValueError(
            f"aligned boxes come in pairs, got {len(boxes1)} and {len(boxes2)}; for all pairs drop _aligned"
        )
    return boxes1, boxes2
