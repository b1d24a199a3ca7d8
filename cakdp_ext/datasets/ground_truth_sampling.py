"""Objects of other frames, pasted where there is room."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cakdp_ext import ops
from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.datasets.frame import RawFrame
from cakdp_ext.pickles import load_arrays

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class SamplingSettings:
    """What ``gt_sampling`` may be told.

    Attributes:
        db_info_path: files that describe the database, relative to the data folder.
        sample_groups: ``class:count`` in the order of sampling.
        prepare: ``filter_by_min_points`` (``class:count``) and ``filter_by_difficulty`` (levels to leave out).
        use_road_plane: whether pasted objects are put on the road; then every frame must have its plane.
        limit_whole_scene: whether counts include the objects that the frame has already.
        remove_extra_width: by how much pasted boxes grow in x, y and z when the points in them are removed, metres.
        num_point_features: values a stored point.
        database_with_fakelidar: the box format of databases before OpenPCDet 0.3, which is not read.
    """

    db_info_path: tuple[str, ...]
    sample_groups: tuple[str, ...]
    prepare: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    use_road_plane: bool = False
    limit_whole_scene: bool = False
    remove_extra_width: tuple[float, float, float] = (0.0, 0.0, 0.0)
    num_point_features: int = 4
    database_with_fakelidar: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.prepare) - {"filter_by_min_points", "filter_by_difficulty"}
        if unknown:
            raise ValueError(
                f"unknown PREPARE {', '.join(sorted(unknown))}; known: filter_by_min_points, filter_by_difficulty"
            )
        if self.database_with_fakelidar:
            raise ValueError("DATABASE_WITH_FAKELIDAR: True is not read; make the database again with make_infos.py")

    @property
    def counts(self) -> dict[str, int]:
        """Class -> objects wanted in a frame."""
        return _counts(self.sample_groups, "SAMPLE_GROUPS")

    @property
    def min_points(self) -> dict[str, int]:
        """Class -> fewest points of an object that is used."""
        return _counts(self.prepare.get("filter_by_min_points", ()), "filter_by_min_points")

    def admits(self, entry: Entry) -> bool:
        """Tell whether an object of the database may be used."""
        enough = entry["num_points_in_gt"] >= self.min_points.get(entry["name"], 0)
        return enough and entry["difficulty"] not in self.prepare.get("filter_by_difficulty", ())


@dataclass(frozen=True, eq=False)
class GroundTruthSampler:
    """Pastes objects of the database into a frame, up to the configured count of each class.

    Attributes:
        settings: counts and switches.
        database: class -> objects that may be used.
        data_path: folder that the objects' paths start from.
    """

    settings: SamplingSettings
    database: Mapping[str, Sequence[Entry]]
    data_path: Path

    @classmethod
    def from_node(cls, node: Mapping[str, Any], class_names: Sequence[str], data_path: Path) -> GroundTruthSampler:
        """Read the database that a ``gt_sampling`` entry names; other classes than ``class_names`` are left out.

        Raises:
            ConfigError: for an unknown key or a count that is no number.
            FileNotFoundError: when the database is missing.
        """
        settings = from_node(SamplingSettings, node, "gt_sampling of AUG_CONFIG_LIST")
        database: dict[str, list[Entry]] = {name: [] for name in settings.counts if name in class_names}
        for name in settings.db_info_path:
            stored = _read_database(data_path / name)
            for group, entries in database.items():
                entries += filter(settings.admits, stored.get(group, ()))
        return cls(settings, database, data_path)

    def restricted_to(self, frame_ids: Collection[str]) -> GroundTruthSampler:
        """Leave out the objects of all other frames."""
        chosen = {
            name: [entry for entry in entries if entry["image_idx"] in frame_ids]
            for name, entries in self.database.items()
        }
        return replace(self, database=chosen)

    def __call__(self, frame: RawFrame, rng: np.random.Generator) -> RawFrame:
        """Paste objects into one frame.

        A candidate is dropped when its footprint overlaps an object of the frame, one pasted before, or another
        candidate of its class.

        Raises:
            ValueError: when the road's plane is wanted and not known, or the database does not match its files.
        """
        boxes, chosen = frame.boxes, list[Entry]()
        for name, entries in self.database.items():
            wanted = self.settings.counts[name]
            if self.settings.limit_whole_scene:
                wanted -= int((frame.names == name).sum())
            candidates = _draw(entries, wanted, rng)
            free = free_of_collision(_boxes(candidates), boxes)
            chosen += [entry for entry, is_free in zip(candidates, free, strict=True) if is_free]
            boxes = np.concatenate((frame.boxes, _boxes(chosen)))
        return self._paste(frame, chosen) if chosen else frame

    def _paste(self, frame: RawFrame, entries: Sequence[Entry]) -> RawFrame:
        boxes = _boxes(entries)
        lift = np.zeros(len(boxes))
        if self.settings.use_road_plane:
            if frame.ground is None:
                raise ValueError(
                    "gt_sampling needs the road's plane: put it first in AUG_CONFIG_LIST, or set USE_ROAD_PLANE: False"
                )
            lift = lift_onto_ground(boxes, frame.ground)
        boxes[:, 2] += lift
        objects = [self._object_points(entry, box) for entry, box in zip(entries, boxes, strict=True)]
        grown = boxes.copy()
        grown[:, 3:6] += self.settings.remove_extra_width
        scenery = frame.points[~_inside_any(frame.points, grown)]
        return replace(
            frame,
            points=np.concatenate((*objects, scenery)),
            boxes=np.concatenate((frame.boxes, boxes)),
            names=np.concatenate((frame.names, [entry["name"] for entry in entries])),
        )

    def _object_points(self, entry: Entry, box: np.ndarray) -> np.ndarray:
        path = self.data_path / entry["path"]
        points = np.fromfile(path, dtype=np.float32)
        if points.size != entry["num_points_in_gt"] * self.settings.num_point_features:
            raise ValueError(
                f"{path} holds {points.size} numbers, the database says {entry['num_points_in_gt']} points of "
                f"{self.settings.num_point_features}; run tools/make_infos.py again"
            )
        points = points.reshape(-1, self.settings.num_point_features)
        points[:, :3] += box[:3].astype(np.float32)
        return points


def free_of_collision(candidates: np.ndarray, existing: np.ndarray) -> np.ndarray:
    """Tell which candidates stand clear of everything else, seen from above.

    Args:
        candidates: ``(K, 7)``.
        existing: ``(M, 7)``.

    Returns:
        ``(K,)`` bool; of two candidates that overlap, neither is free.
    """
    boxes = torch.from_numpy(candidates)
    among = ops.boxes_overlap_bev(boxes, boxes).fill_diagonal_(0).sum(dim=1)
    others = ops.boxes_overlap_bev(boxes, torch.from_numpy(existing)).sum(dim=1)
    return ((among + others) == 0).numpy()


def lift_onto_ground(boxes: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Say how far up each box must move for the centre of its bottom to lie on a plane.

    Args:
        boxes: ``(N, 7)``.
        ground: ``(4,)`` a, b, c, d of the plane, not vertical.

    Returns:
        ``(N,)`` metres.
    """
    height = -(boxes[:, :2] @ ground[:2] + ground[3]) / ground[2]
    return height - (boxes[:, 2] - boxes[:, 5] / 2)


def _inside_any(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    xyz = torch.from_numpy(np.ascontiguousarray(points[:, :3]))
    return (ops.points_in_boxes(xyz, torch.from_numpy(boxes.astype(points.dtype))) >= 0).numpy()


def _draw(entries: Sequence[Entry], count: int, rng: np.random.Generator) -> list[Entry]:
    picked = rng.permutation(len(entries))[: max(count, 0)]
    return [entries[i] for i in picked]


def _boxes(entries: Sequence[Entry]) -> np.ndarray:
    return np.array([entry["box3d_lidar"][:7] for entry in entries], dtype=np.float64).reshape(-1, 7)


def _counts(groups: Sequence[str], key: str) -> dict[str, int]:
    counts = {}
    for group in groups:
        name, _, number = str(group).partition(":")
        if not number.strip().isdigit():
            raise ConfigError(f"{key} of gt_sampling takes class:count, got {group!r}")
        counts[name.strip()] = int(number)
    return counts


def _read_database(path: Path) -> Mapping[str, Sequence[Entry]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no ground-truth database {path}: run tools/make_infos.py, "
            "or put gt_sampling into DATA_AUGMENTOR.DISABLE_AUG_LIST"
        )
    return load_arrays(path)
