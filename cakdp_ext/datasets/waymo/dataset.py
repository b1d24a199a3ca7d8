"""The Waymo Open Dataset, processed as OpenPCDet does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cakdp_ext.config import ConfigError, from_node, required
from cakdp_ext.datasets.described import DescribedFrames, Info
from cakdp_ext.datasets.frame import RawFrame
from cakdp_ext.datasets.registry import register_dataset
from cakdp_ext.datasets.waymo.sweeps import SweepSequence
from cakdp_ext.types import Batch, Detections
from cakdp_ext.waymo_layout import NUM_FEATURES, OUTSIDE_NO_LABEL_ZONES, WaymoFolder

UNKNOWN = "unknown"
_REFUSED = {
    "TRAIN_WITH_SPEED": "the detectors here predict no speed",
    "USE_PREDBOX": "the detectors here take no boxes of another detector",
    "INFO_WITH_FAKELIDAR": "infos of that kind are not read; process the segments again",
}


@register_dataset("WaymoDataset")
class WaymoDataset(DescribedFrames):
    """Sweeps of one split, every ``SAMPLED_INTERVAL``-th of them.

    Beside the keys of :class:`DescribedFrames` it reads ``PROCESSED_DATA_TAG``, ``SAMPLED_INTERVAL`` (by mode),
    ``DISABLE_NLZ_FLAG_ON_POINTS`` (keep points of no-label zones), ``POINTS_TANH_DIM`` (columns that tanh is applied
    to; intensity without it), ``FILTER_EMPTY_BOXES_FOR_TRAIN`` and ``SEQUENCE_CONFIG``. Points and boxes are in the
    vehicle's frame, whose origin lies on the ground.
    """

    eval_metric = "waymo"

    def __init__(
        self,
        data_cfg: Mapping[str, Any],
        class_names: Sequence[str],
        training: bool,
        root: Path | str = ".",
        seed: int = 0,
        split: str | None = None,
    ) -> None:
        for key, reason in _REFUSED.items():
            if data_cfg.get(key, False):
                raise ConfigError(f"DATA_CONFIG.{key} must be False: {reason}")
        self.reader = SweepReader.from_config(data_cfg, root)
        self._skip_empty = training and bool(data_cfg.get("FILTER_EMPTY_BOXES_FOR_TRAIN", False))
        self._segments: dict[str, dict[int, Info]] = {}
        super().__init__(data_cfg, class_names, training, root, seed, split)
        stored = len(self.processor.encoding.src_feature_list)
        if stored != self.reader.num_features:
            raise ConfigError(
                f"POINT_FEATURE_ENCODING.src_feature_list names {stored} values, the points have "
                f"{self.reader.num_features} (SEQUENCE_CONFIG adds what tells sweeps apart)"
            )

    @property
    def segment_ids(self) -> list[str]:
        """Name of each frame's segment, in order: frames of one segment show the same street."""
        return [self._origin(info) for info in self._infos]

    def to_annotations(self, batch: Batch, detections: Sequence[Detections]) -> list[dict[str, Any]]:
        """Express detections as OpenPCDet does for its Waymo evaluation.

        Args:
            batch: made of this data set's frames.
            detections: one a frame of the batch; any may be empty.

        Returns:
            One mapping a frame: name, score, boxes_lidar ``(n, 7)``, pred_labels (1-based), frame_id, metadata.

        Raises:
            ValueError: when there are not as many detections as frames.
        """
        if len(detections) != batch.batch_size:
            raise ValueError(f"expected detections of {batch.batch_size} frames, got {len(detections)}")
        return [
            {**self._annotation(found), "frame_id": frame_id, **meta}
            for found, frame_id, meta in zip(detections, batch.frame_ids, batch.meta, strict=True)
        ]

    def ground_truth(self) -> list[dict[str, Any]]:
        """Give the labels of every frame with its ``frame_id``.

        Raises:
            ValueError: for a split without labels.
        """
        self._require_labels("evaluation")
        return [{**info["annos"], "frame_id": self._frame_id(info)} for info in self._infos]

    def _annotation(self, found: Detections) -> dict[str, np.ndarray]:
        labels = found.labels.detach().cpu().numpy()
        return {
            "name": np.array(self.class_names, dtype=np.str_)[labels],
            "score": found.scores.detach().cpu().numpy(),
            "boxes_lidar": found.boxes.detach().cpu().numpy().reshape(-1, 7),
            "pred_labels": labels + 1,
        }

    def _load_infos(self, data_cfg: Mapping[str, Any]) -> list[Info]:
        modes = [mode for mode, name in required(data_cfg, "DATA_SPLIT").items() if name == self.split]
        interval = int(required(data_cfg, "SAMPLED_INTERVAL", modes[0] if modes else "test"))
        if interval < 1:
            raise ConfigError(f"SAMPLED_INTERVAL must be at least 1, got {interval}")
        infos = self.reader.folder.split_infos(self.split)
        if self.reader.sequence.enabled:
            for info in infos:
                self._segments.setdefault(self._origin(info), {})[int(info["point_cloud"]["sample_idx"])] = info
        return infos[::interval]

    def _frame_id(self, info: Info) -> str:
        return str(info["frame_id"])

    def _origin(self, info: Info) -> str:
        return str(info["point_cloud"]["lidar_sequence"])

    def _meta(self, info: Info) -> Mapping[str, Any]:
        return {"metadata": info.get("metadata", info["frame_id"])}

    def _raw_frame(self, info: Info) -> RawFrame:
        points = self.reader(info, self._segments.get(self._origin(info), {}))
        annos = info.get("annos")
        if annos is None:
            return RawFrame(points, np.zeros((0, 7)), np.zeros(0, dtype=np.str_))
        names, boxes = np.asarray(annos["name"]), np.asarray(annos["gt_boxes_lidar"], dtype=np.float64)
        kept = names != UNKNOWN
        if self._skip_empty:
            kept &= np.asarray(annos["num_points_in_gt"]) > 0
        return RawFrame(points, boxes.reshape(len(names), boxes.shape[-1])[kept, :7], names[kept])


class SweepReader:
    """Gives a frame's points as OpenPCDet's detectors take them.

    Args:
        folder: where the sweeps are.
        sequence: which earlier sweeps belong to a frame.
        tanh_columns: columns that are squashed by tanh.
        with_no_label_zones: whether points of no-label zones are kept.
    """

    def __init__(
        self, folder: WaymoFolder, sequence: SweepSequence, tanh_columns: Sequence[int], with_no_label_zones: bool
    ) -> None:
        self.folder, self.sequence = folder, sequence
        self.tanh_columns, self.with_no_label_zones = list(tanh_columns), with_no_label_zones

    @classmethod
    def from_config(cls, data_cfg: Mapping[str, Any], root: Path | str = ".") -> SweepReader:
        """Build from ``DATA_CONFIG``.

        Raises:
            ConfigError: for a missing key, or a value that is none of a key's.
        """
        columns = data_cfg.get("POINTS_TANH_DIM")
        columns = [3] if columns is None else columns
        if any(column not in range(NUM_FEATURES) for column in columns):
            raise ConfigError(f"POINTS_TANH_DIM takes columns 0 to {NUM_FEATURES - 1}, got {list(columns)}")
        tag = required(data_cfg, "PROCESSED_DATA_TAG")
        return cls(
            WaymoFolder(Path(root) / required(data_cfg, "DATA_PATH"), str(tag)),
            from_node(SweepSequence, data_cfg.get("SEQUENCE_CONFIG"), "DATA_CONFIG.SEQUENCE_CONFIG"),
            columns,
            bool(data_cfg.get("DISABLE_NLZ_FLAG_ON_POINTS", False)),
        )

    @property
    def num_features(self) -> int:
        """Values of a point."""
        if not self.sequence.enabled:
            return NUM_FEATURES
        return NUM_FEATURES + (len(self.sequence.earlier(0)) + 1 if self.sequence.onehot_timestamp else 1)

    def __call__(self, info: Info, segment: Mapping[int, Info]) -> np.ndarray:
        """Read the points ``(N, num_features)`` float32 of a frame.

        Args:
            info: of the frame.
            segment: infos of its segment by number; used with earlier sweeps only.
        """
        name = str(info["point_cloud"]["lidar_sequence"])
        if self.sequence.enabled:
            return self.sequence.gather(info, segment, lambda number: self.sweep(name, number))
        return self.sweep(name, int(info["point_cloud"]["sample_idx"]))

    def sweep(self, segment: str, sample_idx: int) -> np.ndarray:
        """Read ``(N, 5)`` float32 x, y, z, intensity, elongation of one sweep in its own frame."""
        stored = self.folder.points(segment, sample_idx)
        if not self.with_no_label_zones:
            stored = stored[stored[:, NUM_FEATURES] == OUTSIDE_NO_LABEL_ZONES]
        points = np.array(stored[:, :NUM_FEATURES])
        points[:, self.tanh_columns] = np.tanh(points[:, self.tanh_columns])
        return points
