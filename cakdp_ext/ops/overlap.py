"""How much boxes overlap."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.boxes import limit_period
from cakdp_ext.ops.checks import as_float, check_alike
from cakdp_ext.ops.reference import overlap as reference

PAIR_LIMIT = 1 << 16
"""Pairs of upright boxes compared at once: what stays in a processor's cache."""


@torch.no_grad()
def boxes_overlap_bev(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the overlap area of every pair of rotated boxes in the bird's-eye view.

    No gradient flows. A box with a size that is not positive, or with a NaN or an infinity, overlaps nothing.

    Args:
        boxes1: ``(N, 7)``, metres and radians.
        boxes2: ``(M, 7)``, same frame, device and dtype.

    Returns:
        ``(N, M)`` square metres; no rows or no columns for no boxes.

    Raises:
        ValueError: for another shape, or boxes that differ in device or dtype.
    """
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    run = native.implementation("boxes_overlap_bev", boxes1.device) or reference.boxes_overlap_bev
    return run(boxes1, boxes2)


@torch.no_grad()
def boxes_overlap_bev_aligned(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the overlap area of each pair ``(boxes1[i], boxes2[i])``; otherwise as :func:`boxes_overlap_bev`.

    Args:
        boxes1: ``(N, 7)``, metres and radians.
        boxes2: ``(N, 7)``, same frame, device and dtype.

    Returns:
        ``(N,)`` square metres.

    Raises:
        ValueError: for another shape, or boxes that differ in number, device or dtype.
    """
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    if len(boxes1) != len(boxes2):
        raise ValueError(
            f"aligned boxes come in pairs, got {len(boxes1)} and {len(boxes2)}; for all pairs drop _aligned"
        )
    run = native.implementation("boxes_overlap_bev_aligned", boxes1.device) or reference.boxes_overlap_bev_aligned
    return run(boxes1, boxes2)


@torch.no_grad()
def iou_bev(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the bird's-eye-view IoU of every pair of rotated boxes; arguments as :func:`boxes_overlap_bev`.

    Returns:
        ``(N, M)`` in [0, 1].
    """
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    iou = boxes_overlap_bev(boxes1, boxes2)
    row, column = iou.nonzero(as_tuple=True)
    iou[row, column] = _ratio(iou[row, column], _area(boxes1)[row], _area(boxes2)[column])
    return iou


@torch.no_grad()
def iou_3d(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the volume IoU of every pair of rotated boxes; arguments as :func:`boxes_overlap_bev`.

    Returns:
        ``(N, M)`` in [0, 1].
    """
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    iou = boxes_overlap_bev(boxes1, boxes2)
    row, column = iou.nonzero(as_tuple=True)
    overlap = iou[row, column] * _shared_height(boxes1[row], boxes2[column])
    iou[row, column] = _ratio(overlap, _volume(boxes1)[row], _volume(boxes2)[column])
    return iou


@torch.no_grad()
def iou_3d_aligned(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the volume IoU of each pair; arguments as :func:`boxes_overlap_bev_aligned`.

    Returns:
        ``(N,)`` in [0, 1].
    """
    boxes1, boxes2 = _check_pair(boxes1, boxes2)
    overlap = boxes_overlap_bev_aligned(boxes1, boxes2) * _shared_height(boxes1, boxes2)
    return _ratio(overlap, _volume(boxes1), _volume(boxes2))


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
    upright1, upright2 = _turn_upright(boxes1), _turn_upright(boxes2)
    iou = boxes1.new_zeros(len(boxes1), len(boxes2))
    rows_at_once = max(1, PAIR_LIMIT // max(1, len(boxes2)))
    for part, rows in zip(iou.split(rows_at_once), upright1.split(rows_at_once), strict=True):
        part.copy_(_upright_iou(rows[:, None], upright2))
    return iou


def _check_pair(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    boxes1, boxes2 = as_float(boxes1, "boxes1", (None, 7)), as_float(boxes2, "boxes2", (None, 7))
    check_alike(boxes1, boxes2, ("boxes1", "boxes2"))
    return boxes1, boxes2


def _turn_upright(boxes: Tensor) -> Tensor:
    """Return ``(N, 4)`` x, y and extents along both: dx and dy exchanged where the heading is nearer to 90 degrees."""
    from_axis = limit_period(boxes[:, 6:7], 0.5, math.pi).abs()
    size = torch.where(from_axis < math.pi / 4, boxes[:, 3:5], boxes[:, [4, 3]])
    return torch.cat((boxes[:, :2], size.where(from_axis.isfinite(), 0)), dim=1)


def _upright_iou(upright1: Tensor, upright2: Tensor) -> Tensor:
    x1, y1, dx1, dy1 = upright1.unbind(-1)
    x2, y2, dx2, dy2 = upright2.unbind(-1)
    overlap = _shared_length(x1, dx1, x2, dx2) * _shared_length(y1, dy1, y2, dy2)
    return _ratio(overlap, dx1 * dy1, dx2 * dy2)


def _shared_length(center1: Tensor, size1: Tensor, center2: Tensor, size2: Tensor) -> Tensor:
    """Length that two intervals share, computed from the first one's centre; 0 where a size is not positive."""
    offset = center2 - center1
    shared = torch.minimum(size1 / 2, offset + size2 / 2) - torch.maximum(-size1 / 2, offset - size2 / 2)
    return torch.where((size1 > 0) & (size2 > 0), shared.clamp_(min=0), torch.zeros_like(shared))


def _shared_height(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return _shared_length(boxes1[..., 2], boxes1[..., 5], boxes2[..., 2], boxes2[..., 5])


def _area(boxes: Tensor) -> Tensor:
    return boxes[:, 3] * boxes[:, 4]


def _volume(boxes: Tensor) -> Tensor:
    return _area(boxes) * boxes[:, 5]


def _ratio(overlap: Tensor, measure1: Tensor, measure2: Tensor) -> Tensor:
    """Intersection over union; 0 wherever nothing overlaps, boxes without a proper size included."""
    overlaps = overlap > 0
    union = torch.where(overlaps, measure1 + measure2 - overlap, torch.ones_like(overlap))
    return torch.where(overlaps, overlap / union, torch.zeros_like(overlap)).clamp_(max=1)
