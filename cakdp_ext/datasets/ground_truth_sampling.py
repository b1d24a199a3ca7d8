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
_BACKUP_KEYS = ("DB_INFO_PATH", "DB_DATA_PATH", "NUM_POINT_FEATURES")
_SAME_TIME = 1e-6


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
        use_shared_memory: take the points from ``db_data_path``, which all processes map into memory, and not from
            one file an object.
        db_data_path: one ``.npy`` of all objects' points for each of ``db_info_path``.
        backup_db_info: ``DB_INFO_PATH``, ``DB_DATA_PATH`` and ``NUM_POINT_FEATURES`` of the database to take where
            ``db_info_path`` is not there: one of several sweeps, of which a single sweep uses the latest.
        filter_obj_points_by_timestamp: paste only points whose last value, their age, lies in ``time_range``.
        time_range: seconds, in either order.
    """

    db_info_path: tuple[str, ...]
    sample_groups: tuple[str, ...]
    prepare: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    use_road_plane: bool = False
    limit_whole_scene: bool = False
    remove_extra_width: tuple[float, float, float] = (0.0, 0.0, 0.0)
    num_point_features: int = 4
    database_with_fakelidar: bool = False
    use_shared_memory: bool = False
    db_data_path: tuple[str, ...] = ()
    backup_db_info: Mapping[str, Any] = field(default_factory=dict)
    filter_obj_points_by_timestamp: bool = False
    time_range: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        unknown = set(self.prepare) - {"filter_by_min_points", "filter_by_difficulty"}
        if unknown:
            raise ValueError(
                f"unknown PREPARE {', '.join(sorted(unknown))}; known: filter_by_min_points, filter_by_difficulty"
            )
        if self.database_with_fakelidar:
            raise ValueError("DATABASE_WITH_FAKELIDAR: True is not read; make the database again with make_infos.py")
        if self.use_shared_memory and len(self.db_data_path) != len(self.db_info_path):
            raise ValueError("USE_SHARED_MEMORY needs one file in DB_DATA_PATH for each of DB_INFO_PATH")
        if self.backup_db_info and set(self.backup_db_info) != set(_BACKUP_KEYS):
            raise ValueError(
                f"BACKUP_DB_INFO takes {', '.join(_BACKUP_KEYS)}, got {', '.join(self.backup_db_info) or 'none'}"
            )

    def of_files(self, data_path: Path) -> SamplingSettings:
        """Give these settings, or those of the backup where the database is not there and the backup is."""
        backup = self.backup_db_info
        if not backup or (data_path / self.db_info_path[0]).is_file():
            return self
        if not (data_path / backup["DB_INFO_PATH"]).is_file():
            return self
        return replace(
            self,
            db_info_path=(backup["DB_INFO_PATH"],),
            db_data_path=(backup["DB_DATA_PATH"],),
            num_point_features=int(backup["NUM_POINT_FEATURES"]),
        )

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
        settings = from_node(SamplingSettings, node, "gt_sampling of AUG_CONFIG_LIST").of_files(data_path)
        database: dict[str, list[Entry]] = {name: [] for name in settings.counts if name in class_names}
        for number, name in enumerate(settings.db_info_path):
            stored = _read_database(data_path / name)
            data = settings.db_data_path[number] if settings.use_shared_memory else None
            for group, entries in database.items():
                admitted = filter(settings.admits, stored.get(group, ()))
                entries += [{**entry, "data": data} for entry in admitted] if data else admitted
        return cls(settings, database, data_path)

    def restricted_to(self, origins: Collection[str]) -> GroundTruthSampler:
        """Leave out the objects of all other frames, or of all other segments where the database names these."""
        chosen = {
            name: [entry for entry in entries if origin_of(entry) in origins] for name, entries in self.database.items()
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
        objects = [
            self._of_sweeps(self._object_points(entry, box), frame.points.shape[1])
            for entry, box in zip(entries, boxes, strict=True)
        ]
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
        path, points = self._stored_points(entry)
        if points.size != entry["num_points_in_gt"] * self.settings.num_point_features:
            raise ValueError(
                f"{path} holds {points.size} numbers, the database says {entry['num_points_in_gt']} points of "
                f"{self.settings.num_point_features}; run tools/make_infos.py again"
            )
        points = points.reshape(-1, self.settings.num_point_features)
        points[:, :3] += box[:3].astype(np.float32)
        return points

    def _stored_points(self, entry: Entry) -> tuple[Path, np.ndarray]:
        if "data" not in entry:
            path = self.data_path / entry["path"]
            return path, np.fromfile(path, dtype=np.float32)
        path = self.data_path / entry["data"]
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path} (DB_DATA_PATH); run tools/make_infos.py, or set USE_SHARED_MEMORY: False"
            )
        first, last = entry["global_data_offset"]
        return path, np.array(np.load(path, mmap_mode="r")[first:last], dtype=np.float32)

    def _of_sweeps(self, points: np.ndarray, num_features: int) -> np.ndarray:
        """Keep the points of the wanted sweeps, and as many values of each as the frame's points have."""
        low, high = 0.0, 0.0
        if self.settings.filter_obj_points_by_timestamp:
            low, high = sorted(self.settings.time_range)
        elif points.shape[1] == num_features:
            return points
        if not num_features <= points.shape[1] <= num_features + 1:
            raise ValueError(
                f"the database holds {points.shape[1]} values a point, the frames {num_features}; "
                "set DB_INFO_PATH and NUM_POINT_FEATURES of gt_sampling to a database of such frames"
            )
        age = points[:, -1]
        return points[(age > low - _SAME_TIME) & (age < high + _SAME_TIME), :num_features]


def origin_of(entry: Entry) -> str:
    """Say which frame an object of the database is from, or which segment where the database has sequences."""
    return str(entry["image_idx"] if "image_idx" in entry else entry["sequence_name"])


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
