"""What do the points in each cell of a roi say of its parts? RoI-aware pooling of Part-A2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.detectors.point_features import PointFeatures


@dataclass(frozen=True)
class RoiAwarePoolConfig:
    """How a roi is divided (ROI_AWARE_POOL).

    Attributes:
        pool_size: cells along each side of a roi.
        num_features: channels of a cell behind the convolutions, both branches together.
        max_points_per_voxel: slots of a cell; one holds their number, so that one point fewer counts, as in OpenPCDet.
    """

    pool_size: int
    num_features: int
    max_points_per_voxel: int = 128

    def __post_init__(self) -> None:
        if self.pool_size < 1:
            raise ValueError(f"POOL_SIZE must be at least 1, got {self.pool_size}")
        if self.num_features < 2 or self.num_features % 2:
            raise ValueError(f"NUM_FEATURES must be even and at least 2, got {self.num_features}")
        if self.max_points_per_voxel < 2:
            raise ValueError(f"MAX_POINTS_PER_VOXEL must be at least 2, got {self.max_points_per_voxel}")


@dataclass(frozen=True)
class FilledCells:
    """The cells of R rois that hold a point.

    Attributes:
        coords: ``(n, 4)`` int64 roi and cell along its x, y and z, ascending.
        parts: ``(n, D)`` mean of what is said of the points' parts.
        features: ``(n, C)`` largest features of the points.
    """

    coords: Tensor
    parts: Tensor
    features: Tensor

    def scatter(self, values: Tensor, num_rois: int, pool_size: int) -> Tensor:
        """Lay values ``(n, C)`` out as ``(num_rois, C * pool_size**3)``, channels slowest, zeros in empty cells."""
        roi, x, y, z = self.coords.unbind(1)
        dense = values.new_zeros(num_rois, values.shape[1], pool_size**3)
        dense[roi, :, (x * pool_size + y) * pool_size + z] = values
        return dense.flatten(1)


def pool_parts(points: PointFeatures, parts: Tensor, rois: Tensor, config: RoiAwarePoolConfig) -> FilledCells:
    """Pool what is known of the points in every cell of every roi that holds one.

    Args:
        points: of B frames, with features; their gradient flows.
        parts: ``(N, D)`` what is said of the parts; its gradient flows.
        rois: ``(B, K, 7)`` metres and radians, LiDAR frame, without gradient; one of no size holds nothing.
        config: how a roi is divided.

    Returns:
        The cells of the ``B * K`` rois; none where no roi holds a point.

    Source: Part-A2 (Shi et al., "From Points to Parts", TPAMI 2020), section 3.2.1.
    """
    cells = ops.roiaware_cells(
        rois.detach().float().flatten(0, 1),
        points.xyz,
        config.pool_size,
        config.max_points_per_voxel - 1,
        roi_counts=torch.full((len(rois),), rois.shape[1], device=rois.device),
        point_counts=points.counts(len(rois)),
    )
    is_filled = cells.count > 0
    first, count = (each[is_filled].view(-1, 1, 1, 1) for each in (cells.first, cells.count))
    filled = ops.Cells(first, count, cells.members)
    mean, _ = ops.pool_cells(parts.float(), filled, "avg")
    largest, _ = ops.pool_cells(points.features.float(), filled, "max")
    return FilledCells(is_filled.nonzero(), mean.flatten(0, 3), largest.flatten(0, 3))
