"""Where do student and teacher disagree most, and what do their maps hold there? The general instances of GID."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.distillation.cells import map_grid
from cakdp_ext.distillation.matching import match_sites, rois_at
from cakdp_ext.taps import Taps
from cakdp_ext.types import PredictionSites


@dataclass(frozen=True)
class Instances:
    """The general instances of a batch, those of the largest difference first, padded to the K of the fullest frame.

    Attributes:
        indices: ``(B, K)`` int64, which of the student's A places each was found at; 0 where padded.
        labels: ``(B, K)`` int64, the student's class whose scores differ most there; 0 where padded.
        boxes: ``(B, K, 7)`` of whoever is surer there; of no size where padded.
        valid: ``(B, K)`` bool, False where padded.
    """

    indices: Tensor
    labels: Tensor
    boxes: Tensor
    valid: Tensor


@torch.no_grad()
def select_instances(
    student: Taps, teacher: Taps, teacher_logits: Tensor, *, most: int, pre_max: int, nms_thresh: float
) -> Instances:
    """Select in every frame the places where the scores of student and teacher differ most, and none twice.

    A place's difference is the largest of any class (the paper's GI score); its box is the teacher's where the
    teacher's best class scores above the student's, else the student's. NMS by the difference removes the redundant
    ones. No gradient flows.

    Args:
        student: with its dense predictions.
        teacher: likewise.
        teacher_logits: ``(B, A, C)``, what the teacher says at the student's places, in the student's order.
        most: so many of a frame stay.
        pre_max: so many best of a frame go into the NMS.
        nms_thresh: bird's-eye-view IoU of the rotated, class-agnostic NMS.

    Source:
        Dai et al., General Instance Distillation (CVPR 2021), Eq. 1-3.
    """
    ours, theirs = student.dense.cls_logits.detach().float().sigmoid(), teacher_logits.float().sigmoid()
    differences, labels = (theirs - ours).abs().max(dim=2)
    found = differences.topk(min(pre_max, differences.shape[1]), dim=1)
    asked = match_sites(student.sites, teacher.sites).teacher_indices(found.indices, teacher.dense.cls_logits)
    is_surer = theirs.amax(dim=2).gather(1, found.indices) > ours.amax(dim=2).gather(1, found.indices)
    boxes = torch.where(
        is_surer[..., None], rois_at(teacher.dense.boxes, asked), rois_at(student.dense.boxes, found.indices)
    )
    everything = torch.ones_like(is_surer)
    frames, rows, ranks = ops.nms_in_frames(boxes, found.values, everything, nms_thresh, post_max=most)
    valid = everything.new_zeros(len(boxes), int(ranks.max()) + 1)
    indices, chosen = torch.zeros_like(valid, dtype=torch.int64), boxes.new_zeros(*valid.shape, 7)
    valid[frames, ranks], indices[frames, ranks], chosen[frames, ranks] = (
        True,
        found.indices[frames, rows],
        boxes[frames, rows],
    )
    return Instances(indices, labels.gather(1, indices).where(valid, 0), chosen, valid)


@torch.no_grad()
def owners(instances: Instances, sites: PredictionSites, min_iou: float) -> Tensor:
    """Say which instance each place of a head belongs to, as the head's own assignment would have it.

    An anchor belongs to the instance that it overlaps most, where that is at least ``min_iou`` in the axis-aligned
    bird's-eye view; a center head's cell to the first (the one of largest difference) whose footprint holds its centre.
    The place where an instance was found is its own in any case.

    Args:
        instances: of B frames.
        sites: of the A places.
        min_iou: of anchors.

    Returns:
        ``(B, A)`` int64, which of the K; -1 for none.
    """
    num_frames, most = instances.valid.shape
    if sites.anchors is not None:
        overlaps = ops.nearest_bev_iou(sites.anchors, instances.boxes.reshape(-1, 7).to(sites.anchors))
        best = overlaps.view(-1, num_frames, most).masked_fill(~instances.valid, -1).max(dim=2)
        owner = best.indices.where(best.values >= min_iou, -1).T.contiguous()
    else:
        places = F.pad(sites.centers, (0, 1)).expand(num_frames, -1, -1)
        owner = ops.points_in_boxes(places.contiguous(), _footprints(instances.boxes).to(places))
    frames, numbers = instances.valid.nonzero(as_tuple=True)
    owner[frames, instances.indices[frames, numbers]] = numbers
    return owner


def _footprints(boxes: Tensor) -> Tensor:
    """Bring boxes ``(B, K, 7)`` to the height 0, one metre high where they have a size."""
    flat = boxes.clone()
    flat[..., 2], flat[..., 5] = 0, (boxes[..., 3] > 0).to(boxes)
    return flat


def sample_boxes(maps: Tensor, sites: PredictionSites, boxes: Tensor, size: int) -> Tensor:
    """Read a map at a regular grid of points in each box's footprint, interpolating between the centres of cells.

    What lies beyond the map counts as zeros; an edge that is longer than the map's diagonal is cut to it.

    Args:
        maps: ``(B, C, H, W)`` that cover what the head's places cover, with gradient.
        sites: of the head that reads the maps.
        boxes: ``(B, K, 7)`` rotated, metres.
        size: S points along either edge, in the middles of S equal parts.

    Returns:
        ``(B, K, S * S, C)`` float32.
    """
    grid = map_grid(sites.centers)
    extent = grid.size * grid.size.new_tensor(grid.shape)
    steps = (torch.arange(size, device=boxes.device) + 0.5) / size - 0.5
    along, across = torch.meshgrid(steps, steps, indexing="ij")
    edges = boxes[..., 3:5].double().clamp(max=float(extent.norm()))[:, :, None]
    local = torch.stack([along.flatten(), across.flatten()], dim=1) * edges
    cos, sin = boxes[..., 6:7].double().cos(), boxes[..., 6:7].double().sin()
    x = local[..., 0] * cos - local[..., 1] * sin + boxes[..., 0:1]
    y = local[..., 0] * sin + local[..., 1] * cos + boxes[..., 1:2]
    places = 2 * (torch.stack([x, y], dim=-1) - grid.low.to(x)) / extent.to(x) - 1
    with torch.autocast(maps.device.type, enabled=False):
        found = F.grid_sample(maps.float(), places.float(), padding_mode="zeros", align_corners=False)
    return found.permute(0, 2, 3, 1)
