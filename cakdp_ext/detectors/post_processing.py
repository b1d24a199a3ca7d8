"""Which predictions become detections?"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.refinement import IoURefinement, refine_scores
from cakdp_ext.types import DensePredictions, Detections

NMS_TYPES = {"nms_gpu": False, "nms_normal_gpu": True}
"""OpenPCDet's names (its functions; the device does not matter here) -> whether headings are set aside."""

EVAL_METRICS = ("kitti", "waymo")


@dataclass(frozen=True)
class NMSConfig:
    """Keys of POST_PROCESSING.NMS_CONFIG.

    Attributes:
        multi_classes_nms: each class by itself, so that a box may be found for several; else the best class counts.
        nms_type: ``nms_gpu`` (rotated BEV IoU) or ``nms_normal_gpu`` (headings set aside).
        nms_thresh: IoU above which the lower of two scores goes.
        nms_pre_maxsize: how many of the highest scores are looked at, None for all.
        nms_post_maxsize: how many may remain, None for all.
    """

    multi_classes_nms: bool = False
    nms_type: str = "nms_gpu"
    nms_thresh: float = 0.01
    nms_pre_maxsize: int | None = 4096
    nms_post_maxsize: int | None = 500

    def __post_init__(self) -> None:
        if self.nms_type not in NMS_TYPES:
            raise ValueError(f"NMS_TYPE must be one of {', '.join(NMS_TYPES)}, got {self.nms_type!r}")

    def keep(self, boxes: Tensor, scores: Tensor, groups: Tensor | None = None) -> Tensor:
        """Give the indices ``(K,)`` that remain of ``boxes (N, 7)``, best first; see :func:`ops.nms`."""
        run = partial(ops.nms, groups=groups, axis_aligned=NMS_TYPES[self.nms_type])
        return run(boxes, scores, self.nms_thresh, pre_max=self.nms_pre_maxsize, post_max=self.nms_post_maxsize)


@dataclass(frozen=True)
class CommonPostProcessing:
    """Keys of MODEL.POST_PROCESSING that do not depend on the dense head.

    Attributes:
        iou_refinement: what the IoU branch does; by default, its mask where there is a branch.
        recall_thresh_list: IoUs at which the engine counts recalled objects.
        eval_metric: which metric the engine computes, one of ``EVAL_METRICS``; it must be the data set's.
        output_raw_score: must be False: detections have scores in [0, 1].
    """

    iou_refinement: IoURefinement | None = None
    recall_thresh_list: tuple[float, ...] = (0.3, 0.5, 0.7)
    eval_metric: str = "kitti"
    output_raw_score: bool = False

    def __post_init__(self) -> None:
        if self.output_raw_score:
            raise ValueError("OUTPUT_RAW_SCORE must be False; detections have scores in [0, 1]")
        if self.eval_metric not in EVAL_METRICS:
            raise ValueError(f"EVAL_METRIC must be one of {', '.join(EVAL_METRICS)}, got {self.eval_metric!r}")


@dataclass(frozen=True)
class PostProcessingConfig(CommonPostProcessing):
    """Keys of MODEL.POST_PROCESSING where boxes are thinned out behind the dense head.

    Attributes:
        score_thresh: lowest score of a detection, None for no limit.
        nms_config: how overlapping boxes are thinned out.
    """

    score_thresh: float | None = 0.1
    nms_config: NMSConfig = field(default_factory=NMSConfig)


@dataclass(frozen=True)
class CenterPostProcessing:
    """Keys of DENSE_HEAD.POST_PROCESSING of a center head.

    Attributes:
        score_thresh: a detection scores above it, None for no limit.
        post_center_limit_range: ``(x, y, z, x, y, z)`` metres, lowest and highest centre of a detection, None for no
            limit.
        max_obj_per_sample: so many of the highest scores of a frame and part are looked at.
        nms_config: how overlapping boxes of a part are thinned out, whatever their classes.
    """

    score_thresh: float | None = 0.1
    post_center_limit_range: tuple[float, ...] | None = None
    max_obj_per_sample: int = 500
    nms_config: NMSConfig = field(default_factory=NMSConfig)

    def __post_init__(self) -> None:
        if self.nms_config.multi_classes_nms:
            raise ValueError("MULTI_CLASSES_NMS must be False; for an NMS a class, give each a head of its own")
        limits = self.post_center_limit_range
        if limits is not None and len(limits) != 6:
            raise ValueError(f"POST_CENTER_LIMIT_RANGE needs x, y, z, x, y, z, got {limits}")
        if self.max_obj_per_sample < 1:
            raise ValueError(f"MAX_OBJ_PER_SAMPLE must be at least 1, got {self.max_obj_per_sample}")


@torch.no_grad()
def detect(predictions: DensePredictions, config: PostProcessingConfig) -> list[Detections]:
    """Turn dense predictions into detections, frame by frame.

    Args:
        predictions: of B frames.
        config: thresholds.

    Returns:
        B times what remains, best first; a frame in which nothing passes gives empty tensors.
    """
    found = []
    for frame, logits in enumerate(predictions.cls_logits):
        scores, keep = logits.sigmoid(), torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        if predictions.iou_logits is not None:
            settings = config.iou_refinement or IoURefinement()
            scores, keep = refine_scores(scores, predictions.iou_logits[frame].sigmoid(), settings)
        found.append(select(predictions.boxes[frame], scores, keep, config))
    return found


def select(boxes: Tensor, scores: Tensor, keep: Tensor, config: PostProcessingConfig) -> Detections:
    """Apply score threshold and NMS to one frame.

    Args:
        boxes: ``(A, 7)``.
        scores: ``(A, C)`` in [0, 1].
        keep: ``(A,)`` bool, boxes that may be detections.
        config: thresholds.

    Returns:
        What remains, best first.
    """
    if not config.nms_config.multi_classes_nms:
        best, labels = scores.max(dim=1)
        return select_labelled(boxes, best, labels, keep, config)
    passes = keep[:, None].expand_as(scores)
    if config.score_thresh is not None:
        passes = passes & (scores >= config.score_thresh)
    rows, labels = passes.nonzero(as_tuple=True)
    chosen = config.nms_config.keep(boxes[rows], scores[rows, labels], labels)
    rows, labels = rows[chosen], labels[chosen]
    return Detections(boxes[rows], scores[rows, labels], labels)


def select_labelled(
    boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, config: PostProcessingConfig
) -> Detections:
    """Apply score threshold and NMS to boxes of one score each, whatever their labels.

    Args:
        boxes: ``(A, 7)``.
        scores: ``(A,)`` in [0, 1].
        labels: ``(A,)`` int64, 0-based.
        keep: ``(A,)`` bool, boxes that may be detections.
        config: thresholds.

    Returns:
        What remains, best first.
    """
    if config.score_thresh is not None:
        keep = keep & (scores >= config.score_thresh)
    candidates = keep.nonzero().squeeze(1)
    chosen = candidates[config.nms_config.keep(boxes[candidates], scores[candidates])]
    return Detections(boxes[chosen], scores[chosen], labels[chosen])


@torch.no_grad()
def detect_centers(boxes: Tensor, scores: Tensor, keep: Tensor, config: CenterPostProcessing) -> Detections:
    """Turn what one part of a center head says of a frame into detections.

    Scores that are not a number and boxes that are not finite are no candidates.

    Args:
        boxes: ``(A, 7)`` of the cells.
        scores: ``(A, C)`` in [0, 1], the part's classes.
        keep: ``(A,)`` bool, cells that may be detections.
        config: thresholds.

    Returns:
        What remains, best first; labels count the part's classes.

    Source: CenterPoint (Yin et al., CVPR 2021), section 4: the highest scores, then NMS.
    """
    passes = keep[:, None] & ~scores.isnan()
    if config.score_thresh is not None:
        passes = passes & (scores > config.score_thresh)
    cells, labels = passes.nonzero(as_tuple=True)
    best = scores[cells, labels].topk(min(config.max_obj_per_sample, len(cells)))
    cells, labels = cells[best.indices], labels[best.indices]
    found = Detections(boxes[cells], best.values, labels)
    chosen = _is_within(found.boxes, config.post_center_limit_range).nonzero().squeeze(1)
    chosen = chosen[config.nms_config.keep(found.boxes[chosen], found.scores[chosen])]
    return Detections(found.boxes[chosen], found.scores[chosen], found.labels[chosen])


def _is_within(boxes: Tensor, limits: tuple[float, ...] | None) -> Tensor:
    """Tell which boxes ``(N, 7)`` are finite and have their centre within the limits."""
    is_finite = boxes.isfinite().all(dim=1)
    if limits is None:
        return is_finite
    low, high = boxes.new_tensor(limits).split(3)
    return is_finite & ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(dim=1)
