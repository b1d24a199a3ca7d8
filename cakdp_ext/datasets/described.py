"""Frames that info files describe: what every data set of this kind does with them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cakdp_ext.config import ConfigError, required
from cakdp_ext.datasets.augmentation import Augmentor, build_augmentors
from cakdp_ext.datasets.frame import Frame, RawFrame
from cakdp_ext.datasets.ground_truth_sampling import GroundTruthSampler
from cakdp_ext.datasets.processing import PointProcessor
from cakdp_ext.types import LidarGeometry

Info = dict[str, Any]
Self = TypeVar("Self", bound="DescribedFrames")


class DescribedFrames(ABC):
    """Frames of one split, each described by a mapping that was written beforehand.

    In training a frame is augmented, and one that loses all its objects is kept: what ``dataset[(epoch, index)]``
    gives depends on the seed, the epoch and the index alone. Otherwise boxes out of range are kept too, as in
    OpenPCDet.

    Args:
        data_cfg: the node ``DATA_CONFIG``, in OpenPCDet's keys; ``KEEP_POINTS: True`` puts the points into the batch
            beside the voxels, which are all that the detectors here take.
        class_names: classes to detect; their order gives the labels.
        training: whether frames are augmented.
        root: folder that a relative ``DATA_PATH`` starts from.
        seed: of the augmentation.
        split: overrides ``DATA_SPLIT``, e.g. to score filters on frames of train.

    Raises:
        ConfigError: for a key that is missing, unknown or cannot be honoured.
        FileNotFoundError: for missing data or info files; says what to do.
    """

    def __init__(
        self,
        data_cfg: Mapping[str, Any],
        class_names: Sequence[str],
        training: bool,
        root: Path | str = ".",
        seed: int = 0,
        split: str | None = None,
    ) -> None:
        self.class_names = tuple(class_names)
        self.training = training
        self.seed = seed
        self.split = split or required(data_cfg, "DATA_SPLIT", "train" if training else "test")
        self.data_path = Path(root) / required(data_cfg, "DATA_PATH")
        self.processor = PointProcessor.from_config(data_cfg, training)
        self._keep_points = bool(data_cfg.get("KEEP_POINTS", False))
        _check_items(data_cfg.get("GET_ITEM_LIST", ["points"]))
        self._infos = self._load_infos(data_cfg)
        self._augmentors: tuple[Augmentor, ...] = ()
        if training:
            self._require_labels("training")
            self._augmentors = build_augmentors(data_cfg.get("DATA_AUGMENTOR"), self.class_names, self.data_path)

    @property
    def geometry(self) -> LidarGeometry:
        """Range, voxel size and features of a point."""
        return self.processor.voxelizer.geometry

    @property
    def frame_ids(self) -> list[str]:
        """Names of the frames, in order."""
        return [self._frame_id(info) for info in self._infos]

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._infos)

    def __getitem__(self, index: int | tuple[int, int]) -> Frame:
        """Load, augment (in training) and voxelise one frame.

        Args:
            index: of the frame, or ``(epoch, index)``.

        Raises:
            IndexError: out of range.
            FileNotFoundError: when the points, or a road plane that is wanted, are missing.
            ValueError: when a file of the frame cannot be read.
        """
        epoch, position = index if isinstance(index, tuple) else (0, index)
        position = range(len(self))[position]
        rng = np.random.default_rng((self.seed, epoch, position))
        info = self._infos[position]
        raw = self._raw_frame(info)
        for augment in self._augmentors:
            raw = augment(raw, rng)
        points = self.processor.select_points(raw.points, rng)
        boxes, labels = self._objects(raw)
        voxels, coords, num_points = self.processor.voxelizer(points)
        return Frame(
            frame_id=self._frame_id(info),
            voxels=voxels,
            voxel_coords=coords,
            voxel_num_points=num_points,
            gt_boxes=boxes,
            gt_labels=labels,
            points=points if self._keep_points else None,
            meta=self._meta(info),
        )

    def subset(self: Self, frame_ids: Sequence[str]) -> Self:
        """Give a data set of these frames only, in the order given.

        Ground-truth sampling then pastes objects of these frames only (for sequences: of their segments), so that
        frames held out of training stay unseen.

        Raises:
            ValueError: for a frame that the split does not have.
        """
        infos = dict(zip(self.frame_ids, self._infos, strict=True))
        unknown = [frame for frame in frame_ids if frame not in infos]
        if unknown:
            raise ValueError(f"split {self.split} has no frame {', '.join(unknown[:5])}; it has {len(infos)} frames")
        chosen = copy.copy(self)
        chosen.processor = replace(self.processor, voxelizer=copy.copy(self.processor.voxelizer))
        chosen._infos = [infos[frame] for frame in frame_ids]
        origins = {self._origin(info) for info in chosen._infos}
        chosen._augmentors = tuple(
            step.restricted_to(origins) if isinstance(step, GroundTruthSampler) else step for step in self._augmentors
        )
        return chosen

    @abstractmethod
    def _load_infos(self, data_cfg: Mapping[str, Any]) -> list[Info]:
        """Read what describes the frames of ``self.split``, in order."""

    @abstractmethod
    def _frame_id(self, info: Info) -> str:
        """Name the frame."""

    @abstractmethod
    def _origin(self, info: Info) -> str:
        """Name what ``origin_of`` names for the objects of the ground-truth database: the frame or its segment."""

    @abstractmethod
    def _raw_frame(self, info: Info) -> RawFrame:
        """Read points and labelled objects."""

    @abstractmethod
    def _meta(self, info: Info) -> Mapping[str, Any]:
        """Give what the frame's evaluation needs."""

    def _objects(self, raw: RawFrame) -> tuple[np.ndarray, np.ndarray]:
        kept = np.isin(raw.names, self.class_names)
        if self.training:
            kept &= self.processor.select_boxes(raw.boxes)
        boxes = raw.boxes[kept].astype(np.float32)
        boxes[:, 6] = wrap_angle(boxes[:, 6])
        labels = np.array([self.class_names.index(name) for name in raw.names[kept]], dtype=np.int64)
        return boxes, labels

    def _require_labels(self, purpose: str) -> None:
        bare = next((info for info in self._infos if "annos" not in info), None)
        if bare is not None:
            raise ValueError(
                f"split {self.split} has no labels (frame {self._frame_id(bare)}); {purpose} needs another split"
            )


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """Bring angles into ``[-pi, pi)``."""
    return angle - np.floor(angle / (2 * np.pi) + 0.5) * (2 * np.pi)


def _check_items(items: Sequence[str]) -> None:
    unknown = [item for item in items if item != "points"]
    if unknown:
        raise ConfigError(f"GET_ITEM_LIST asks for {', '.join(unknown)}; the detectors here take points only")
