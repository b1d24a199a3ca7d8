"""``pcdet.ops.roiaware_pool3d.roiaware_pool3d_cuda``: points in boxes, RoI-aware pooling."""

from __future__ import annotations

import torch
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


def forward(
    rois: Tensor,
    points: Tensor,
    features: Tensor,
    argmax: Tensor,
    point_indices: Tensor,
    pooled: Tensor,
    pool_method: int,
) -> int:
    """Pool the features of the points in each cell of each box.

    Args:
        rois: ``(R, 7)`` metres and radians.
        points: ``(N, 3)`` metres.
        features: ``(N, C)``.
        argmax: ``(R, X, Y, Z, C)`` int32, with ``pool_method`` 0 filled with the winning points, -1 in empty cells.
        point_indices: ``(R, X, Y, Z, 1 + K)`` int32, filled: how many points count, at most K, then which.
        pooled: ``(R, X, Y, Z, C)``, filled; 0 in empty cells.
        pool_method: 0 for the maximum, 1 for the mean.
    """
    width = point_indices.shape[-1] - 1
    shape = (int(pooled.shape[1]), int(pooled.shape[2]), int(pooled.shape[3]))
    cells = ops.group_by_cell(points, rois, ops.neighbors_in_boxes(points, rois), shape, width)
    values, winner = ops.pool_cells(features, cells, "avg" if pool_method else "max")
    pooled.copy_(values)
    point_indices.copy_(cells.table(width))
    if winner is not None:
        argmax.copy_(winner)
    return 1


def backward(point_indices: Tensor, argmax: Tensor, grad_out: Tensor, grad_in: Tensor, pool_method: int) -> int:
    """Add to ``grad_in (N, C)`` what ``grad_out (R, X, Y, Z, C)`` says about each point; the rest as in forward."""
    if len(grad_in) == 0:
        return 1  # no point, nothing to add to, and no row that an empty cell could name
    channels = grad_in.shape[1]
    grad = grad_out.reshape(-1, channels)
    if pool_method == 0:
        winner = argmax.reshape(-1, channels).long()
        grad_in.scatter_add_(0, winner.clamp(min=0), grad.masked_fill(winner < 0, 0))
        return 1
    table = point_indices.reshape(-1, point_indices.shape[-1]).long()
    slots = torch.arange(table.shape[1] - 1, device=table.device)
    cell, slot = (slots < table[:, :1]).nonzero(as_tuple=True)
    grad_in.index_add_(0, table[cell, 1 + slot], grad[cell] / table[cell, :1])
    return 1


def _widened(boxes: Tensor, margin: float) -> Tensor:
    wider = boxes.clone()
    wider[..., 3:5] += 2 * margin
    return wider
