"""KITTI's 3D object benchmark."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets.augmentation import Augmentor, build_augmentors
from cakdp_ext.datasets.frame import Frame, RawFrame
from cakdp_ext.datasets.ground_truth_sampling import GroundTruthSampler
from cakdp_ext.datasets.kitti.annotations import to_annotation
from cakdp_ext.datasets.kitti.calibration import Calibration
from cakdp_ext.datasets.kitti.labels import DONT_CARE, camera_to_lidar_boxes, wrap_angle
from cakdp_ext.datasets.kitti.raw import LAYOUT, KittiFolder
from cakdp_ext.datasets.processing import PointProcessor
from cakdp_ext.datasets.registry import register_dataset
from cakdp_ext.pickles import load_arrays
from cakdp_ext.types import Batch, Detections, LidarGeometry

Info = dict[str, Any]


@register_dataset("KittiDataset")
class KittiDataset:
    """Frames of one KITTI split, described by the info files that ``tools/make_infos.py`` writes.

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
        mode = "train" if training else "test"
        self.class_names = tuple(class_names)
        self.training = training
        self.seed = seed
        self.split = split or _required(data_cfg, "DATA_SPLIT", mode)
        self.data_path = Path(root) / _required(data_cfg, "DATA_PATH")
        self.folder = KittiFolder(self.data_path, self.split)
        self.processor = PointProcessor.from_config(data_cfg, training)
        self._fov_only = bool(data_cfg.get("FOV_POINTS_ONLY", True))
        self._keep_points = bool(data_cfg.get("KEEP_POINTS", False))
        _check_items(data_cfg.get("GET_ITEM_LIST", ["points"]))
        self._infos = _load_infos(self.data_path, _info_names(data_cfg, self.split))
        self._augmentors: tuple[Augmentor, ...] = ()
        if training:
            self._require_labels("training")
            self._augmentors = build_augmentors(data_cfg.get("DATA_AUGMENTOR"), self.class_names, self.data_path)
        self._needs_ground = any(
            isinstance(step, GroundTruthSampler) and step.settings.use_road_plane for step in self._augmentors
        )

    @property
    def geometry(self) -> LidarGeometry:
        """Range, voxel size and features of a point."""
        return self.processor.voxelizer.geometry

    @property
    def frame_ids(self) -> list[str]:
        """Names of the frames, in order."""
        return [info["point_cloud"]["lidar_idx"] for info in self._infos]

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
            frame_id=info["point_cloud"]["lidar_idx"],
            voxels=voxels,
            voxel_coords=coords,
            voxel_num_points=num_points,
            gt_boxes=boxes,
            gt_labels=labels,
            points=points if self._keep_points else None,
            meta={"calib": Calibration.from_parts(info["calib"]), "image_shape": info["image"]["image_shape"]},
        )

    def subset(self, frame_ids: Sequence[str]) -> KittiDataset:
        """Give a data set of these frames only, in the order given.

        Ground-truth sampling then pastes objects of these frames only, so that frames held out of training stay
        unseen.

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
        chosen._augmentors = tuple(
            step.restricted_to(set(frame_ids)) if isinstance(step, GroundTruthSampler) else step
            for step in self._augmentors
        )
        return chosen

    def to_annotations(self, batch: Batch, detections: Sequence[Detections]) -> list[dict[str, Any]]:
        """Express detections as KITTI describes objects.

        Args:
            batch: made of this data set's frames.
            detections: one a frame of the batch; any may be empty.

        Returns:
            One mapping a frame: name, truncated, occluded, alpha, bbox, dimensions (l, h, w), location, rotation_y,
            score, boxes_lidar, frame_id.

        Raises:
            ValueError: when there are not as many detections as frames.
        """
        if len(detections) != batch.batch_size:
            raise ValueError(f"expected detections of {batch.batch_size} frames, got {len(detections)}")
        return [
            {**to_annotation(found, self.class_names, meta["calib"], meta["image_shape"]), "frame_id": frame_id}
            for found, meta, frame_id in zip(detections, batch.meta, batch.frame_ids, strict=True)
        ]

    def ground_truth(self) -> list[dict[str, Any]]:
        """Give the labels of every frame, regions to ignore included, with its ``frame_id``.

        Raises:
            ValueError: for a split without labels.
        """
        self._require_labels("evaluation")
        return [{**info["annos"], "frame_id": info["point_cloud"]["lidar_idx"]} for info in self._infos]

    def _raw_frame(self, info: Info) -> RawFrame:
        frame_id = info["point_cloud"]["lidar_idx"]
        calibration = Calibration.from_parts(info["calib"])
        points = self.folder.points(frame_id)
        if self._fov_only:
            points = points[calibration.in_image(points[:, :3], info["image"]["image_shape"])]
        boxes, names = _labelled_boxes(info, calibration)
        ground = None
        if self._needs_ground:
            ground = calibration.plane_to_lidar(self.folder.road_plane(frame_id))
        return RawFrame(points, boxes, names, ground)

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
            frame_id = bare["point_cloud"]["lidar_idx"]
            raise ValueError(f"split {self.split} has no labels (frame {frame_id}); {purpose} needs another split")


def _labelled_boxes(info: Info, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    if "annos" not in info:
        return np.zeros((0, 7)), np.zeros(0, dtype=np.str_)
    annos = info["annos"]
    objects = annos["name"] != DONT_CARE
    location, dimensions, rotation_y = (annos[key][objects] for key in ("location", "dimensions", "rotation_y"))
    return camera_to_lidar_boxes(location, dimensions, rotation_y, calibration), annos["name"][objects]


def _required(data_cfg: Mapping[str, Any], key: str, mode: str | None = None) -> Any:
    if key not in data_cfg:
        raise ConfigError(f"DATA_CONFIG has no {key}")
    if mode is None:
        return data_cfg[key]
    if mode not in data_cfg[key]:
        raise ConfigError(f"{key} has no entry {mode!r}; it has {', '.join(data_cfg[key]) or 'none'}")
    return data_cfg[key][mode]


def _check_items(items: Sequence[str]) -> None:
    unknown = [item for item in items if item != "points"]
    if unknown:
        raise ConfigError(f"GET_ITEM_LIST asks for {', '.join(unknown)}; the detectors here take points only")


def _info_names(data_cfg: Mapping[str, Any], split: str) -> Sequence[str]:
    splits = data_cfg.get("DATA_SPLIT", {})
    mode = next((mode for mode, name in splits.items() if name == split), None)
    return [f"kitti_infos_{split}.pkl"] if mode is None else _required(data_cfg, "INFO_PATH", mode)


def _load_infos(data_path: Path, names: Sequence[str]) -> list[Info]:
    if not data_path.is_dir():
        raise FileNotFoundError(f"no data folder {data_path}; {LAYOUT}")
    infos: list[Info] = []
    for name in names:
        path = data_path / name
        if not path.is_file():
            raise FileNotFoundError(
                f"no info file {path}; make it with: python tools/make_infos.py --data_path {data_path}"
            )
        infos += load_arrays(path)
    return infos
