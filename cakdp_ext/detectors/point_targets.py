"""Which object does a point belong to, and where in it does it lie?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.detectors.roi_heads.roi_frame import rotate_about_z

BACKGROUND, IGNORE = -1, -2


@dataclass(frozen=True)
class PointTargets:
    """What a point head should say of N points; nothing carries gradient.

    Attributes:
        labels: ``(N,)`` int64 class of the object that holds the point, -1 for background, -2 where no loss looks.
        boxes: ``(N, 7)`` that object, zeros where there is none.
    """

    labels: Tensor
    boxes: Tensor

    @property
    def is_foreground(self) -> Tensor:
        """``(N,)`` bool, whether an object holds the point."""
        return self.labels >= 0


@torch.no_grad()
def assign_points(
    xyz: Tensor, counts: Tensor, gt_boxes: Tensor, gt_labels: Tensor, extra_width: tuple[float, float, float]
) -> PointTargets:
    """Give every point the first object that holds it, and ignore points just outside of objects.

    Args:
        xyz: ``(N, 3)`` metres, LiDAR frame, frame after frame.
        counts: ``(B,)`` int64, how many points each frame has.
        gt_boxes: ``(B, M, 7)`` zero-padded.
        gt_labels: ``(B, M)`` 0-based, -1 where padded.
        extra_width: metres that are added to the sizes of a box; whatever only the larger box holds is ignored.

    Returns:
        The targets; all background in a frame without objects.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.1.2.
    """
    frames = zip(xyz.split(counts.tolist()), gt_boxes.to(xyz), gt_labels, strict=True)
    found = [
        _assign_frame(points, boxes[labels >= 0], labels[labels >= 0], extra_width) for points, boxes, labels in frames
    ]
    return PointTargets(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _assign_frame(
    xyz: Tensor, gt_boxes: Tensor, gt_labels: Tensor, extra_width: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    larger = torch.cat((gt_boxes[:, :3], gt_boxes[:, 3:6] + gt_boxes.new_tensor(extra_width), gt_boxes[:, 6:]), dim=1)
    holder = ops.points_in_boxes(xyz, gt_boxes)
    is_near = ops.points_in_boxes(xyz, larger) >= 0
    nothing = torch.where(is_near, IGNORE, BACKGROUND)
    if len(gt_boxes) == 0:
        return nothing, xyz.new_zeros(len(xyz), 7)
    is_inside, row = holder >= 0, holder.clamp(min=0)
    return torch.where(is_inside, gt_labels[row], nothing), gt_boxes[row] * is_inside.unsqueeze(1)


def part_locations(xyz: Tensor, boxes: Tensor) -> Tensor:
    """Say where in its box each point lies: (0, 0, 0) at the lower rear right corner, (0.5, 0.5, 0.5) at the centre.

    Args:
        xyz: ``(F, 3)`` metres, LiDAR frame.
        boxes: ``(F, 7)`` that hold them; sizes are positive.

    Returns:
        ``(F, 3)`` in [0, 1], along the box's own axes.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.1.2.
    """
    offsets = rotate_about_z(xyz - boxes[:, :3], -boxes[:, 6])
    return (offsets / boxes[:, 3:6] + 0.5).clamp(0.0, 1.0)
