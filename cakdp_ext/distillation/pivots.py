"""Which positions does SparseKD compare? Those that the teacher is sure of, or those around the centres of objects."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.distillation.cells import map_grid
from cakdp_ext.types import Batch, PredictionSites


@torch.no_grad()
def confident_positions(scores: Tensor, threshold: float) -> Tensor:
    """Weigh by 1 the places and classes ``(B, A, C)`` of scores above a threshold, by 0 all others."""
    return (scores > threshold).to(scores)


@torch.no_grad()
def best_positions(scores: Tensor, count: int) -> Tensor:
    """Weigh by 1 the best class of the ``count`` places of a frame where it scores highest, by 0 all others.

    Args:
        scores: ``(B, A, C)``.
        count: so many places of each frame; all where there are fewer.
    """
    best = scores.max(dim=2)
    places = best.values.topk(min(count, scores.shape[1]), dim=1).indices
    weights = torch.zeros_like(scores)
    frames = torch.arange(len(scores), device=scores.device)[:, None]
    weights[frames, places, best.indices.gather(1, places)] = 1
    return weights


@torch.no_grad()
def positions_around(objects: Batch, sites: PredictionSites) -> Tensor:
    """Weigh every place and class by a Gaussian around the centres of the objects of that class.

    It turns with the object; its standard deviations are a quarter of the object's length and width, half a cell at
    least. Where several objects of a class reach, the largest counts.

    Args:
        objects: B frames; labels from the number of classes on count as the last.
        sites: of the A places and C classes.

    Returns:
        ``(B, A, C)`` float32 in [0, 1].
    """
    reach = map_grid(sites.centers).size.to(sites.centers) / 2
    frames = zip(objects.gt_boxes.to(sites.centers), objects.gt_labels, strict=True)
    return torch.stack([_around(boxes[of >= 0], of[of >= 0], sites, reach) for boxes, of in frames])


def _around(boxes: Tensor, labels: Tensor, sites: PredictionSites, reach: Tensor) -> Tensor:
    """Give the weights ``(A, C)`` of one frame."""
    weights = sites.centers.new_zeros(len(sites.centers), sites.num_classes)
    if not len(boxes):
        return weights
    gaps = sites.centers[:, None] - boxes[:, :2]
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    local = torch.stack([gaps[..., 0] * cos + gaps[..., 1] * sin, gaps[..., 1] * cos - gaps[..., 0] * sin], dim=-1)
    spread = (boxes[:, 3:5] / 4).maximum(reach)
    peaks = (-((local / spread) ** 2).sum(dim=-1) / 2).exp()
    rows = labels.clamp(max=sites.num_classes - 1).expand(len(peaks), -1)
    return weights.scatter_reduce(1, rows, peaks, "amax")
