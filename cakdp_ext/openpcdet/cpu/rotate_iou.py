"""``rotate_iou`` of OpenPCDet's KITTI and ONCE evaluations: overlaps of rotated rectangles, on our box ops.

They are exact, as the original's are: its margin of a centimetre is a matter of its NMS and losses alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cakdp_ext import ops

IOU, OVER_QUERY, OVER_BOX, AREA = -1, 0, 1, 2


def rotate_iou_gpu_eval(
    boxes: np.ndarray, query_boxes: np.ndarray, criterion: int = IOU, device_id: int = 0
) -> np.ndarray:
    """Compare every rectangle with every other.

    Args:
        boxes: ``(N, 5)`` centre, size in metres, angle in radians, clockwise.
        query_boxes: ``(K, 5)`` likewise.
        criterion: -1 for the IoU, 0 for the shared area over the query's, 1 over the box's, 2 for the area itself.
        device_id: ignored.

    Returns:
        ``(N, K)`` float32.

    Raises:
        ValueError: for another criterion.
    """
    if criterion not in (IOU, OVER_QUERY, OVER_BOX, AREA):
        raise ValueError(f"criterion must be -1 (IoU), 0, 1 or 2 (shared area), got {criterion}")
    boxes1, boxes2 = _on_ground(boxes), _on_ground(query_boxes)
    shared = ops.boxes_overlap_bev(boxes1, boxes2)
    return (shared / _divisor(criterion, shared, _areas(boxes1)[:, None], _areas(boxes2))).numpy()


def _divisor(criterion: int, shared: Tensor, area1: Tensor, area2: Tensor) -> Tensor:
    if criterion == IOU:
        return (area1 + area2 - shared).clamp(min=1e-8)
    if criterion == AREA:
        return torch.ones_like(shared)
    return (area2 if criterion == OVER_QUERY else area1).clamp(min=1e-8)


def _on_ground(rectangles: np.ndarray) -> Tensor:
    """Give ``(N, 5)`` rectangles as boxes ``(N, 7)`` on the ground, a metre high; angles turn the other way there."""
    values = torch.as_tensor(np.asarray(rectangles, dtype=np.float32)).reshape(-1, 5)
    boxes = values.new_zeros(len(values), 7)
    boxes[:, :2], boxes[:, 3:5], boxes[:, 5], boxes[:, 6] = values[:, :2], values[:, 2:4], 1, -values[:, 4]
    return boxes


def _areas(boxes: Tensor) -> Tensor:
    return boxes[:, 3] * boxes[:, 4]
