"""Which box a point lies in."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_float, check_alike
from cakdp_ext.ops.reference import points as reference


@torch.no_grad()
def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Find the first box that holds each point; faces belong to their box.

    Args:
        points: ``(N, 3)``, metres; or ``(B, N, 3)``, those of B frames.
        boxes: ``(M, 7)``, metres and radians, same frame, device and dtype; one of no size or with a NaN holds nothing.
            ``(B, M, 7)`` for the points of B frames: a point is looked for in the boxes of its own frame only.

    Returns:
        ``(N,)`` or ``(B, N)`` int64, -1 where no box holds the point; ``(0,)`` for no points.

    Raises:
        ValueError: for another shape, or points and boxes that differ in device or dtype.
    """
    if points.dim() != 3:
        points, boxes = as_float(points, "points", (None, 3)), as_float(boxes, "boxes", (None, 7))
        return points_in_boxes(points[None], boxes[None])[0]
    points = as_float(points, "points", (None, None, 3))
    boxes = as_float(boxes, "boxes", (len(points), None, 7))
    check_alike(points, boxes, ("points", "boxes"))
    run = native.implementation("points_in_boxes", points.device) or reference.points_in_boxes
    return run(points, boxes)
