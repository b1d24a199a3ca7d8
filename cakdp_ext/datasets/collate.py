"""Frames to batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cakdp_ext.datasets.frame import Frame
from cakdp_ext.types import Batch


def collate(frames: Sequence[Frame]) -> Batch:
    """Put frames into one batch; the frame's index goes in front of voxel coordinates and points.

    Args:
        frames: B frames; any of them may be without voxels, points or objects.

    Returns:
        The batch on the CPU; ``points`` is None as soon as one frame does not keep its points.

    Raises:
        ValueError: for no frames at all.
    """
    if not frames:
        raise ValueError("a batch needs at least one frame, got none")
    gt_boxes, gt_labels = _pad_objects(frames)
    points = [frame.points for frame in frames if frame.points is not None]
    return Batch(
        batch_size=len(frames),
        voxels=torch.from_numpy(np.concatenate([frame.voxels for frame in frames])),
        voxel_coords=torch.from_numpy(_with_batch_index([frame.voxel_coords for frame in frames])),
        voxel_num_points=torch.from_numpy(np.concatenate([frame.voxel_num_points for frame in frames])),
        gt_boxes=torch.from_numpy(gt_boxes),
        gt_labels=torch.from_numpy(gt_labels),
        frame_ids=tuple(frame.frame_id for frame in frames),
        points=torch.from_numpy(_with_batch_index(points)) if len(points) == len(frames) else None,
        meta=tuple(frame.meta for frame in frames),
    )


def _with_batch_index(rows: Sequence[np.ndarray]) -> np.ndarray:
    index = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    return np.concatenate((index[:, None].astype(rows[0].dtype), np.concatenate(rows)), axis=1)


def _pad_objects(frames: Sequence[Frame]) -> tuple[np.ndarray, np.ndarray]:
    most = max(len(frame.gt_boxes) for frame in frames)
    boxes = np.zeros((len(frames), most, 7), dtype=np.float32)
    labels = np.full((len(frames), most), -1, dtype=np.int64)
    for row, frame in enumerate(frames):
        boxes[row, : len(frame.gt_boxes)] = frame.gt_boxes
        labels[row, : len(frame.gt_labels)] = frame.gt_labels
    return boxes, labels
