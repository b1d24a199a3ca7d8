"""Which few points stand for a scene, or for what rois hold of it?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cakdp_ext import ops


@dataclass(frozen=True)
class SectorSamplingConfig:
    """Keys of SPC_SAMPLING.

    Attributes:
        num_sectors: equal shares of a turn about the sensor that are sampled one by one.
        sample_radius_with_roi: metres; points up to so far beyond half a roi's diagonal from its centre may be chosen.
        num_points_of_each_sample_part: changes nothing; files for OpenPCDet have it.
    """

    num_sectors: int
    sample_radius_with_roi: float
    num_points_of_each_sample_part: int = 200000

    def __post_init__(self) -> None:
        if self.num_sectors < 1:
            raise ValueError(f"NUM_SECTORS must be at least 1, got {self.num_sectors}")


@torch.no_grad()
def sample_farthest(xyz: Tensor, counts: Tensor, number: int) -> Tensor:
    """Choose the same number of points in every frame that has any, each the farthest from those before it.

    Args:
        xyz: ``(N, 3)`` metres, frame after frame.
        counts: ``(B,)`` int64.
        number: of points; a frame with fewer repeats them.

    Returns:
        Rows of ``xyz``, frame after frame; none for a frame without points.
    """
    numbers = [number if count else 0 for count in counts.tolist()]
    return ops.farthest_point_sampling_stacked(xyz, counts, numbers)


@torch.no_grad()
def near_rois(xyz: Tensor, counts: Tensor, rois: Tensor, radius: float) -> Tensor:
    """Tell which points lie near the roi whose centre is nearest to them.

    Args:
        xyz: ``(N, 3)`` metres, frame after frame.
        counts: ``(B,)`` int64.
        rois: ``(B, K, 7)``; rows of zeros, as padding, are nobody's nearest.
        radius: metres beyond half the roi's diagonal.

    Returns:
        ``(N,)`` bool; False throughout a frame without rois.

    Source: PV-RCNN++ (Shi et al., IJCV 2023), section "Sectorized Proposal-Centric Sampling", Eq. 8.
    """
    is_roi = rois.ne(0).any(dim=2)
    known = rois[is_roi].to(xyz)
    distances, nearest = ops.three_nn(xyz, counts, known[:, :3], is_roi.sum(dim=1))
    reach = F.pad(torch.linalg.vector_norm(known[:, 3:6] / 2, dim=1), (0, 1))[nearest[:, 0]]
    return distances[:, 0] < reach + radius


@torch.no_grad()
def sample_sectors(xyz: Tensor, counts: Tensor, rois: Tensor, number: int, config: SectorSamplingConfig) -> Tensor:
    """Choose points near rois, sector by sector, each sector by its share of them.

    Args:
        xyz: ``(N, 3)`` metres, frame after frame.
        counts: ``(B,)`` int64.
        rois: ``(B, K, 7)``.
        number: of points of a frame, up to one more for each sector.
        config: sectors and radius.

    Returns:
        Rows of ``xyz``, frame after frame, in each sector after sector; of a frame whose points are all far from its
        rois the first one, none of a frame without points.

    Source: PV-RCNN++ (Shi et al., IJCV 2023), section "Sectorized Proposal-Centric Sampling".
    """
    num_frames, num_sectors = len(counts), config.num_sectors
    frames = torch.arange(num_frames, device=xyz.device).repeat_interleave(counts)
    chosen = near_rois(xyz, counts, rois, config.sample_radius_with_roi)
    chosen = chosen | _first_of_lonely(frames, chosen, counts)
    rows = chosen.nonzero().squeeze(1)
    angles = torch.atan2(xyz[rows, 1], xyz[rows, 0]) + math.pi
    sectors = (angles / (2 * math.pi / num_sectors)).floor().clamp(0, num_sectors - 1).long()
    places = frames[rows] * num_sectors + sectors
    rows = rows[torch.argsort(places, stable=True)]
    held = torch.bincount(places, minlength=num_frames * num_sectors).view(num_frames, num_sectors)
    shares = held.double() / held.sum(dim=1, keepdim=True).clamp(min=1)
    numbers = torch.minimum((shares * number).ceil().long(), held)
    return rows[ops.farthest_point_sampling_stacked(xyz[rows], held.flatten(), numbers.flatten())]


def _first_of_lonely(frames: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
    """Mark the first point of every frame that has points and none of them chosen: ``(N,)`` bool."""
    is_lonely = torch.bincount(frames[chosen], minlength=len(counts)) == 0
    begin = counts.cumsum(0) - counts
    is_first = torch.arange(len(frames), device=frames.device) == begin[frames]
    return is_first & is_lonely[frames]
