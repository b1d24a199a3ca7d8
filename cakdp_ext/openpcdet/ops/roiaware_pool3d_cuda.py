"""``pcdet.ops.roiaware_pool3d.roiaware_pool3d_cuda``: points in boxes, RoI-aware pooling."""

from __future__ import annotations

from torch import Tensor

from cakdp_ext import ops

MARGIN_GPU = 1e-5
MARGIN_CPU = 1e-2


def points_in_boxes_gpu(boxes: Tensor, points: Tensor, box_of_point: Tensor) -> int:
    """Fill ``box_of_point (B, M)`` int32 with the first of ``boxes (B, T, 7)`` that holds each of ``points (B, M, 3)``.

    Entries of points in no box stay as they are. A box reaches ``MARGIN_GPU`` metres further to its four sides.
    """
    found = ops.points_in_boxes(points, _widened(boxes, MARGIN_GPU))
    box_of_point.copy_(found.to(box_of_point.dtype).where(found >= 0, box_of_point))
    return 1


def points_in_boxes_cpu(boxes: Tensor, points: Tensor, is_inside: Tensor) -> int:
    """Fill ``is_inside (N, M)`` int32 with 1 where ``boxes (N, 7)`` hold ``points (M, 3)``, else 0.

    A box reaches ``MARGIN_CPU`` metres further to its four sides.
    """
    for row, box in zip(is_inside, _widened(boxes, MARGIN_CPU).split(1), strict=True):
        row.copy_(ops.points_in_boxes(points, box) == 0)
    return 1


def _widened(boxes: Tensor, margin: float) -> Tensor:
    wider = boxes.clone()
    wider[..., 3:5] += 2 * margin
    return wider
