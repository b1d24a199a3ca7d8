"""Geometry of a single box."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cakdp_ext.ops.checks import as_float

CORNER_SIGNS = (
    (1, 1, -1),
    (-1, 1, -1),
    (-1, -1, -1),
    (1, -1, -1),
    (1, 1, 1),
    (-1, 1, 1),
    (-1, -1, 1),
    (1, -1, 1),
)


def limit_period(angle: Tensor, offset: float = 0.5, period: float = 2 * math.pi) -> Tensor:
    """Shift angles by whole periods into ``[-offset * period, (1 - offset) * period)``.

    Args:
        angle: any shape, radians.
        offset: share of the period that lies below zero.
        period: radians.

    Returns:
        Same shape; differentiable with derivative 1.
    """
    return angle - torch.floor(angle / period + offset) * period


def box_corners(boxes: Tensor) -> Tensor:
    """Give the eight corners of every box.

    Args:
        boxes: ``(N, 7)``, metres and radians, any frame.

    Returns:
        ``(N, 8, 3)``, metres, differentiable: the bottom face counter-clockwise seen from above, beginning at the
        corner with positive local x and y, then the top face in the same order; ``(0, 8, 3)`` for no boxes.

    Raises:
        ValueError: for another shape or a dtype that is not floating.
    """
    boxes = as_float(boxes, "boxes", (None, 7))
    signs = boxes.new_tensor(CORNER_SIGNS)
    local = signs * boxes[:, None, 3:6] / 2
    cos, sin = torch.cos(boxes[:, None, 6]), torch.sin(boxes[:, None, 6])
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return torch.stack((x, y, local[..., 2]), dim=-1) + boxes[:, None, :3]
