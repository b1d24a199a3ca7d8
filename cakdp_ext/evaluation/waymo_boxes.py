"""Waymo's ground truths and detections of all frames as arrays, and which of them overlap enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch

from cakdp_ext import ops
from cakdp_ext.evaluation.overlaps import same_frame_pairs
from cakdp_ext.evaluation.tables import read_table
from cakdp_ext.types import Annotations

MIN_OVERLAP = {"Vehicle": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5, "Sign": 0.5}
"""Class -> least 3D IoU of a match."""
HARD_POINTS = 5
"""An object that nobody called hard is of LEVEL_1 with more points than this."""
SIZES = (0.01, 1e6)
"""A box with a size out of this range, in metres, overlaps nothing."""
IOU_STEPS = 1_000_000
"""Matching maximises sums of IoUs in whole steps of this resolution."""

Boxes = TypeVar("Boxes", bound="BoxesInFrames")


@dataclass(frozen=True)
class BoxesInFrames:
    """Objects of a data set, frame after frame.

    Attributes:
        starts: ``(F + 1,)`` int64: frame f holds objects ``starts[f]`` to ``starts[f + 1] - 1``.
        names: ``(N,)`` class names in lower case.
        boxes: ``(N, 7)`` float64.
    """

    starts: np.ndarray
    names: np.ndarray
    boxes: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """Frame of each object, ``(N,)`` int64."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def where(self: Boxes, mask: np.ndarray) -> Boxes:
        """Keep some of the objects, and every frame."""
        before = np.concatenate(([0], np.cumsum(mask)))
        kept = {item.name: getattr(self, item.name)[mask] for item in fields(self) if item.name != "starts"}
        return type(self)(starts=before[self.starts], **kept)

    def of_class(self: Boxes, name: str) -> Boxes:
        """Keep the objects of one class."""
        return self.where(self.names == name.lower())


@dataclass(frozen=True)
class Truths(BoxesInFrames):
    """Ground truths and how hard each is: ``levels (N,)`` is 1 or 2."""

    levels: np.ndarray


@dataclass(frozen=True)
class Finds(BoxesInFrames):
    """Detections and their scores ``(N,)`` float32 in [0, 1]."""

    scores: np.ndarray


@dataclass(frozen=True)
class OverlappingPairs:
    """Pairs of one class that may be matched.

    Attributes:
        truths: ``(P,)`` int64.
        finds: ``(P,)`` int64.
        steps: ``(P,)`` int64, 3D IoU in steps of ``1 / IOU_STEPS``.
    """

    truths: np.ndarray
    finds: np.ndarray
    steps: np.ndarray


def read_truths(annotations: Annotations) -> Truths:
    """Read the ground truths of F frames; objects without a point inside are left out.

    Args:
        annotations: one mapping a frame: name, gt_boxes_lidar ``(n, 7)`` or wider, difficulty (0 where nobody called
            the object hard or easy), num_points_in_gt.

    Raises:
        ValueError: for a missing key, another shape or a number that is not finite; it names the frame.
    """
    columns = {"boxes": (7,), "difficulty": (), "num_points_in_gt": ()}
    table = read_table([_with_boxes(each, "gt_boxes_lidar") for each in annotations], columns, "ground truth")
    points, levels = table["num_points_in_gt"], table["difficulty"].astype(np.int64)
    levels = np.where(levels == 0, np.where(points > HARD_POINTS, 1, 2), levels)
    return Truths(table["starts"], table["names"], table["boxes"], levels).where(points > 0)


def read_finds(annotations: Annotations) -> Finds:
    """Read the detections of F frames.

    Args:
        annotations: one mapping a frame: name, boxes_lidar ``(n, 7)`` or wider, score in [0, 1].

    Raises:
        ValueError: for a missing key, another shape, a number that is not finite or a score out of range.
    """
    columns = {"boxes": (7,), "score": ()}
    table = read_table([_with_boxes(each, "boxes_lidar") for each in annotations], columns, "detections")
    scores = table["score"].astype(np.float32)
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(
            f"Waymo's evaluation takes scores in [0, 1], got {scores.min()} to {scores.max()}; "
            "set MODEL.POST_PROCESSING.OUTPUT_RAW_SCORE: False"
        )
    return Finds(table["starts"], table["names"], table["boxes"], scores)


def overlapping_pairs(truths: Truths, finds: Finds, min_overlap: float) -> OverlappingPairs:
    """Find the pairs of one frame whose 3D IoU reaches ``min_overlap``.

    Args:
        truths: of one class.
        finds: of the same class.
        min_overlap: in (0, 1].

    Returns:
        The pairs by ground truth, then by detection.
    """
    parts = [np.zeros((3, 0), dtype=np.int64)]
    reach1, reach2 = (np.hypot(each.boxes[:, 3], each.boxes[:, 4]) / 2 for each in (truths, finds))
    boxes1, boxes2 = torch.from_numpy(truths.boxes), torch.from_numpy(finds.boxes)
    for truth, find in same_frame_pairs(truths, finds, _has_size(truths.boxes)):
        apart = truths.boxes[truth, :2] - finds.boxes[find, :2]
        near = (np.hypot(apart[:, 0], apart[:, 1]) <= reach1[truth] + reach2[find]) & _has_size(finds.boxes)[find]
        truth, find = truth[near], find[near]
        iou = ops.iou_3d_aligned(boxes1[truth], boxes2[find]).numpy().astype(np.float32)
        steps = np.floor(iou.astype(np.float64) * IOU_STEPS + 0.5).astype(np.int64)
        parts.append(np.stack((truth, find, steps))[:, iou >= np.float32(min_overlap)])
    return OverlappingPairs(*np.concatenate(parts, axis=1))


def _has_size(boxes: np.ndarray) -> np.ndarray:
    return np.all((boxes[:, 3:6] > SIZES[0]) & (boxes[:, 3:6] < SIZES[1]), axis=1)


def _with_boxes(frame: Mapping[str, Any], key: str) -> dict[str, Any]:
    if key not in frame:
        raise ValueError(f"annotations lack {key}; keys there: {', '.join(map(str, frame))}")
    boxes = np.asarray(frame[key])
    return {**frame, "boxes": boxes[:, :7] if boxes.ndim == 2 else boxes}
