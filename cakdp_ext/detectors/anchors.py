"""Which boxes does an anchor head start from?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.types import LidarGeometry


@dataclass(frozen=True)
class AnchorSpec:
    """The anchors of one class, as an entry of ANCHOR_GENERATOR_CONFIG has them.

    Attributes:
        class_name: whose they are.
        anchor_sizes: ``(dx, dy, dz)`` each, metres.
        anchor_rotations: headings, radians.
        anchor_bottom_heights: z of the anchors' undersides, metres.
        feature_map_stride: stride of the head's map with respect to the voxel grid.
        matched_threshold: IoU from which an anchor stands for an object.
        unmatched_threshold: IoU below which it is background.
        align_center: put anchors at the cells' centres, not evenly from border to border of the range.
    """

    class_name: str
    anchor_sizes: tuple[Sequence[float], ...]
    anchor_rotations: tuple[float, ...]
    anchor_bottom_heights: tuple[float, ...]
    feature_map_stride: int
    matched_threshold: float
    unmatched_threshold: float
    align_center: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.unmatched_threshold <= self.matched_threshold:
            raise ValueError(
                "expected 0 < unmatched_threshold <= matched_threshold, "
                f"got {self.unmatched_threshold} and {self.matched_threshold} for {self.class_name}"
            )
        if not all(len(size) == 3 and min(size) > 0 for size in self.anchor_sizes):
            raise ValueError(f"anchor_sizes of {self.class_name} must be (dx, dy, dz) > 0, got {self.anchor_sizes}")

    @property
    def num_per_cell(self) -> int:
        """How many anchors of this class one cell of the map has."""
        return len(self.anchor_sizes) * len(self.anchor_rotations) * len(self.anchor_bottom_heights)


def class_anchors(spec: AnchorSpec, geometry: LidarGeometry) -> Tensor:
    """Lay out one class's anchors.

    Args:
        spec: sizes, headings and heights.
        geometry: the range that is covered and its voxel grid.

    Returns:
        ``(Z, H, W, S, R, 7)`` float32: bottom height, row (y), column (x), size, heading.
    """
    low, high = geometry.point_cloud_range[:2], geometry.point_cloud_range[3:5]
    counts = [cells // spec.feature_map_stride for cells in geometry.grid_size[:2]]
    x, y = (_positions(*axis, spec.align_center) for axis in zip(low, high, counts, strict=True))
    sizes = torch.tensor(spec.anchor_sizes, dtype=torch.float32).reshape(-1, 3)
    bottoms, headings = torch.tensor(spec.anchor_bottom_heights).float(), torch.tensor(spec.anchor_rotations).float()

    anchors = torch.empty(len(bottoms), len(y), len(x), len(sizes), len(headings), 7)
    anchors[..., 0] = x.view(-1, 1, 1)
    anchors[..., 1] = y.view(-1, 1, 1, 1)
    anchors[..., 2] = bottoms.view(-1, 1, 1, 1, 1) + sizes[:, None, 2] / 2
    anchors[..., 3:6] = sizes[:, None]
    anchors[..., 6] = headings
    return anchors


def _positions(low: float, high: float, count: int, align_center: bool) -> Tensor:
    inset = (high - low) / count / 2 if align_center else 0.0
    return torch.linspace(low + inset, high - inset, count, dtype=torch.float64).float()


def anchor_grid(specs: Sequence[AnchorSpec], geometry: LidarGeometry) -> Tensor:
    """Lay out the anchors of all classes as a head's map has them.

    Args:
        specs: one entry a class, in the order of the head's channels.
        geometry: the range that is covered and its voxel grid.

    Returns:
        ``(H, W, N, 7)`` float32; along N the classes, within a class its sizes, within a size its headings. Flattened,
        this is the order of the A sites of every prediction.

    Raises:
        ConfigError: for classes with other strides than the first, or a class with several bottom heights.
    """
    for spec in specs:
        if spec.feature_map_stride != specs[0].feature_map_stride:
            raise ConfigError(
                f"feature_map_stride of {spec.class_name} is {spec.feature_map_stride}, of {specs[0].class_name} "
                f"{specs[0].feature_map_stride}; one map has one stride"
            )
        if len(spec.anchor_bottom_heights) != 1:
            raise ConfigError(
                f"anchor_bottom_heights of {spec.class_name} has {len(spec.anchor_bottom_heights)} entries; a map's "
                "channels hold one height of each size, so repeat the size in an entry of its own"
            )
    return torch.cat([class_anchors(spec, geometry)[0].flatten(2, 3) for spec in specs], dim=2)
