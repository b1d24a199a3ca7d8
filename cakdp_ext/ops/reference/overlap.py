"""Overlap area of rotated rectangles in the bird's-eye view.

The rectangle of the smaller diagonal is a polygon around its own centre; the other one, seen along its own axes, is the
slab ``[x_low, x_high] x [y_low, y_high]`` in that polygon's frame. Walking the polygon counter-clockwise,

    overlap = - sum over edges of the integral of clamp(y, y_low, y_high) dx over clamp(x, x_low, x_high)

because at every x the clamped ends of the polygon's vertical section enclose exactly its part within the slab. The
sum is continuous in all coordinates, so that touching and coinciding edges need no tolerance, and no number in it is
larger than half that diagonal, so that rounding stays relative to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cakdp_ext.ops.reference.margin import REACH, margin_overlap

DENSE_LIMIT = 1 << 22
"""Entries of a distance matrix held at once."""

PAIR_LIMIT = 1 << 15
"""Pairs clipped at once."""


def boxes_overlap_bev(boxes1: Tensor, boxes2: Tensor, compat: bool = False) -> Tensor:
    """Pairwise overlap area.

    Args:
        boxes1: ``(N, 7)``.
        boxes2: ``(M, 7)``.
        compat: by the rule with a margin.

    Returns:
        ``(N, M)`` square metres.
    """
    return for_near_pairs(partial(boxes_overlap_bev_aligned, compat=compat), boxes1, boxes2, compat)


def for_near_pairs(
    compare: Callable[[Tensor, Tensor], Tensor], boxes1: Tensor, boxes2: Tensor, compat: bool = False
) -> Tensor:
    """Compare the pairs of boxes whose circumscribed circles meet.

    Args:
        compare: gives a number for each pair of aligned boxes.
        boxes1: ``(N, 7)``.
        boxes2: ``(M, 7)``.
        compat: circles a margin apart meet too.

    Returns:
        ``(N, M)``, 0 for all other pairs.
    """
    values = boxes1.new_zeros(len(boxes1), len(boxes2))
    if values.numel() == 0:
        return values
    for begin in range(0, len(boxes1), max(1, DENSE_LIMIT // len(boxes2))):
        rows = slice(begin, begin + max(1, DENSE_LIMIT // len(boxes2)))
        near = _circles_meet(boxes1[rows, None], boxes2[None], REACH if compat else 0).nonzero()
        for pairs in near.split(PAIR_LIMIT):
            row, column = pairs.unbind(1)
            values[begin + row, column] = compare(boxes1[begin + row], boxes2[column])
    return values


def boxes_overlap_bev_aligned(boxes1: Tensor, boxes2: Tensor, compat: bool = False) -> Tensor:
    """Overlap area of each pair ``(boxes1[i], boxes2[i])``.

    Args:
        boxes1: ``(N, 7)``.
        boxes2: ``(N, 7)``.
        compat: by the rule with a margin.

    Returns:
        ``(N,)`` square metres.
    """
    overlap = torch.zeros_like(boxes1[:, 0])
    near = _circles_meet(boxes1, boxes2, REACH if compat else 0).nonzero().squeeze(1)
    for rows in near.split(PAIR_LIMIT):
        overlap[rows] = _overlap_of_near(boxes1[rows], boxes2[rows], compat)
    return overlap


def _overlap_of_near(boxes1: Tensor, boxes2: Tensor, compat: bool) -> Tensor:
    swap = _comes_first(boxes2, boxes1)[:, None]
    large, small = torch.where(swap, boxes2, boxes1), torch.where(swap, boxes1, boxes2)
    offset = small[:, :2] - large[:, :2]
    center = _rotate(offset, -large[:, 6])
    turn = small[:, 6] - large[:, 6]
    half_large, half_small = large[:, 3:5] / 2, small[:, 3:5] / 2
    if compat:
        return margin_overlap(center, turn, half_large, half_small)
    area = _clipped_area(half_small, turn, -half_large - center, half_large - center).clamp(min=0)
    area = torch.minimum(area, torch.minimum(large[:, 3:5].prod(1), small[:, 3:5].prod(1)))
    apart = _separated(center, half_large, half_small, turn) | _separated(
        _rotate(offset, -small[:, 6]), half_small, half_large, turn
    )
    return torch.where(apart, 0, area)


def _is_usable(boxes: Tensor) -> Tensor:
    """Tell which boxes ``(..., 7)`` are finite in the plane and have a positive size."""
    plane = boxes[..., [0, 1, 3, 4, 6]]
    return plane.isfinite().all(-1) & (boxes[..., 3:5] > 0).all(-1)


def _circles_meet(boxes1: Tensor, boxes2: Tensor, margin: float) -> Tensor:
    """Tell which usable boxes ``(..., 7)``, broadcast, have circles around them that meet, the margin apart."""
    radius1, radius2 = (torch.linalg.vector_norm(boxes[..., 3:5], dim=-1) / 2 for boxes in (boxes1, boxes2))
    reach = radius1 + radius2 + margin
    distance_squared = (boxes1[..., 0] - boxes2[..., 0]).square() + (boxes1[..., 1] - boxes2[..., 1]).square()
    return (distance_squared <= reach * reach) & _is_usable(boxes1) & _is_usable(boxes2)


def _comes_first(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Order pairs by their own numbers, not by how they are given, so that overlaps are symmetric to the last bit."""
    first, is_tie = torch.zeros_like(boxes1[:, 0], dtype=torch.bool), torch.ones_like(boxes1[:, 0], dtype=torch.bool)
    diagonals = [boxes[:, 3:5].square().sum(1) for boxes in (boxes2, boxes1)]
    for smaller, larger in (diagonals, *((boxes1[:, i], boxes2[:, i]) for i in (0, 1, 6, 3, 4))):
        first |= is_tie & (smaller < larger)
        is_tie &= smaller == larger
    return first


def _rotate(vectors: Tensor, angle: Tensor) -> Tensor:
    cos, sin = torch.cos(angle), torch.sin(angle)
    x, y = vectors.unbind(-1)
    return torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1)


def _separated(center: Tensor, half_own: Tensor, half_other: Tensor, turn: Tensor) -> Tensor:
    """Tell whether an axis of the first rectangle separates it from the second, whose centre is given in its frame."""
    cos, sin = torch.cos(turn).abs(), torch.sin(turn).abs()
    reach_x = half_other[:, 0] * cos + half_other[:, 1] * sin
    reach_y = half_other[:, 0] * sin + half_other[:, 1] * cos
    reach = half_own + torch.stack((reach_x, reach_y), dim=-1)
    return (center.abs() >= reach).any(1)


def _clipped_area(half: Tensor, turn: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Area of the part of rectangles around the origin that lies within axis-aligned bounds.

    Args:
        half: ``(P, 2)`` half sizes of the rectangles.
        turn: ``(P,)`` their headings.
        low: ``(P, 2)`` lower bounds of x and y.
        high: ``(P, 2)`` upper bounds.
    """
    radius = torch.linalg.vector_norm(half, dim=1, keepdim=True)
    low, high = low.clamp(-radius, radius)[:, None], high.clamp(-radius, radius)[:, None]
    signs = half.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    start = _rotate(signs * half[:, None], turn[:, None])
    x0, y0 = start.unbind(-1)
    x1, y1 = start.roll(-1, dims=1).unbind(-1)
    step = x1 - x0
    slope = (y1 - y0) / torch.where(step == 0, torch.ones_like(step), step)
    x_from, x_to = x0.clamp(low[..., 0], high[..., 0]), x1.clamp(low[..., 0], high[..., 0])
    y_from, y_to = y0 + (x_from - x0) * slope, y0 + (x_to - x0) * slope
    return -((x_to - x_from) * _mean_clamped(y_from, y_to, low[..., 1], high[..., 1])).sum(1)


def _mean_clamped(begin: Tensor, end: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mean of ``clamp(y, low, high)`` for y running evenly from begin to end: three straight pieces."""
    rise = end - begin
    safe = torch.where(rise == 0, torch.ones_like(rise), rise)
    at_low, at_high = ((low - begin) / safe).clamp(0, 1), ((high - begin) / safe).clamp(0, 1)
    first, second = torch.minimum(at_low, at_high), torch.maximum(at_low, at_high)
    values = [(begin + t * rise).clamp(low, high) for t in (torch.zeros_like(first), first, second)]
    values.append(end.clamp(low, high))
    widths = (first, second - first, 1 - second)
    pieces = [width * (a + b) for width, a, b in zip(widths, values, values[1:], strict=False)]
    return (pieces[0] + pieces[1] + pieces[2]) / 2
