"""From a raw frame to the detector's input: features, range, order, voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from cakdp_ext import ops
from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.datasets.voxelize import Voxelizer
from cakdp_ext.types import LidarGeometry


@dataclass(frozen=True)
class FeatureEncoding:
    """Which of the stored values of a point the detector sees.

    Attributes:
        used_feature_list: names in the detector's order, x, y and z first.
        src_feature_list: names in the file's order.
        encoding_type: only ``absolute_coordinates_encoding``.
    """

    used_feature_list: tuple[str, ...] = ("x", "y", "z", "intensity")
    src_feature_list: tuple[str, ...] = ("x", "y", "z", "intensity")
    encoding_type: str = "absolute_coordinates_encoding"

    def __post_init__(self) -> None:
        if self.encoding_type != "absolute_coordinates_encoding":
            raise ValueError(f"encoding_type must be absolute_coordinates_encoding, got {self.encoding_type!r}")
        for name in ("src_feature_list", "used_feature_list"):
            if getattr(self, name)[:3] != ("x", "y", "z"):
                raise ValueError(f"{name} must begin with x, y, z, got {list(getattr(self, name))}")
        unknown = [name for name in self.used_feature_list if name not in self.src_feature_list]
        if unknown:
            raise ValueError(f"used_feature_list names {', '.join(unknown)}, which src_feature_list does not have")

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Select the columns of ``(N, stored)`` points that the detector sees."""
        if self.used_feature_list == self.src_feature_list:
            return points
        return points[:, [self.src_feature_list.index(name) for name in self.used_feature_list]]


@dataclass(frozen=True)
class RangeMask:
    """Which boxes count as outside.

    Attributes:
        remove_outside_boxes: whether training drops them.
        min_num_corners: how many corners must lie in range, seen from above.
        use_center_to_filter: whether the centre decides instead of the corners.
    """

    remove_outside_boxes: bool = True
    min_num_corners: int = 1
    use_center_to_filter: bool = True

    def boxes(self, boxes: np.ndarray, limits: Sequence[float]) -> np.ndarray:
        """Tell ``(M,)`` which of the boxes ``(M, 7)`` are inside ``limits (6,)``."""
        low, high = np.array(limits[:3]), np.array(limits[3:])
        if self.use_center_to_filter:
            return np.all((boxes[:, :3] >= low) & (boxes[:, :3] <= high), axis=1)
        corners = ops.box_corners(torch.from_numpy(boxes)).numpy()[..., :2]
        inside = ((corners >= low[:2]) & (corners <= high[:2])).all(axis=2)
        return inside.sum(axis=1) >= self.min_num_corners


@dataclass(frozen=True)
class PointShuffle:
    """Whether points are put into random order, by mode."""

    shuffle_enabled: Mapping[str, bool] = field(default_factory=lambda: {"train": True, "test": False})


@dataclass(frozen=True)
class Voxelization:
    """How points are cut into voxels.

    Attributes:
        voxel_size: x, y, z in metres.
        max_points_per_voxel: the first ones are kept.
        max_number_of_voxels: by mode.
    """

    voxel_size: tuple[float, float, float]
    max_points_per_voxel: int
    max_number_of_voxels: Mapping[str, int]

    def __post_init__(self) -> None:
        if len(self.voxel_size) != 3 or min(self.voxel_size) <= 0:
            raise ValueError(f"VOXEL_SIZE must be three positive numbers, got {list(self.voxel_size)}")


PROCESSORS: dict[str, type] = {
    "mask_points_and_boxes_outside_range": RangeMask,
    "shuffle_points": PointShuffle,
    "transform_points_to_voxels": Voxelization,
}
Settings = TypeVar("Settings")


@dataclass(frozen=True, eq=False)
class PointProcessor:
    """Brings a frame's points and boxes into the form that detectors take.

    Attributes:
        encoding: which values of a point are used.
        voxelizer: cuts points into voxels and knows the range.
        range_mask: None where nothing is masked.
        shuffle: whether points are put into random order.
    """

    encoding: FeatureEncoding
    voxelizer: Voxelizer
    range_mask: RangeMask | None
    shuffle: bool

    @classmethod
    def from_config(cls, data_cfg: Mapping[str, Any], training: bool) -> PointProcessor:
        """Build from ``POINT_CLOUD_RANGE``, ``POINT_FEATURE_ENCODING`` and ``DATA_PROCESSOR``.

        Raises:
            ConfigError: for a missing key, an unknown processor (the known ones are listed) or an unknown key of one.
        """
        for key in ("POINT_CLOUD_RANGE", "DATA_PROCESSOR"):
            if key not in data_cfg:
                raise ConfigError(f"DATA_CONFIG has no {key}")
        mode = "train" if training else "test"
        steps = dict(_processor(entry) for entry in data_cfg["DATA_PROCESSOR"])
        if "transform_points_to_voxels" not in steps:
            raise ConfigError("DATA_PROCESSOR needs transform_points_to_voxels; the detectors here take voxels")
        encoding = _from_any_case(FeatureEncoding, data_cfg.get("POINT_FEATURE_ENCODING"), "POINT_FEATURE_ENCODING")
        cut = steps["transform_points_to_voxels"]
        geometry = _geometry(data_cfg["POINT_CLOUD_RANGE"], cut.voxel_size, len(encoding.used_feature_list))
        voxelizer = Voxelizer(geometry, int(cut.max_points_per_voxel), int(_of_mode(cut.max_number_of_voxels, mode)))
        shuffle = bool(_of_mode(steps["shuffle_points"].shuffle_enabled, mode)) if "shuffle_points" in steps else False
        return cls(encoding, voxelizer, steps.get("mask_points_and_boxes_outside_range"), shuffle)

    def select_points(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Keep the used features and the points that lie in range seen from above, in random order if configured.

        Args:
            points: ``(N, stored)``.
            rng: draws the order.

        Returns:
            ``(n, F)`` float32.
        """
        points = self.encoding(points)
        if self.range_mask is not None:
            x_min, y_min, _, x_max, y_max, _ = self.voxelizer.geometry.point_cloud_range
            x, y = points[:, 0], points[:, 1]
            points = points[(x >= x_min) & (x <= x_max) & (y >= y_min) & (y <= y_max)]
        return points[rng.permutation(len(points))] if self.shuffle else points

    def select_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Tell ``(M,)`` which boxes ``(M, 7)`` a training frame keeps."""
        if self.range_mask is None or not self.range_mask.remove_outside_boxes:
            return np.ones(len(boxes), dtype=bool)
        return self.range_mask.boxes(boxes, self.voxelizer.geometry.point_cloud_range)


def _processor(entry: Mapping[str, Any]) -> tuple[str, Any]:
    name = entry.get("NAME")
    if name not in PROCESSORS:
        raise ConfigError(f"unknown processor {name!r} in DATA_PROCESSOR; known processors: {', '.join(PROCESSORS)}")
    settings = {key: value for key, value in entry.items() if key != "NAME"}
    return name, _from_any_case(PROCESSORS[name], settings, f"{name} of DATA_PROCESSOR")


def _from_any_case(cls: type[Settings], node: Mapping[str, Any] | None, where: str) -> Settings:
    """Read a node of which OpenPCDet writes some keys in lower case."""
    return from_node(cls, {key.upper(): value for key, value in (node or {}).items()}, where)


def _of_mode(by_mode: Mapping[str, Any], mode: str) -> Any:
    if mode not in by_mode:
        raise ConfigError(f"DATA_PROCESSOR has no value for mode {mode!r} in {dict(by_mode)}")
    return by_mode[mode]


def _geometry(limits: Sequence[float], voxel_size: Sequence[float], num_features: int) -> LidarGeometry:
    if len(limits) != 6 or any(low >= high for low, high in zip(limits[:3], limits[3:], strict=False)):
        raise ConfigError(
            f"POINT_CLOUD_RANGE must be [x_min, y_min, z_min, x_max, y_max, z_max], each min below its max, "
            f"got {list(limits)}"
        )
    x0, y0, z0, x1, y1, z1 = map(float, limits)
    vx, vy, vz = map(float, voxel_size)
    return LidarGeometry((x0, y0, z0, x1, y1, z1), (vx, vy, vz), num_features)
