"""How much ground truths and detections of the same frame overlap, as lists of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cakdp_ext import ops
from cakdp_ext.evaluation.kitti_annotations import LabelledObjects, ScoredObjects

PAIR_LIMIT = 1 << 18
"""Pairs held at once while overlaps are computed."""

DONT_CARE = "dontcare"


class InFrames(Protocol):
    """Objects of a data set, frame after frame, as :class:`Objects` holds them."""

    @property
    def starts(self) -> np.ndarray:
        """Give the first object of each frame, and the number of all: ``(F + 1,)`` int64."""
        ...

    @property
    def frames(self) -> np.ndarray:
        """Give the frame of each object: ``(N,)`` int64."""
        ...


@dataclass(frozen=True)
class PairOverlaps:
    """The pairs that overlap at all, by ground truth, then by detection.

    Attributes:
        ground_truth: ``(P,)`` int64.
        detection: ``(P,)`` int64.
        iou: ``(P,)`` float64 in (0, 1].
    """

    ground_truth: np.ndarray
    detection: np.ndarray
    iou: np.ndarray

    def between(self, ground_truth: np.ndarray, detections: np.ndarray) -> PairOverlaps:
        """Keep the pairs of ground truths ``(G,)`` bool and detections ``(D,)`` bool."""
        return self._where(ground_truth[self.ground_truth] & detections[self.detection])

    def above(self, bound: float) -> PairOverlaps:
        """Keep the pairs that overlap more than that."""
        return self._where(self.iou > bound)

    def _where(self, keep: np.ndarray) -> PairOverlaps:
        return PairOverlaps(self.ground_truth[keep], self.detection[keep], self.iou[keep])


def image_overlaps(ground_truth: LabelledObjects, detections: ScoredObjects) -> PairOverlaps:
    """Compute the IoU of image boxes within each frame.

    Args:
        ground_truth: G objects; DontCare regions are left out.
        detections: D objects of the same frames.

    Returns:
        The pairs that overlap; none for no objects.
    """
    parts = []
    for truth, found in same_frame_pairs(ground_truth, detections, ground_truth.names != DONT_CARE):
        boxes1, boxes2 = ground_truth.bbox[truth], detections.bbox[found]
        shared = _image_intersection(boxes1, boxes2)
        hit = np.flatnonzero(shared > 0)
        union = _image_area(boxes1[hit]) + _image_area(boxes2[hit]) - shared[hit]
        parts.append((truth[hit], found[hit], shared[hit] / union))
    return _collect(parts)


def dont_care_cover(ground_truth: LabelledObjects, detections: ScoredObjects) -> np.ndarray:
    """Compute how much of each detection's image box lies in the DontCare region that holds most of it.

    Args:
        ground_truth: G objects, of which the DontCare regions are used.
        detections: D objects of the same frames.

    Returns:
        ``(D,)`` in [0, 1]; 0 in a frame without such regions.
    """
    cover = np.zeros(len(detections.names))
    for region, found in same_frame_pairs(ground_truth, detections, ground_truth.names == DONT_CARE):
        boxes = detections.bbox[found]
        shared = _image_intersection(ground_truth.bbox[region], boxes)
        hit = np.flatnonzero(shared > 0)
        np.maximum.at(cover, found[hit], shared[hit] / _image_area(boxes[hit]))
    return cover


def box_overlaps(ground_truth: LabelledObjects, detections: ScoredObjects) -> dict[str, PairOverlaps]:
    """Compute the IoU of rotated footprints and of volumes within each frame.

    Args:
        ground_truth: G objects; DontCare regions are left out.
        detections: D objects of the same frames.

    Returns:
        ``bev`` and ``3d``: the pairs that overlap; none for no objects. A box with a size that is not positive
        overlaps nothing.
    """
    bev: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    volume: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for truth, found in same_frame_pairs(ground_truth, detections, ground_truth.names != DONT_CARE):
        boxes1, boxes2 = torch.from_numpy(ground_truth.boxes), torch.from_numpy(detections.boxes)
        for parts, iou_of in ((bev, ops.iou_bev_aligned), (volume, ops.iou_3d_aligned)):
            iou = iou_of(boxes1[truth], boxes2[found]).numpy()
            hit = np.flatnonzero(iou)
            truth, found = truth[hit], found[hit]
            parts.append((truth, found, iou[hit]))
    return {"bev": _collect(bev), "3d": _collect(volume)}


def same_frame_pairs(first: InFrames, second: InFrames, keep: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give every pair of a kept first and a second object of one frame, about PAIR_LIMIT at a time."""
    chosen = np.flatnonzero(keep)
    frames = first.frames[chosen]
    counts = np.diff(second.starts)[frames]
    block = (np.cumsum(counts) - counts) // PAIR_LIMIT
    for rows in np.split(np.arange(len(chosen)), np.flatnonzero(np.diff(block)) + 1):
        count = counts[rows]
        before = np.cumsum(count) - count
        within = np.arange(count.sum()) - np.repeat(before, count)
        yield np.repeat(chosen[rows], count), np.repeat(second.starts[frames[rows]], count) + within


def _image_intersection(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Area that aligned image boxes share, ``(P,)``; 0 unless both sides of both boxes are positive."""
    low = np.maximum(boxes1[:, :2], boxes2[:, :2])
    high = np.minimum(boxes1[:, 2:], boxes2[:, 2:])
    return np.clip(high - low, 0, None).prod(axis=1)


def _image_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _collect(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> PairOverlaps:
    truth, found, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    return PairOverlaps(truth, found, iou)
