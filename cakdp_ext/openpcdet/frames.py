"""OpenPCDet's data sets as the engine knows data sets, whoever wrote them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict
from pcdet import datasets

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.batches import OpenPCDetBatch, to_batch
from cakdp_ext.openpcdet.faces import geometry_of
from cakdp_ext.openpcdet.locate import openpcdet_root
from cakdp_ext.openpcdet.resolve import make_absolute
from cakdp_ext.openpcdet.segments import require_evaluation
from cakdp_ext.openpcdet.splits import require_infos, split_config
from cakdp_ext.types import Batch, Detections, Evaluation, LidarGeometry

LOG = logging.getLogger("cakdp_ext")


def build_split(config: Mapping[str, Any], split: str) -> OpenPCDetFrames:
    """Build the frames of one split with OpenPCDet's own data set, not augmented.

    Args:
        config: the whole configuration.
        split: ``held_out``, one of ``DATA_SPLIT``, or any other whose info files lie beside those of train.

    Raises:
        ConfigError: for an unknown data set, or a split without frames.
        FileNotFoundError: for an info file that is not there.
    """
    tree = split_config(make_absolute(EasyDict(dict(config)), openpcdet_root()), split)
    require_infos(tree, "test")
    data_cfg = tree.DATA_CONFIG
    known = datasets.__all__
    if data_cfg.DATASET not in known:
        raise ConfigError(f"OpenPCDet has no data set {data_cfg.DATASET!r}; it has {', '.join(known)}")
    dataset = known[data_cfg.DATASET](
        dataset_cfg=data_cfg, class_names=list(tree.CLASS_NAMES), training=False, logger=LOG
    )
    frames = OpenPCDetFrames(dataset, split, config=tree)
    if not len(frames):
        raise ConfigError(f"split {split} of {data_cfg.DATA_PATH} has no frames; look at its info files")
    return frames


class OpenPCDetFrames:
    """Frames of a data set of OpenPCDet's under the engine's ``LidarDataset`` protocol.

    Args:
        dataset: made for testing.
        split: its name.
        indices: which of its frames, in order; None takes all.
        config: the whole configuration, whose ``EVAL_METRIC`` names the evaluation.
    """

    training = False

    def __init__(
        self, dataset: Any, split: str, indices: Sequence[int] | None = None, config: Mapping[str, Any] | None = None
    ) -> None:
        self.config = config or {"DATA_CONFIG": dataset.dataset_cfg}
        self.dataset, self.split = dataset, split
        self.class_names = tuple(dataset.class_names)
        self._infos = _infos_of(dataset)
        self._indices = list(range(len(dataset)) if indices is None else indices)

    @property
    def geometry(self) -> LidarGeometry:
        """Range, voxel size and features of a point."""
        return geometry_of(self.dataset)

    @property
    def frame_ids(self) -> list[str]:
        """Names of the frames, in order."""
        return [_frame_id(self._infos[index]) for index in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """Load one frame in OpenPCDet's keys."""
        found: dict[str, Any] = self.dataset[self._indices[index[1] if isinstance(index, tuple) else index]]
        return found

    def collate(self, frames: Sequence[dict[str, Any]]) -> OpenPCDetBatch:
        """Put frames into one batch, as the data set has it."""
        return to_batch(self.dataset.collate_batch(list(frames)))

    def subset(self, frame_ids: Sequence[str]) -> OpenPCDetFrames:
        """Give these frames only, in the order given."""
        place = dict(zip(self.frame_ids, self._indices, strict=True))
        return OpenPCDetFrames(self.dataset, self.split, [place[frame] for frame in frame_ids], self.config)

    def to_annotations(self, batch: Batch, detections: Sequence[Detections]) -> list[dict[str, Any]]:
        """Express detections in the terms of the data set's evaluation."""
        if not isinstance(batch, OpenPCDetBatch):
            raise TypeError(f"expected a batch of this data set, got {type(batch).__name__}")
        found = [{"pred_boxes": d.boxes, "pred_scores": d.scores, "pred_labels": d.labels + 1} for d in detections]
        annotations: list[dict[str, Any]] = self.dataset.generate_prediction_dicts(
            batch.data, found, list(self.class_names)
        )
        return [{**each, "frame_id": str(each["frame_id"])} for each in annotations]

    def ground_truth(self) -> list[dict[str, Any]]:
        """Give the labels of every frame as its info file has them.

        Raises:
            ConfigError: for a split without labels, or where an evaluation lacks what it imports.
        """
        require_evaluation(self.config)
        infos = [self._infos[index] for index in self._indices]
        if not all("annos" in info for info in infos):
            raise ConfigError(f"split {self.split} has no labels; it cannot be evaluated")
        return [dict(info["annos"]) for info in infos]

    def evaluate(self, annotations: Sequence[Mapping[str, Any]]) -> Evaluation:
        """Run the data set's own evaluation on the detections of all frames.

        Raises:
            ValueError: for detections of some frames only.
        """
        if len(annotations) != len(self.dataset):
            raise ValueError(f"{len(self.dataset)} frames are evaluated together, got {len(annotations)}")
        metric = self.config.get("MODEL", {}).get("POST_PROCESSING", {}).get("EVAL_METRIC", "kitti")
        text, metrics = self.dataset.evaluation(list(annotations), list(self.class_names), eval_metric=metric)
        return Evaluation({name: float(value) * _to_percent(name) for name, value in metrics.items()}, text or "")


def _to_percent(metric: str) -> float:
    """Give what turns a metric into percent: Waymo's are shares of 1, the others percent already."""
    return 100.0 if metric.startswith("OBJECT_TYPE_TYPE_") else 1.0


def _infos_of(dataset: Any) -> Sequence[Mapping[str, Any]]:
    """Find a data set's list of frames, which each class names its own way: ``kitti_infos``, ``infos``, ..."""
    lists = {name: value for name, value in vars(dataset).items() if name.endswith("infos") and isinstance(value, list)}
    for value in lists.values():
        if len(value) == len(dataset):
            return value
    raise ConfigError(
        f"{type(dataset).__name__} has no list named *infos with an entry for each of its {len(dataset)} frames; "
        f"it has {', '.join(lists) or 'none'}"
    )


def _frame_id(info: Mapping[str, Any]) -> str:
    """Read a frame's name where the data sets of OpenPCDet keep it, the one that ends up in ``batch_dict``."""
    if "frame_id" in info:
        return str(info["frame_id"])
    if "lidar_idx" in info.get("point_cloud", {}):
        return str(info["point_cloud"]["lidar_idx"])
    if "lidar_path" in info:
        return Path(info["lidar_path"]).stem
    raise ConfigError(f"an info entry names its frame neither frame_id nor point_cloud.lidar_idx: {', '.join(info)}")
