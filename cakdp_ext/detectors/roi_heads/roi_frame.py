"""How does a box look from a roi, and where do the grid points of a roi lie?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cakdp_ext import ops


def rotate_about_z(xyz: Tensor, angle: Tensor) -> Tensor:
    """Turn points counter-clockwise about +z, element-wise so that autocast leaves the precision alone."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    x, y, z = xyz.unbind(-1)
    return torch.stack((x * cos - y * sin, x * sin + y * cos, z), dim=-1)


def to_roi_frame(boxes: Tensor, rois: Tensor) -> Tensor:
    """Express boxes in the frames of their rois: origin at the roi's centre, x along its heading.

    A box and the same box turned by half a turn are one object here: headings are wrapped accordingly.

    Args:
        boxes: ``(..., 7)`` in the LiDAR frame.
        rois: ``(..., 7)`` of the same shape, in the LiDAR frame.

    Returns:
        ``(..., 7)``, headings in (-pi/2, pi/2]; empty for empty input.
    """
    center = rotate_about_z(boxes[..., :3] - rois[..., :3], -rois[..., 6])
    turn = -ops.limit_period(rois[..., 6] - boxes[..., 6], 0.5, math.pi)
    return torch.cat((center, boxes[..., 3:6], turn.unsqueeze(-1)), dim=-1)


def from_roi_frame(boxes: Tensor, rois: Tensor) -> Tensor:
    """Express boxes that are given in the frames of their rois in the LiDAR frame.

    Args:
        boxes: ``(..., 7)`` in the frames of the rois.
        rois: ``(..., 7)`` of the same shape, in the LiDAR frame.

    Returns:
        ``(..., 7)``; empty for empty input.
    """
    center = rotate_about_z(boxes[..., :3], rois[..., 6]) + rois[..., :3]
    return torch.cat((center, boxes[..., 3:6], boxes[..., 6:7] + rois[..., 6:7]), dim=-1)


def at_origin(rois: Tensor) -> Tensor:
    """Put rois ``(..., 7)`` into their own frames: centre and heading become 0, sizes stay."""
    sizes = rois[..., 3:6]
    return torch.cat((torch.zeros_like(sizes), sizes, torch.zeros_like(rois[..., :1])), dim=-1)


def roi_grid_points(rois: Tensor, grid_size: int) -> Tensor:
    """Cut each roi into ``grid_size**3`` equal cells and give their centres.

    Args:
        rois: ``(N, 7)`` in the LiDAR frame.
        grid_size: cells along each side.

    Returns:
        ``(N, grid_size**3, 3)`` metres, LiDAR frame; the cell along the roi's z changes fastest, along its x slowest.
        ``(0, grid_size**3, 3)`` for no roi.
    """
    steps = (torch.arange(grid_size, device=rois.device, dtype=rois.dtype) + 0.5) / grid_size - 0.5
    unit_points = torch.cartesian_prod(steps, steps, steps).view(-1, 3)
    points = unit_points * rois[:, None, 3:6]
    return rotate_about_z(points, rois[:, None, 6]) + rois[:, None, :3]
