"""Which IoU the IoU head should have predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext import ops

MAX_PAIRS = 1 << 21


@torch.no_grad()
def anchor_iou_targets(anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor, num_classes: int) -> Tensor:
    """Label every anchor with its best axis-aligned nearest-BEV IoU, in the class channel of that ground truth.

    Among equally good ground truths the first counts. No gradient flows.

    Args:
        anchors: ``(A, 7)`` metres, radians, LiDAR frame.
        gt_boxes: ``(M, 7)`` of one frame, padded rows allowed.
        gt_labels: ``(M,)`` 0-based, -1 where padded.
        num_classes: channels C of the head.

    Returns:
        ``(A, C)`` in [0, 1]; zeros where nothing overlaps and where there is no ground truth.

    Raises:
        ValueError: for a label that the head has no channel for.

    Source:
        CaKDP, Eq. 6, the IoU label of the released anchor head.
    """
    gt_boxes, gt_labels = _without_padding(gt_boxes, gt_labels, num_classes)
    targets = anchors.new_zeros((anchors.shape[0], num_classes))
    for start, stop in _chunks(anchors.shape[0], gt_boxes.shape[0]):
        best = ops.nearest_bev_iou(anchors[start:stop], gt_boxes.to(anchors.dtype)).max(dim=1)
        targets[start:stop].scatter_(1, gt_labels[best.indices][:, None], best.values[:, None])
    return targets


@torch.no_grad()
def decoded_iou_targets(boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, num_classes: int) -> Tensor:
    """Label every predicted box, class by class, with its 3D IoU with the best ground truth of that class.

    No gradient flows to the boxes. A box with a coordinate that is not finite overlaps nothing.

    Args:
        boxes: ``(A, 7)`` decoded, metres, radians, LiDAR frame.
        gt_boxes: ``(M, 7)`` of one frame, padded rows allowed.
        gt_labels: ``(M,)`` 0-based, -1 where padded.
        num_classes: channels C of the head.

    Returns:
        ``(A, C)`` in [0, 1]; zeros where nothing overlaps and where there is no ground truth.

    Raises:
        ValueError: for a label that the head has no channel for.

    Source:
        CaKDP, Eq. 6, with the IoU of the prediction instead of that of the anchor.
    """
    gt_boxes, gt_labels = _without_padding(gt_boxes, gt_labels, num_classes)
    boxes = boxes.to(gt_boxes.dtype)
    targets = boxes.new_zeros((boxes.shape[0], num_classes))
    for start, stop in _chunks(boxes.shape[0], gt_boxes.shape[0]):
        iou = ops.iou_3d(boxes[start:stop], gt_boxes)
        targets[start:stop].scatter_reduce_(1, gt_labels.expand_as(iou), iou, reduce="amax")
    return targets


@torch.no_grad()
def center_cell_targets(
    centers: Tensor, cell_size: tuple[float, float], gt_boxes: Tensor, gt_labels: Tensor, num_classes: int
) -> Tensor:
    """Label the cells that hold the centre of a ground-truth box, in its class channel, with 1.

    A box whose centre lies beyond the map counts to the border cell beside it, as in a center head's heat map; one
    within rounding errors of a border between two cells counts to either. No gradient flows.

    Args:
        centers: ``(A, 2)`` metric x, y of the cell behind each prediction, in any order, all cells of the map.
        cell_size: metres of a cell along x and y: stride times voxel size.
        gt_boxes: ``(M, 7)`` of one frame, padded rows allowed.
        gt_labels: ``(M,)`` 0-based, -1 where padded.
        num_classes: channels C of the head.

    Returns:
        ``(A, C)`` of 0 and 1; zeros where there is no ground truth.

    Raises:
        ValueError: for a label that the head has no channel for.

    Source:
        CaKDP, Eq. 6, the IoU label of the released center head.
    """
    gt_boxes, gt_labels = _without_padding(gt_boxes, gt_labels, num_classes)
    if len(centers) == 0:
        return centers.new_zeros((0, num_classes))
    positions, size = centers.double(), centers.new_tensor(cell_size, dtype=torch.float64)
    low = positions.amin(dim=0) - size / 2
    cells = ((positions - low) / size).floor().long()
    last = cells.amax(dim=0)
    occupied = ((gt_boxes[:, :2].double() - low) / size).floor().long().clamp(min=0).minimum(last)
    channels = torch.arange(num_classes, device=centers.device)
    outputs = _number(cells, last)[:, None] * num_classes + channels
    return torch.isin(outputs, _number(occupied, last) * num_classes + gt_labels).to(centers.dtype)


def _number(cells: Tensor, last: Tensor) -> Tensor:
    """Number cells ``(N, 2)``, given as column and row, through the map whose last cell is ``last``."""
    return cells[:, 1] * (last[0] + 1) + cells[:, 0]


def _without_padding(gt_boxes: Tensor, gt_labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    real = gt_labels >= 0
    gt_boxes, gt_labels = gt_boxes[real], gt_labels[real].long()
    if gt_labels.numel() and int(gt_labels.max()) >= num_classes:
        raise ValueError(
            f"expected 0-based gt_labels below num_classes = {num_classes}, got {int(gt_labels.max())}; "
            "drop ground truth of classes that the head does not know"
        )
    return gt_boxes, gt_labels


def _chunks(num_boxes: int, num_gt: int) -> list[tuple[int, int]]:
    """Cut the boxes so that no pairwise tensor holds more than about MAX_PAIRS values; none without ground truth."""
    if num_gt == 0:
        return []
    size = max(MAX_PAIRS // num_gt, 1)
    return [(start, min(start + size, num_boxes)) for start in range(0, num_boxes, size)]
