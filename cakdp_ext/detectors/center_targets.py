"""What should a center head say of the objects of a batch? Heat maps, and boxes to regress at the objects' centres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext.types import LidarGeometry


@dataclass(frozen=True)
class CenterTargetConfig:
    """Keys of TARGET_ASSIGNER_CONFIG.

    Attributes:
        feature_map_stride: stride of the head's map with respect to the voxel grid.
        num_max_objs: so many objects of a frame are taught to a part, the first ones.
        gaussian_overlap: IoU that sets how wide an object's peak is, see :func:`gaussian_radius`.
        min_radius: cells, lowest reach of a peak.
    """

    feature_map_stride: int
    num_max_objs: int = 500
    gaussian_overlap: float = 0.1
    min_radius: int = 2

    def __post_init__(self) -> None:
        if self.feature_map_stride < 1:
            raise ValueError(f"FEATURE_MAP_STRIDE must be at least 1, got {self.feature_map_stride}")
        if not 0 < self.gaussian_overlap < 1:
            raise ValueError(f"GAUSSIAN_OVERLAP must lie between 0 and 1, got {self.gaussian_overlap}")
        if self.num_max_objs < 1 or self.min_radius < 0:
            raise ValueError(
                f"NUM_MAX_OBJS must be at least 1 and MIN_RADIUS at least 0, got {self.num_max_objs}, {self.min_radius}"
            )


@dataclass(frozen=True)
class HeadGrid:
    """The cells of a head's map.

    Attributes:
        geometry: range and voxel grid of the points.
        stride: of the map with respect to the voxel grid.
    """

    geometry: LidarGeometry
    stride: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (y) and columns (x)."""
        columns, rows = (cells // self.stride for cells in self.geometry.grid_size[:2])
        return rows, columns

    @property
    def cell_size(self) -> tuple[float, float]:
        """Metres of a cell along x and y."""
        width, length = (size * self.stride for size in self.geometry.voxel_size[:2])
        return width, length

    def in_cells(self, metres: Tensor) -> Tensor:
        """Measure lengths ``(..., 2)`` along x and y in cells."""
        return metres / metres.new_tensor(self.geometry.voxel_size[:2]) / self.stride

    def positions(self, points: Tensor) -> Tensor:
        """Give where on the map metric positions ``(..., 2)`` lie, in cells from its corner."""
        return self.in_cells(points - points.new_tensor(self.geometry.point_cloud_range[:2]))


@dataclass(frozen=True)
class CenterTargets:
    """What one part of a center head should say of the N objects of its classes.

    Attributes:
        heatmap: ``(B, C, H, W)`` float32, 1 at the centres.
        frames: ``(N,)`` int64 frame of each object.
        cells: ``(N,)`` int64 cell of its centre, row by row through the map; several objects may share one.
        codes: ``(N, 8)`` regression targets.
    """

    heatmap: Tensor
    frames: Tensor
    cells: Tensor
    codes: Tensor


@torch.no_grad()
def assign_centers(
    grid: HeadGrid, config: CenterTargetConfig, gt_boxes: Tensor, gt_labels: Tensor, labels: Sequence[int]
) -> CenterTargets:
    """Draw the objects of one part's classes into its heat maps, and write their boxes as regression targets.

    A centre beyond the map counts to the border cell beside it. Boxes without extent, and those with a coordinate that
    is not finite, are no objects.

    Args:
        grid: of the map.
        config: how wide peaks are, and how many objects there may be.
        gt_boxes: ``(B, M, 7)``, zero-padded.
        gt_labels: ``(B, M)`` 0-based, -1 where padded.
        labels: the part's classes, in the order of its heat maps.

    Source: CenterPoint (Yin et al., CVPR 2021), section 4.
    """
    channels = (gt_labels[..., None] == gt_labels.new_tensor(labels)).long()
    is_object = channels.any(dim=2) & (gt_boxes[..., 3:6] > 0).all(dim=2) & gt_boxes.isfinite().all(dim=2)
    frames, rows = (is_object & (is_object.cumsum(dim=1) <= config.num_max_objs)).nonzero(as_tuple=True)
    boxes, channels = gt_boxes[frames, rows].float(), channels[frames, rows].argmax(dim=1)
    height, width = grid.shape
    positions = grid.positions(boxes[:, :2]).clamp(min=0).minimum(boxes.new_tensor((width - 0.5, height - 0.5)))
    cells = positions.long()
    radii = gaussian_radius(grid.in_cells(boxes[:, 3:5]), config.gaussian_overlap).long().clamp(min=config.min_radius)
    heatmap = boxes.new_zeros(len(gt_boxes), len(labels), height, width)
    draw_peaks(heatmap.flatten(0, 1), frames * len(labels) + channels, cells, radii)
    heading = boxes[:, 6:7]
    codes = [positions - cells, boxes[:, 2:3], boxes[:, 3:6].log(), heading.cos(), heading.sin()]
    return CenterTargets(heatmap, frames, cells[:, 1] * width + cells[:, 0], torch.cat(codes, dim=1))


def gaussian_radius(sizes: Tensor, min_overlap: float) -> Tensor:
    """Give how far the peak of an object reaches.

    CornerNet asks how far the two corners of a box may be moved until it overlaps the object by ``min_overlap`` only:
    both outwards, both inwards, or both the same way. Its published code, which everybody's trained networks go back
    to, divides the larger root of each of the three equations by 2 whatever their leading coefficient. The one for
    outwards is then always the smallest, and ``4 * min_overlap`` times what was asked for; it is what is given here.

    Args:
        sizes: ``(N, 2)`` of boxes, in cells.
        min_overlap: between 0 and 1.

    Returns:
        ``(N,)`` cells.

    Source: CornerNet (Law and Deng, ECCV 2018), section 3.2.
    """
    around, area = sizes.sum(dim=1), sizes.prod(dim=1)
    return ((min_overlap * around) ** 2 + 4 * min_overlap * (1 - min_overlap) * area).sqrt() - min_overlap * around


def draw_peaks(planes: Tensor, indices: Tensor, cells: Tensor, radii: Tensor) -> None:
    """Draw Gaussian peaks of height 1 into maps; where they meet, the higher one stays.

    Args:
        planes: ``(P, H, W)`` contiguous, changed in place.
        indices: ``(N,)`` int64, the map of each peak.
        cells: ``(N, 2)`` int64 column and row of its centre.
        radii: ``(N,)`` int64, cells that it reaches to either side; three standard deviations, half a cell included.

    Source: CornerNet (Law and Deng, ECCV 2018), section 3.2.
    """
    if len(radii) == 0:
        return
    height, width = planes.shape[1:]
    reach = int(radii.max())
    span = torch.arange(-reach, reach + 1, device=planes.device)
    dy, dx = (axis.reshape(1, -1) for axis in torch.meshgrid(span, span, indexing="ij"))
    deviation = (2 * radii[:, None].double() + 1) / 6
    values = torch.exp(-(dx**2 + dy**2) / (2 * deviation**2)).to(planes.dtype)
    columns, rows, radii = cells[:, :1] + dx, cells[:, 1:] + dy, radii[:, None]
    is_drawn = (dx.abs() <= radii) & (dy.abs() <= radii)
    is_drawn &= (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = (indices[:, None] * height + rows) * width + columns
    planes.view(-1).scatter_reduce_(0, places[is_drawn], values[is_drawn], reduce="amax")
