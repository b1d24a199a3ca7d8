"""Ground-truth database of processed Waymo segments, in the content and format of OpenPCDet."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cakdp_ext import ops
from cakdp_ext.config import required
from cakdp_ext.datasets.kitti.infos import InfoSummary
from cakdp_ext.datasets.waymo.dataset import SweepReader
from cakdp_ext.pickles import dump_arrays

EVERY = {"Vehicle": 4, "Pedestrian": 2, "Cyclist": 1}
"""Classes of the database, and of how many sweeps one gives its objects: vehicles stay much the same."""
FIRST_SWEEP = -4
"""A database of several sweeps holds at least the sweeps from this one on."""
Info = dict[str, Any]


def make_waymo_infos(
    data_cfg: Mapping[str, Any], data_path: Path | None = None, num_workers: int = 4, sampled_interval: int = 1
) -> InfoSummary:
    """Write ``<tag>_infos_{train,val}.pkl``, the ground-truth database of train and what describes it.

    The database is ``<tag>_gt_database_train_sampled_<n>/``, ``<tag>_waymo_dbinfos_train_sampled_<n>.pkl`` and, with
    all its points in one array, ``<tag>_gt_database_train_sampled_<n>_global.npy``; with ``SEQUENCE_CONFIG`` the names
    end in ``_multiframe_<first>_to_<end>``. It is made in a folder beside the final one and moved when it is complete.

    Args:
        data_cfg: the node ``DATA_CONFIG``.
        data_path: the data's root; None takes ``DATA_PATH``.
        num_workers: sweeps read at a time.
        sampled_interval: take every so manieth sweep of train.

    Returns:
        Counts for the user.

    Raises:
        ConfigError: for a key that is missing.
        FileNotFoundError: for a missing folder or file.
        ValueError: for a file that cannot be read, named in the message.
    """
    tag = str(required(data_cfg, "PROCESSED_DATA_TAG"))
    root = data_path or Path(required(data_cfg, "DATA_PATH"))
    reader = _with_enough_sweeps(SweepReader.from_config({**data_cfg, "DATA_PATH": str(root.resolve())}))
    splits = {split: reader.folder.split_infos(split) for split in _splits(root)}
    names = _names(tag, sampled_interval, reader)
    with _staging(root) as stage:
        database = _make_database(reader, splits["train"], sampled_interval, stage / names["folder"], num_workers)
        np.save(stage / names["points"], _all_points(database, stage, reader.num_features))
        dump_arrays(database, stage / names["infos"])
        for split, infos in splits.items():
            dump_arrays(infos, stage / f"{tag}_infos_{split}.pkl")
        _publish(stage, root)
    return InfoSummary(
        {split: len(infos) for split, infos in splits.items()},
        {name: len(entries) for name, entries in database.items()},
    )


def _with_enough_sweeps(reader: SweepReader) -> SweepReader:
    first, end = reader.sequence.sample_offset
    reader.sequence = replace(reader.sequence, sample_offset=(min(first, FIRST_SWEEP), end))
    return reader


def _splits(root: Path) -> list[str]:
    """Train, which must be there, and val where it is."""
    return ["train", *(["val"] if (root / "ImageSets" / "val.txt").is_file() else [])]


def _names(tag: str, interval: int, reader: SweepReader) -> dict[str, str]:
    first, end = reader.sequence.sample_offset
    ending = f"train_sampled_{interval}" + (f"_multiframe_{first}_to_{end}" if reader.sequence.enabled else "")
    return {
        "folder": f"{tag}_gt_database_{ending}",
        "infos": f"{tag}_waymo_dbinfos_{ending}.pkl",
        "points": f"{tag}_gt_database_{ending}_global.npy",
    }


def _make_database(
    reader: SweepReader, infos: Sequence[Info], interval: int, folder: Path, num_workers: int
) -> dict[str, list[Info]]:
    """Cut every object's points out of its sweep; class -> one mapping an object, in the order of the sweeps."""
    folder.mkdir()
    segments: dict[str, dict[int, Info]] = {}
    for info in infos:
        cloud = info["point_cloud"]
        segments.setdefault(str(cloud["lidar_sequence"]), {})[int(cloud["sample_idx"])] = info

    def cut(number: int) -> list[Info]:
        info = infos[number]
        points = reader(info, segments[str(info["point_cloud"]["lidar_sequence"])])
        return _cut_objects(info, points, _wanted(info, number), folder)

    database: dict[str, list[Info]] = {}
    chosen = range(0, len(infos), interval)
    with ThreadPoolExecutor(num_workers) as executor:
        rows = tqdm(executor.map(cut, chosen), total=len(chosen), desc="ground-truth database", unit="sweep")
        offset = 0
        for entry in (entry for entries in rows for entry in entries):
            entry["global_data_offset"] = [offset, offset + entry["num_points_in_gt"]]
            offset += entry["num_points_in_gt"]
            database.setdefault(entry["name"], []).append(entry)
    return database


def _wanted(info: Info, number: int) -> np.ndarray:
    """Tell which objects of a sweep take part; classes that the database lacks count for the numbering all the same."""
    names = np.asarray(info["annos"]["name"])
    return np.array([number % EVERY.get(str(name), 1) == 0 for name in names], dtype=bool)


def _cut_objects(info: Info, points: np.ndarray, wanted: np.ndarray, folder: Path) -> list[Info]:
    annos, cloud = info["annos"], info["point_cloud"]
    boxes = np.asarray(annos["gt_boxes_lidar"])[wanted]
    names, difficulty = np.asarray(annos["name"])[wanted], np.asarray(annos["difficulty"])[wanted]
    owner = ops.points_in_boxes(
        torch.from_numpy(np.ascontiguousarray(points[:, :3])), torch.from_numpy(boxes[:, :7].astype(np.float32))
    ).numpy()
    segment, number = str(cloud["lidar_sequence"]), int(cloud["sample_idx"])
    entries = []
    for i, (name, box) in enumerate(zip(names.tolist(), boxes, strict=True)):
        if name not in EVERY:
            continue
        inside = points[owner == i]
        inside[:, :3] -= box[:3]
        path = folder / f"{segment}_{number:04d}_{name}_{i}.bin"
        inside.tofile(path)
        origin = {"name": name, "path": f"{folder.name}/{path.name}", "sequence_name": segment, "sample_idx": number}
        worth = {"gt_idx": i, "num_points_in_gt": len(inside), "difficulty": int(difficulty[i])}
        entries.append({**origin, **worth, "box3d_lidar": box})
    return entries


def _all_points(database: Mapping[str, Sequence[Info]], stage: Path, num_features: int) -> np.ndarray:
    entries = [entry for entries in database.values() for entry in entries]
    entries.sort(key=lambda entry: entry["global_data_offset"][0])
    parts = [np.fromfile(stage / entry["path"], dtype=np.float32).reshape(-1, num_features) for entry in entries]
    return np.concatenate([np.zeros((0, num_features), dtype=np.float32), *parts])


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    stage = Path(tempfile.mkdtemp(prefix=".infos-", dir=root))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _publish(stage: Path, root: Path) -> None:
    """Move what was made into place: folders first, then the files that name them."""
    outdated = Path(tempfile.mkdtemp(dir=stage))
    for path in sorted(stage.iterdir(), key=lambda path: path.is_file()):
        if path == outdated:
            continue
        if path.is_dir() and (root / path.name).exists():
            os.replace(root / path.name, outdated / path.name)
        os.replace(path, root / path.name)
