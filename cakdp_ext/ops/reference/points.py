"""Which box a point lies in."""

from __future__ import annotations

import torch
from torch import Tensor

DENSE_LIMIT = 1 << 20
"""Point-box pairs tested at once."""


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Test every point against every box in the box's own frame.

    Args:
        points: ``(N, 3)``.
        boxes: ``(M, 7)``.

    Returns:
        ``(N,)`` int64, the first box that holds the point, -1 for none.
    """
    if len(points) == 0 or len(boxes) == 0:
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    return torch.cat([_first_box(part, boxes) for part in points.split(max(1, DENSE_LIMIT // len(boxes)))])


def _first_box(points: Tensor, boxes: Tensor) -> Tensor:
    x, y, z = (points[:, None] - boxes[:, :3]).unbind(-1)
    cos, sin = torch.cos(boxes[:, 6]), torch.sin(boxes[:, 6])
    half = boxes[:, 3:6] / 2
    inside = ((x * cos + y * sin).abs() <= half[:, 0]) & ((y * cos - x * sin).abs() <= half[:, 1])
    inside &= (z.abs() <= half[:, 2]) & (half > 0).all(1)
    first = inside.to(torch.uint8).argmax(1)
    return torch.where(inside.any(1), first, torch.full_like(first, -1))
