"""Which box a point lies in."""

from __future__ import annotations

import torch
from torch import Tensor

DENSE_LIMIT = 1 << 20
"""Point-box pairs tested at once."""


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Test every point against every box of its frame in the box's own axes.

    Args:
        points: ``(B, N, 3)``.
        boxes: ``(B, M, 7)``.

    Returns:
        ``(B, N)`` int64, the first box that holds the point, -1 for none.
    """
    holder = torch.full(points.shape[:2], -1, dtype=torch.int64, device=points.device)
    if holder.numel() == 0 or boxes.shape[1] == 0:
        return holder
    points_at_once = max(1, DENSE_LIMIT // boxes.shape[1])
    for found, cloud, frame_boxes in zip(holder, points, boxes, strict=True):
        for part, some in zip(found.split(points_at_once), cloud.split(points_at_once), strict=True):
            part.copy_(_first_box(some, frame_boxes))
    return holder


def boxes_hold(boxes: Tensor, points: Tensor) -> Tensor:
    """Return ``(M, N)`` bool, which of the boxes ``(M, 7)`` holds which of the points ``(N, 3)``, faces included."""
    x, y, z = (points - boxes[:, None, :3]).unbind(-1)
    cos, sin = torch.cos(boxes[:, 6:]), torch.sin(boxes[:, 6:])
    half = boxes[:, None, 3:6] / 2
    inside = ((x * cos + y * sin).abs() <= half[..., 0]) & ((y * cos - x * sin).abs() <= half[..., 1])
    return inside & (z.abs() <= half[..., 2]) & (half > 0).all(2)


def _first_box(points: Tensor, boxes: Tensor) -> Tensor:
    inside = boxes_hold(boxes, points)
    first = inside.to(torch.uint8).argmax(0)
    return torch.where(inside.any(0), first, torch.full_like(first, -1))
