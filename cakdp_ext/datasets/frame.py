"""What a data set makes of one sweep: before voxelisation, and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class RawFrame:
    """Points and labelled objects of one sweep, in the LiDAR frame.

    Attributes:
        points: ``(N, F)`` float32; x, y, z in metres, then whatever else the sensor gives.
        boxes: ``(M, 7)`` float64.
        names: ``(M,)`` class names.
        ground: ``(4,)`` plane a, b, c, d with ``a x + b y + c z + d = 0`` on the road; None where it is unknown.
    """

    points: np.ndarray
    boxes: np.ndarray
    names: np.ndarray
    ground: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """One sweep as a detector takes it, not yet collated.

    Attributes:
        frame_id: its name.
        voxels: ``(V, P, F)`` float32, zero-padded; V is 0 when no point lies in range.
        voxel_coords: ``(V, 3)`` int32, ``(z, y, x)``.
        voxel_num_points: ``(V,)`` int32.
        gt_boxes: ``(M, 7)`` float32; M is 0 without labels or without objects.
        gt_labels: ``(M,)`` int64, 0-based.
        points: ``(N, F)`` float32, or None when the data set does not keep them.
        meta: what the frame's evaluation needs.
    """

    frame_id: str
    voxels: np.ndarray
    voxel_coords: np.ndarray
    voxel_num_points: np.ndarray
    gt_boxes: np.ndarray
    gt_labels: np.ndarray
    points: np.ndarray | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
