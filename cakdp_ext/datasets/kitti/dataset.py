"""KITTI's 3D object benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cakdp_ext.config import required
from cakdp_ext.datasets.described import DescribedFrames, Info
from cakdp_ext.datasets.frame import RawFrame
from cakdp_ext.datasets.ground_truth_sampling import GroundTruthSampler
from cakdp_ext.datasets.kitti.annotations import to_annotation
from cakdp_ext.datasets.kitti.calibration import Calibration
from cakdp_ext.datasets.kitti.labels import DONT_CARE, camera_to_lidar_boxes
from cakdp_ext.datasets.kitti.raw import LAYOUT, KittiFolder
from cakdp_ext.datasets.registry import register_dataset
from cakdp_ext.pickles import load_arrays
from cakdp_ext.types import Batch, Detections


@register_dataset("KittiDataset")
class KittiDataset(DescribedFrames):
    """Frames of one KITTI split, described by the info files that ``tools/make_infos.py`` writes.

    Arguments and errors are those of :class:`DescribedFrames`.
    """

    eval_metric = "kitti"

    def __init__(
        self,
        data_cfg: Mapping[str, Any],
        class_names: Sequence[str],
        training: bool,
        root: Path | str = ".",
        seed: int = 0,
        split: str | None = None,
    ) -> None:
        super().__init__(data_cfg, class_names, training, root, seed, split)
        self._fov_only = bool(data_cfg.get("FOV_POINTS_ONLY", True))
        self._needs_ground = any(
            isinstance(step, GroundTruthSampler) and step.settings.use_road_plane for step in self._augmentors
        )

    @property
    def folder(self) -> KittiFolder:
        """Where the files of the split are."""
        return KittiFolder(self.data_path, self.split)

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

    def _load_infos(self, data_cfg: Mapping[str, Any]) -> list[Info]:
        return _load_infos(self.data_path, _info_names(data_cfg, self.split))

    def _frame_id(self, info: Info) -> str:
        return str(info["point_cloud"]["lidar_idx"])

    def _origin(self, info: Info) -> str:
        return self._frame_id(info)

    def _meta(self, info: Info) -> Mapping[str, Any]:
        return {"calib": Calibration.from_parts(info["calib"]), "image_shape": info["image"]["image_shape"]}

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


def _labelled_boxes(info: Info, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    if "annos" not in info:
        return np.zeros((0, 7)), np.zeros(0, dtype=np.str_)
    annos = info["annos"]
    objects = annos["name"] != DONT_CARE
    location, dimensions, rotation_y = (annos[key][objects] for key in ("location", "dimensions", "rotation_y"))
    return camera_to_lidar_boxes(location, dimensions, rotation_y, calibration), annos["name"][objects]


def _info_names(data_cfg: Mapping[str, Any], split: str) -> Sequence[str]:
    splits = data_cfg.get("DATA_SPLIT", {})
    mode = next((mode for mode, name in splits.items() if name == split), None)
    return [f"kitti_infos_{split}.pkl"] if mode is None else required(data_cfg, "INFO_PATH", mode)


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
