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
        points: ``(N, 3)``, metres.
        boxes: ``(M, 7)``, metres and radians, same frame, device and dtype; one of no size or with a NaN holds nothing.

    Returns:
        ``(N,)`` int64, -1 where no box holds the point; ``(0,)`` for no points.

    Raises:
        ValueError: for another shape, or points and boxes that differ in device or dtype.
    """
    points, boxes = as_float(points, "points", (None, 3)), as_float(boxes, "boxes", (None, 7))
    check_alike(points, boxes, ("points", "boxes"))
    run = native.implementation("points_in_boxes", points.device) or reference.points_in_boxes
    return run(points, boxes)
