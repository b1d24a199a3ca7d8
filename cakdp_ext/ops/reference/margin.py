"""Overlap area of rotated rectangles by a rule with a margin of 1 cm, which many published figures were obtained with.

The vertices of the overlap are the points where edges cross, and every corner of one rectangle that lies in the other
one enlarged by the margin on each side; they are taken in the order of their angles about their mean. The margin makes
the area too large, by more the smaller the rectangles are.
"""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 1e-2
REACH = 1.5e-2
"""More than a corner's way out of the enlarged rectangle."""

CORNERS = ((1, 1), (-1, 1), (-1, -1), (1, -1))


def margin_overlap(offset: Tensor, turn: Tensor, half1: Tensor, half2: Tensor) -> Tensor:
    """Overlap area of pairs of rectangles, the first of each around the origin and along the axes.

    Args:
        offset: ``(P, 2)`` centres of the second ones.
        turn: ``(P,)`` their headings.
        half1: ``(P, 2)`` half sizes of the first ones.
        half2: ``(P, 2)`` half sizes of the second ones.

    Returns:
        ``(P,)`` square metres, not below 0; more than the smaller rectangle where the margin shows.
    """
    signs = half1.new_tensor(CORNERS)
    first = signs * half1[:, None]
    second = offset[:, None] + _rotated(signs * half2[:, None], turn)
    is_first_inside = _within_margin(_rotated(first - offset[:, None], -turn), half2)
    crossings, do_cross = _crossings(first, second)
    points = torch.cat((first, second, crossings), dim=1)
    is_vertex = torch.cat((is_first_inside, _within_margin(second, half1), do_cross), dim=1)
    return _area_about_mean(points, is_vertex)


def _rotated(vectors: Tensor, angle: Tensor) -> Tensor:
    cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    x, y = vectors.unbind(-1)
    return torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1)


def _within_margin(local: Tensor, half: Tensor) -> Tensor:
    return (local.abs() <= half[:, None] + MARGIN).all(-1)


def _crossings(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Points ``(P, 16, 2)`` where edges of two rectangles ``(P, 4, 2)`` cross, and whether they do ``(P, 16)``."""
    a, b = (corners[:, :, None] for corners in (first, first.roll(-1, dims=1)))
    c, d = (corners[:, None] for corners in (second, second.roll(-1, dims=1)))
    side_c, side_d = _cross(b - a, c - a), _cross(b - a, d - a)
    do_cross = (side_c * side_d < 0) & (_cross(d - c, a - c) * _cross(d - c, b - c) < 0)
    part = side_c / torch.where(do_cross, side_c - side_d, 1)
    return (c + part[..., None] * (d - c)).flatten(1, 2), do_cross.flatten(1)


def _cross(first: Tensor, second: Tensor) -> Tensor:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _area_about_mean(points: Tensor, is_vertex: Tensor) -> Tensor:
    """Area of the polygon whose vertices ``(P, K, 2)`` are those marked ``(P, K)``, by angle about their mean."""
    count = is_vertex.sum(1)
    kept = torch.where(is_vertex[..., None], points, 0)
    away = kept - (kept.sum(1) / count.clamp(min=1)[:, None])[:, None]
    angle = torch.where(is_vertex, torch.atan2(away[..., 1], away[..., 0]), torch.inf)
    order = angle.argsort(dim=1)[..., None].expand_as(away)
    away = away.gather(1, order)
    is_last = torch.arange(away.shape[1], device=away.device) + 1 >= count[:, None]
    ahead = torch.where(is_last[..., None], away[:, :1], away.roll(-1, dims=1))
    twice = torch.where(is_vertex.gather(1, order[..., 0]), _cross(away, ahead), 0).sum(1)
    return torch.where(count < 3, 0, twice.abs() / 2)
