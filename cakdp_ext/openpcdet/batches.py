"""OpenPCDet's ``batch_dict`` and our ``Batch``, each as the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cakdp_ext.types import Batch

_KEPT = ("frame_id", "metadata", "calib", "image_paths", "ori_shape", "img_process_infos")
"""Keys that OpenPCDet leaves as they are when it moves a batch."""
_VOXELS = ("voxels", "voxel_coords", "voxel_num_points")


@dataclass(frozen=True)
class OpenPCDetBatch(Batch):
    """A batch that one of OpenPCDet's data sets made.

    Attributes:
        data: everything that it holds, in OpenPCDet's keys; arrays are tensors, float32 as its models expect them.
    """

    data: Mapping[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> OpenPCDetBatch:
        """Copy to a device."""
        return to_batch({key: v.to(device) if isinstance(v, Tensor) else v for key, v in self.data.items()})


def to_batch(data: Mapping[str, Any]) -> OpenPCDetBatch:
    """Read a collated ``batch_dict``, before or after OpenPCDet has moved it to a device.

    Args:
        data: with ``batch_size``, ``frame_id`` and ``voxels``, ``voxel_coords``, ``voxel_num_points`` or, for networks
            that sort the points themselves, ``points`` at least; ``gt_boxes (B, M, 7 + C + 1)`` end with the 1-based
            label, 0 where padded. It is copied, its values are not.

    Returns:
        The batch; without ``gt_boxes`` it has no objects, without voxels none of them.

    Raises:
        ValueError: naming a key that is missing.
    """
    is_unsorted = "points" in data and not any(key in data for key in _VOXELS)
    missing = [key for key in ("batch_size", "frame_id", *(() if is_unsorted else _VOXELS)) if key not in data]
    if missing:
        raise ValueError(f"the batch has no {', '.join(missing)}; is there a voxelisation in DATA_PROCESSOR?")
    tensors = {key: _as_tensor(key, value) for key, value in data.items()}
    voxels, coords, counts = _no_voxels(tensors["points"]) if is_unsorted else (tensors[key] for key in _VOXELS)
    size = int(data["batch_size"])
    objects = tensors.get("gt_boxes", voxels.new_zeros(size, 0, 8))
    return OpenPCDetBatch(
        batch_size=size,
        voxels=voxels,
        voxel_coords=coords.int(),
        voxel_num_points=counts.int(),
        gt_boxes=objects[..., :7],
        gt_labels=objects[..., -1].long() - 1,
        frame_ids=tuple(map(str, data["frame_id"])),
        points=tensors.get("points"),
        data=tensors,
    )


def with_targets(given: Any, scene: Batch, targets: Batch) -> Any:
    """Give what a detector was given, with other objects; further columns of the first ones, such as velocities, stay.

    Args:
        given: a ``batch_dict``, or a batch.
        scene: the same as a batch.
        targets: ``scene``, or a batch with its objects first in each frame and in their order, and others behind them.
    """
    if targets is scene or (isinstance(given, Batch) and not isinstance(given, OpenPCDetBatch)):
        return given if targets is scene else targets
    data = to_batch_dict(scene)
    rows, old = targets.gt_boxes.shape[1], data["gt_boxes"]
    objects = old.new_zeros(len(old), rows, old.shape[2])
    kept = min(rows, old.shape[1])
    objects[:, :kept] = old[:, :kept]
    objects[..., :7], objects[..., -1] = targets.gt_boxes, targets.gt_labels + 1
    data["gt_boxes"] = objects
    return to_batch(data) if isinstance(given, Batch) else data


def _no_voxels(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return points.new_zeros(0, 1, points.shape[1] - 1), points.new_zeros(0, 4), points.new_zeros(0)


def _as_tensor(key: str, value: Any) -> Any:
    if key in _KEPT or not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return value
    return torch.from_numpy(value).to(torch.int32 if key == "image_shape" else torch.float32)


def to_batch_dict(batch: Batch) -> dict[str, Any]:
    """Give what OpenPCDet's modules take; they may add and replace keys without changing the batch.

    Args:
        batch: of either engine.
    """
    if isinstance(batch, OpenPCDetBatch):
        return dict(batch.data)
    labels = (batch.gt_labels + 1).to(batch.gt_boxes)
    data: dict[str, Any] = {
        "batch_size": batch.batch_size,
        "frame_id": np.array(batch.frame_ids),
        "voxels": batch.voxels,
        "voxel_coords": batch.voxel_coords.float(),
        "voxel_num_points": batch.voxel_num_points.float(),
        "gt_boxes": torch.cat([batch.gt_boxes, labels[..., None]], dim=-1),
    }
    if batch.points is not None:
        data["points"] = batch.points
    return data
