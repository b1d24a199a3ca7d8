"""Which anchor stands for which object?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.anchors import AnchorSpec

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class TargetAssignerConfig:
    """Keys of TARGET_ASSIGNER_CONFIG.

    Attributes:
        name: only ``AxisAlignedTargetAssigner``.
        box_coder: only ``ResidualCoder``.
        pos_fraction: only -1: every anchor counts, none is sampled.
        sample_size: meant for sampling, so unused.
        norm_by_num_examples: taken for OpenPCDet's sake, whose anchor head sets its result aside too: losses are
            normalised by the positives of a frame.
        match_height: compare anchors and objects in 3D, headings included, not by axis-aligned BEV rectangles.
    """

    name: str = "AxisAlignedTargetAssigner"
    box_coder: str = "ResidualCoder"
    pos_fraction: float = -1.0
    sample_size: int = 512
    norm_by_num_examples: bool = False
    match_height: bool = False

    def __post_init__(self) -> None:
        if self.name != "AxisAlignedTargetAssigner":
            raise ValueError(f"NAME must be AxisAlignedTargetAssigner, got {self.name}")
        if self.box_coder != "ResidualCoder":
            raise ValueError(f"BOX_CODER must be ResidualCoder, got {self.box_coder}")
        if self.pos_fraction >= 0:
            raise ValueError(f"POS_FRACTION must be -1 (no sampling of anchors), got {self.pos_fraction}")


@dataclass(frozen=True)
class AnchorTargets:
    """What every anchor shall say.

    Attributes:
        labels: ``(B, A)`` int64 class, or BACKGROUND, or IGNORED.
        gt_indices: ``(B, A)`` int64 row of the frame's ``gt_boxes`` that a positive anchor stands for, -1 elsewhere.
    """

    labels: Tensor
    gt_indices: Tensor

    @property
    def positives(self) -> tuple[Tensor, Tensor]:
        """Frame and site ``(P,)`` of every positive anchor, frame by frame."""
        frames, sites = (self.labels >= 0).nonzero(as_tuple=True)
        return frames, sites

    @property
    def num_positives(self) -> Tensor:
        """Positives of each frame ``(B,)``, at least 1: what the losses are divided by."""
        return (self.labels >= 0).sum(dim=1).clamp(min=1)


def match_anchors(similarity: Tensor, matched: float, unmatched: float) -> Tensor:
    """Decide what each anchor stands for.

    An anchor stands for the object it overlaps most when that overlap is at least ``matched``, or when no anchor
    overlaps some object more than it does (ties included), so that no object that touches an anchor goes without.

    Args:
        similarity: ``(N, M)`` overlaps of N anchors and M objects, M at least 1.
        matched: overlap from which an anchor is positive.
        unmatched: overlap below which an anchor is background.

    Returns:
        ``(N,)`` int64 index of the object, or BACKGROUND, or IGNORED between the two thresholds.
    """
    overlap, best_object = similarity.max(dim=1)
    best_overlap = similarity.amax(dim=0) if len(similarity) else similarity.new_zeros(similarity.shape[1])
    is_best = ((similarity == best_overlap) & (best_overlap > 0)).any(dim=1)
    otherwise = torch.where(overlap < unmatched, BACKGROUND, IGNORED)
    return torch.where(is_best | (overlap >= matched), best_object, otherwise)


def reachable_cells(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """Find the cells whose anchors could overlap an object at all.

    Args:
        anchors: ``(H, W, N, 7)``, rows sharing their y and columns their x.
        gt_boxes: ``(M, 7)``.

    Returns:
        ``(H, W)`` bool; all others overlap nothing, whatever the headings.
    """
    reach = gt_boxes[:, 3:5].norm(dim=1) / 2 + anchors[0, 0, :, 3:5].norm(dim=1).max() / 2
    near_x = (anchors[0, :, 0, 0] - gt_boxes[:, :1]).abs() <= reach[:, None]
    near_y = (anchors[:, 0, 0, 1] - gt_boxes[:, 1:2]).abs() <= reach[:, None]
    return near_y.float().T @ near_x.float() > 0


class AxisAlignedTargetAssigner:
    """Matches each class's anchors with the objects of that class, by thresholds of its own.

    Args:
        config: the section's keys.
        specs: the anchors of each class, in the order of the grid's last-but-one axis.
        class_names: classes by label.

    Raises:
        ConfigError: for anchors of a class that the detector does not know.
    """

    def __init__(self, config: TargetAssignerConfig, specs: Sequence[AnchorSpec], class_names: Sequence[str]) -> None:
        for spec in specs:
            if spec.class_name not in class_names:
                raise ConfigError(f"anchors for class {spec.class_name!r}; CLASS_NAMES has {', '.join(class_names)}")
        self.specs = tuple(specs)
        self.labels = tuple(class_names.index(spec.class_name) for spec in specs)
        self.similarity = ops.iou_3d if config.match_height else ops.nearest_bev_iou

    @torch.no_grad()
    def assign(self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> AnchorTargets:
        """Give every anchor of every frame its target.

        Args:
            anchors: ``(H, W, N, 7)`` grid.
            gt_boxes: ``(B, M, 7)``.
            gt_labels: ``(B, M)`` int64, -1 where padded.

        Returns:
            Targets of the ``A = H * W * N`` anchors; frames without objects are all background.
        """
        indices = torch.stack(
            [self._assign_frame(anchors, boxes, labels) for boxes, labels in zip(gt_boxes, gt_labels, strict=True)]
        )
        of_object = gt_labels.gather(1, indices.clamp(min=0)) if gt_labels.shape[1] else indices
        return AnchorTargets(torch.where(indices >= 0, of_object, indices), indices.clamp(min=-1))

    def _assign_frame(self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> Tensor:
        matched = torch.full(anchors.shape[:3], BACKGROUND, dtype=torch.int64, device=anchors.device)
        start = 0
        for spec, label in zip(self.specs, self.labels, strict=True):
            channels = slice(start, start + spec.num_per_cell)
            of_class = (gt_labels == label).nonzero().squeeze(1)
            if len(of_class):
                self._match_class(spec, anchors[:, :, channels], gt_boxes[of_class], matched[:, :, channels], of_class)
            start += spec.num_per_cell
        return matched.flatten()

    def _match_class(
        self, spec: AnchorSpec, anchors: Tensor, gt_boxes: Tensor, matched: Tensor, of_class: Tensor
    ) -> None:
        """Write one class's matches into its channels ``(H, W, n)`` of ``matched``, as rows of the frame's objects."""
        cells = reachable_cells(anchors, gt_boxes)
        similarity = self.similarity(anchors[cells].flatten(0, 1), gt_boxes)
        found = match_anchors(similarity, spec.matched_threshold, spec.unmatched_threshold)
        rows = torch.where(found >= 0, of_class[found.clamp(min=0)], found)
        matched[cells] = rows.view(-1, matched.shape[2])
