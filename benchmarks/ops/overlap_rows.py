"""Rows about boxes: overlaps, IoUs and NMS."""

from __future__ import annotations

import math

import rivals
from case import Case, Run, Work, moved, row
from rivals import OPENPCDET, openpcdet, torchvision
from scenes import Scene
from torch import Tensor

from cakdp_ext import ops

CLIP = 100
"""Operations for the overlap of two rotated rectangles: four edges, each cut by four sides and added up, 25 an edge."""
CLIP_UPRIGHT = 10
"""The same for upright ones: the lesser and larger of two ends twice, two lengths, a product, a ratio of sums."""


def overlap_work(boxes1: Tensor, boxes2: Tensor, overlaps: Tensor, each: int = CLIP) -> Work:
    """Boxes in, one number a pair out; only pairs that do overlap take arithmetic, all others might be ruled out."""
    return Work(moved(boxes1, boxes2, overlaps), each * int((overlaps > 0).sum()))


def size_of(boxes1: Tensor, boxes2: Tensor) -> str:
    return f"{len(boxes1):,} x {len(boxes2):,}"


@row("boxes_overlap_bev")
def _(scene: Scene) -> Case:
    one, two = scene.two_crowds
    return Case(
        size_of(one, two),
        lambda: ops.boxes_overlap_bev(one, two),
        overlap_work(one, two, ops.boxes_overlap_bev(one, two)),
        {
            OPENPCDET: lambda: rivals.openpcdet_overlap("boxes_overlap_bev_gpu", one, two, len(one), len(two)),
            "shapely": lambda: rivals.shapely_overlaps(one, two),
        },
    )


@row("iou_bev")
def _(scene: Scene) -> Case:
    one, two = scene.two_crowds
    return Case(
        size_of(one, two),
        lambda: ops.iou_bev(one, two),
        overlap_work(one, two, ops.iou_bev(one, two)),
        {OPENPCDET: lambda: openpcdet.boxes.boxes_iou_bev(one, two)},
    )


@row("iou_3d")
def _(scene: Scene) -> Case:
    one, two = scene.two_crowds
    return Case(
        size_of(one, two),
        lambda: ops.iou_3d(one, two),
        overlap_work(one, two, ops.iou_3d(one, two)),
        {OPENPCDET: lambda: openpcdet.boxes.boxes_iou3d_gpu(one, two)},
    )


@row("iou_3d, anchors")
def _(scene: Scene) -> Case:
    anchors, truth = scene.anchors, scene.truth
    return Case(
        size_of(anchors, truth),
        lambda: ops.iou_3d(anchors, truth),
        overlap_work(anchors, truth, ops.iou_3d(anchors, truth)),
        {
            OPENPCDET: lambda: openpcdet.boxes.boxes_iou3d_gpu(anchors, truth),
            "shapely": lambda: rivals.shapely_overlaps(anchors, truth),
        },
    )


@row("boxes_overlap_bev_aligned")
def _(scene: Scene) -> Case:
    one, two = scene.box_pairs
    return Case(
        f"{len(one):,}",
        lambda: ops.boxes_overlap_bev_aligned(one, two),
        overlap_work(one, two, ops.boxes_overlap_bev_aligned(one, two)),
        {
            OPENPCDET: lambda: rivals.openpcdet_overlap("boxes_aligned_overlap_bev_gpu", one, two, len(one), 1),
            "shapely": lambda: rivals.shapely_aligned_overlaps(one, two),
        },
    )


@row("iou_bev_aligned")
def _(scene: Scene) -> Case:
    one, two = scene.box_pairs
    return Case(
        f"{len(one):,}",
        lambda: ops.iou_bev_aligned(one, two),
        overlap_work(one, two, ops.iou_bev_aligned(one, two)),
    )


@row("iou_3d_aligned")
def _(scene: Scene) -> Case:
    one, two = scene.box_pairs
    return Case(
        f"{len(one):,}",
        lambda: ops.iou_3d_aligned(one, two),
        overlap_work(one, two, ops.iou_3d_aligned(one, two)),
        {OPENPCDET: lambda: openpcdet.boxes.boxes_aligned_iou3d_gpu(one, two)},
    )


@row("nearest_bev_iou")
def _(scene: Scene) -> Case:
    anchors, truth = scene.anchors, scene.truth
    ends = rivals.nearest_rectangles(anchors), rivals.nearest_rectangles(truth)
    return Case(
        size_of(anchors, truth),
        lambda: ops.nearest_bev_iou(anchors, truth),
        overlap_work(anchors, truth, ops.nearest_bev_iou(anchors, truth), CLIP_UPRIGHT),
        {
            OPENPCDET: lambda: openpcdet.box_utils.boxes3d_nearest_bev_iou(anchors, truth),
            "torchvision": lambda: torchvision.ops.box_iou(*ends),
        },
    )


def nms_work(boxes: Tensor, kept: Tensor, groups: Tensor | None = None, axis_aligned: bool = False) -> Work:
    """Scores are sorted; each box that goes meets one that stays, and those that stay meet where they overlap."""
    stays = boxes[kept].clone()
    if axis_aligned:
        stays[:, 6] = 0
    meet = ops.iou_bev(stays, stays) > 0
    if groups is not None:
        meet &= groups[kept][:, None] == groups[kept]
    pairs = len(boxes) - len(kept) + (int(meet.sum()) - len(kept)) / 2
    sorting = len(boxes) * math.log2(len(boxes))
    bytes_in = moved(boxes, groups) + 4 * len(boxes)  # boxes, groups, scores
    return Work(bytes_in + moved(kept), sorting + pairs * (CLIP_UPRIGHT if axis_aligned else CLIP))


def nms_case(scene: Scene, full: int, threshold: float = 0.7, compat: bool = False, axis_aligned: bool = False) -> Case:
    """One frame of boxes."""
    boxes, scores = scene.proposals[: scene.number(full)], scene.scores[: scene.number(full)]
    ends = rivals.upright_rectangles(boxes)

    def ours() -> Tensor:
        return ops.nms(boxes, scores, threshold, axis_aligned=axis_aligned, compat=compat)

    others: dict[str, Run] = {OPENPCDET: lambda: openpcdet.boxes.nms_gpu(boxes, scores, threshold)}
    if axis_aligned:
        others = {
            OPENPCDET: lambda: openpcdet.boxes.nms_normal_gpu(boxes, scores, threshold),
            "torchvision": lambda: torchvision.ops.nms(ends, scores, threshold),
        }
    return Case(f"{len(boxes):,}", ours, nms_work(boxes, ours(), None, axis_aligned), others)


@row("nms at 0.7, 4,096 boxes")
def _(scene: Scene) -> Case:
    return nms_case(scene, 4096)


@row("nms at 0.1, 4,096 boxes")
def _(scene: Scene) -> Case:
    return nms_case(scene, 4096, 0.1)


@row("nms at 0.7, 9,000 boxes")
def _(scene: Scene) -> Case:
    return nms_case(scene, 9000)


@row("nms at 0.7, 16,384 boxes")
def _(scene: Scene) -> Case:
    return nms_case(scene, 16_384)


@row("nms by OpenPCDet's rule")
def _(scene: Scene) -> Case:
    return nms_case(scene, 4096, compat=True)


@row("nms, axis-aligned")
def _(scene: Scene) -> Case:
    return nms_case(scene, 4096, axis_aligned=True)


def nms_of_frames(scene: Scene, axis_aligned: bool) -> Case:
    """Four frames at once."""
    boxes, scores = scene.proposals, scene.scores
    frames = (scene.counts(*range(len(boxes))) % 4).long()
    ends, by_frame = rivals.upright_rectangles(boxes), [(frames == frame).nonzero()[:, 0] for frame in range(4)]

    def ours() -> Tensor:
        return ops.nms(boxes, scores, 0.7, groups=frames, axis_aligned=axis_aligned)

    def one_after_another() -> object:
        run = openpcdet.boxes.nms_normal_gpu if axis_aligned else openpcdet.boxes.nms_gpu
        return [run(boxes[rows], scores[rows], 0.7) for rows in by_frame]

    others: dict[str, Run] = {OPENPCDET: one_after_another}
    if axis_aligned:
        others["torchvision"] = lambda: torchvision.ops.batched_nms(ends, scores, frames, 0.7)
    return Case(f"{len(boxes):,}", ours, nms_work(boxes, ours(), frames, axis_aligned), others)


@row("nms of 4 frames")
def _(scene: Scene) -> Case:
    return nms_of_frames(scene, axis_aligned=False)


@row("nms of 4 frames, axis-aligned")
def _(scene: Scene) -> Case:
    return nms_of_frames(scene, axis_aligned=True)
