"""What passes between the parts: frames, predictions, filter scores, pruning plans.

Conventions, everywhere inside the package:

* boxes are ``(x, y, z, dx, dy, dz, heading)``: geometric centre and full sizes in metres, heading in radians,
  counter-clockwise about +z from +x, in the LiDAR frame;
* labels are 0-based (OpenPCDet's 1-based labels are converted where data enters or leaves);
* logits are raw, scores lie in [0, 1].
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class Role(enum.Enum):
    """What a distillation method may look at, in the order in which a detector computes it; see ``cakdp_ext.taps``.

    ``VOXELS`` and ``SPARSE`` come from the 3D part, ``BEV`` from the maps, ``DENSE`` and ``BOXES`` from the dense head;
    ``SECOND_STAGE`` is the right to ask the teacher's second stage about boxes.
    """

    VOXELS = "voxels"
    SPARSE = "sparse"
    BEV = "bev"
    DENSE = "dense"
    BOXES = "boxes"
    SECOND_STAGE = "second_stage"


Roles = frozenset[Role]
PREDICTIONS: Roles = frozenset({Role.DENSE})


class MissingSpconvError(ImportError):
    """spconv cannot be imported; the message says what to install."""

    @classmethod
    def because(cls, error: ImportError) -> MissingSpconvError:
        """Say why the import failed and which distribution there is for which machine."""
        return cls(
            f"spconv 2 cannot be imported ({error}); pip install spconv==2.3.8 for CPU, spconv-cu124==2.3.8 or "
            "spconv-cu126==2.3.8 for CUDA, and only one of them"
        )


def to_device(value: T, device: torch.device | str) -> T:
    """Copy a dataclass of tensors (tuples of tensors included) to a device; every other field is kept as it is.

    Args:
        value: a dataclass instance.
        device: where its tensors shall live.

    Returns:
        A new instance of the same class.
    """

    def move(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item.to(device, non_blocking=torch.device(device).type != "cpu")  # else read before it has come
        if isinstance(item, tuple):
            return tuple(move(part) for part in item)
        return item

    changes = {f.name: move(getattr(value, f.name)) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class LidarGeometry:
    """The region that a detector sees and how it is cut into voxels.

    Attributes:
        point_cloud_range: ``(x_min, y_min, z_min, x_max, y_max, z_max)`` in metres.
        voxel_size: ``(vx, vy, vz)`` in metres.
        num_point_features: channels of a point, x, y and z included.
    """

    point_cloud_range: tuple[float, float, float, float, float, float]
    voxel_size: tuple[float, float, float]
    num_point_features: int = 4

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Number of voxels along x, y and z."""
        low, high = np.array(self.point_cloud_range[:3]), np.array(self.point_cloud_range[3:])
        nx, ny, nz = np.round((high - low) / np.array(self.voxel_size)).astype(int).tolist()
        return nx, ny, nz

    def cell_centers(self, stride: int, num_per_cell: int = 1) -> Tensor:
        """Give the metric centre of the cell behind each site of a bird's-eye-view map, row by row.

        Args:
            stride: of the map with respect to the voxel grid.
            num_per_cell: sites that share a cell.

        Returns:
            ``(A, 2)`` float32 x and y, in the order of the sites.
        """
        x, y = (
            self.point_cloud_range[axis]
            + (torch.arange(self.grid_size[axis] // stride, dtype=torch.float64) + 0.5) * self.voxel_size[axis] * stride
            for axis in range(2)
        )
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([columns, rows], dim=-1).reshape(-1, 2).repeat_interleave(num_per_cell, dim=0).float()


@dataclass(frozen=True)
class Batch:
    """Frames of one step, collated.

    Attributes:
        batch_size: number of frames B.
        voxels: ``(V, P, F)`` float32, the points of each voxel, zero-padded.
        voxel_coords: ``(V, 4)`` int32, ``(batch, z, y, x)``.
        voxel_num_points: ``(V,)`` int32, how many of the P rows are points.
        gt_boxes: ``(B, M, 7)`` float32, zero-padded.
        gt_labels: ``(B, M)`` int64, 0-based, -1 where padded.
        frame_ids: B names.
        points: ``(N, 1 + F)`` float32, batch index first; None unless the data set was told to keep them.
        meta: one mapping a frame with what its evaluation needs (KITTI: ``calib``, ``image_shape``).
    """

    batch_size: int
    voxels: Tensor
    voxel_coords: Tensor
    voxel_num_points: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    frame_ids: tuple[str, ...]
    points: Tensor | None = None
    meta: tuple[Mapping[str, Any], ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device."""
        return to_device(self, device)


@dataclass(frozen=True)
class PredictionSites:
    """Where the A predictions of a dense head sit; the same for every frame.

    Attributes:
        centers: ``(A, 2)`` metric x, y of the centre of each prediction's cell; one tensor from call to call, because
            what is computed from it is kept.
        anchors: ``(A, 7)`` boxes of an anchor head; None for a center head.
        stride: cumulative stride of the head's map with respect to the voxel grid.
        num_classes: how many classes the head tells apart.
        class_names: their names by label; empty where they are not told apart, or nobody knows.
    """

    centers: Tensor
    anchors: Tensor | None
    stride: int
    num_classes: int
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class DensePredictions:
    """What a dense head says about every one of its A sites.

    Attributes:
        cls_logits: ``(B, A, C)`` raw class logits, with gradient in training.
        boxes: ``(B, A, 7)`` decoded boxes, metres and radians.
        iou_logits: ``(B, A, C)`` raw output of the IoU head, or None where there is none.
    """

    cls_logits: Tensor
    boxes: Tensor
    iou_logits: Tensor | None = None


@dataclass(frozen=True)
class Detections:
    """What remains for one frame after NMS, best first.

    Attributes:
        boxes: ``(n, 7)``.
        scores: ``(n,)`` in [0, 1].
        labels: ``(n,)`` int64, 0-based.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> Detections:
        """Copy to a device."""
        return to_device(self, device)


@dataclass(frozen=True)
class RaceResult:
    """How a race between filters for their place ended.

    Attributes:
        keep_ratio: share of the decisions that stay; the race tells nothing about another one.
        confidence: a filter left the race when its chance to be on the other side of the cut was below 1 - this.
        agreement: share of what stays that scoring on all frames is expected to keep too.
        decided: ``(groups,)`` int8: 1 stays, 2 stays because the rules of the layers say so, -1 goes, 0 was still open
            when the race ended.
        seed: that the order of the frames was drawn with.
        num_frames: how many it might look at; None in files that do not say so.
    """

    keep_ratio: float
    confidence: float
    agreement: float
    decided: np.ndarray
    seed: int = 0
    num_frames: int | None = None


@dataclass(frozen=True)
class FilterScores:
    """How much every filter matters for the category predictions (Eq. 4), averaged over frames.

    Attributes:
        values: layer name -> ``(filters,)`` float64, the mean over frames of Eq. 4's term; filters that only go
            together share theirs equally, so that their sum is Eq. 4 without all of them.
        fingerprint: of the model that was scored, weights included.
        removal: ``channel`` or ``zero_weight``.
        split: data split the frames came from.
        frame_ids: frames that count: ``values`` are the means over them.
        version: of the package that wrote it.
        gaps: ``(frames, groups)`` float64, Eq. 4's term of every frame and group of the channel graph; NaN where it was
            not measured, or a race had decided already. None where it is not on record.
        race: how a race ended; None for scores of all filters on all frames.
        spare: frame -> ``(groups,)`` float64, gaps on record that do not count, because they were not asked for; NaN
            where there is none.
    """

    values: Mapping[str, np.ndarray]
    fingerprint: str
    removal: str
    split: str
    frame_ids: tuple[str, ...]
    version: str
    gaps: np.ndarray | None = None
    race: RaceResult | None = None
    spare: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PruningPlan:
    """Which filters stay.

    Attributes:
        keep_indices: layer name -> ascending indices of the filters that stay.
        num_filters: layer name -> filters before the cut.
        fingerprint: of the architecture it cuts (names and shapes of the prunable layers).
        source: where it came from, for people and reports.
    """

    keep_indices: Mapping[str, tuple[int, ...]]
    num_filters: Mapping[str, int]
    fingerprint: str
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keep_ratio(self) -> float:
        """Share of all filters that stays."""
        return sum(map(len, self.keep_indices.values())) / max(sum(self.num_filters.values()), 1)


@dataclass(frozen=True)
class Evaluation:
    """How good a set of detections is.

    Attributes:
        metrics: e.g. ``Car_3d/moderate_R40`` -> AP in percent.
        text: the table that is printed.
    """

    metrics: Mapping[str, float]
    text: str


Annotations = Sequence[Mapping[str, Any]]
"""One mapping a frame in KITTI's terms: name, truncated, occluded, alpha, bbox, dimensions (l, h, w), location,
rotation_y, score, and for LiDAR use boxes_lidar."""
