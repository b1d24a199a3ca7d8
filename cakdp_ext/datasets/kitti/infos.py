"""Info files and ground-truth database, in the content and format of OpenPCDet."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cakdp_ext.datasets.kitti.calibration import Calibration, pad_parts
from cakdp_ext.datasets.kitti.labels import DONT_CARE, camera_to_lidar_boxes, label_columns
from cakdp_ext.datasets.kitti.raw import POINT_FEATURES, KittiFolder
from cakdp_ext.pickles import dump_arrays

log = logging.getLogger(__name__)

DATABASE_MARGIN = 0.01
SPLITS = ("train", "val", "test")
Info = dict[str, Any]


@dataclass(frozen=True)
class InfoSummary:
    """What was written.

    Attributes:
        num_frames: split -> frames; a split without data is absent.
        num_objects: class -> objects in the ground-truth database.
    """

    num_frames: dict[str, int]
    num_objects: dict[str, int]


def make_infos(data_path: Path, num_workers: int = 4) -> InfoSummary:
    """Write ``kitti_infos_{train,val,trainval,test}.pkl``, ``gt_database/`` and ``kitti_dbinfos_train.pkl``.

    Everything is made in a folder beside the final one and moved when it is complete: a failure leaves what was
    there before. ``train`` must exist; ``val`` and ``test`` are left out, with a warning, where they do not.

    Args:
        data_path: KITTI's root.
        num_workers: frames read at a time.

    Returns:
        Counts for the user.

    Raises:
        FileNotFoundError: for a missing folder or file.
        ValueError: for a file that cannot be read, named in the message.
    """
    with _staging(data_path) as stage:
        infos = {split: _split_infos(KittiFolder(data_path, split), num_workers) for split in SPLITS}
        present = {split: rows for split, rows in infos.items() if rows is not None}
        database = make_database(KittiFolder(data_path, "train"), present["train"], stage, num_workers)
        for split, rows in present.items():
            dump_arrays(rows, stage / f"kitti_infos_{split}.pkl")
        dump_arrays(present["train"] + present.get("val", []), stage / "kitti_infos_trainval.pkl")
        dump_arrays(database, stage / "kitti_dbinfos_train.pkl")
        _publish(stage, data_path)
    return InfoSummary(
        {split: len(rows) for split, rows in present.items()}, {name: len(rows) for name, rows in database.items()}
    )


def frame_info(folder: KittiFolder, frame_id: str, has_labels: bool) -> Info:
    """Describe one frame: sizes, calibration and, with labels, its objects and how many points each holds."""
    parts = folder.calibration_parts(frame_id)
    info: Info = {
        "point_cloud": {"num_features": POINT_FEATURES, "lidar_idx": frame_id},
        "image": {"image_idx": frame_id, "image_shape": folder.image_shape(frame_id)},
        "calib": pad_parts(parts),
    }
    if has_labels:
        info["annos"] = _annotations(folder, info, Calibration.from_parts(parts))
    return info


def points_in_box(points: np.ndarray, box: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Tell which points lie in a box.

    Args:
        points: ``(N, 3)`` or wider, metres.
        box: ``(7,)``.
        margin: how far length and width reach beyond the box on each side, metres.

    Returns:
        ``(N,)`` bool.
    """
    offset = points[:, :3].astype(np.float64) - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    local = np.stack((offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin, offset[:, 2]))
    limit = box[3:6] / 2 + (margin, margin, 0.0)
    return np.all(np.abs(local) <= limit[:, None], axis=0)


def make_database(folder: KittiFolder, infos: Sequence[Info], target: Path, num_workers: int) -> dict[str, list[Info]]:
    """Cut every object's points out of its frame into ``target/gt_database``.

    Args:
        folder: where the frames are.
        infos: of frames with labels.
        target: folder to write into.
        num_workers: frames read at a time.

    Returns:
        Class -> one mapping an object, its ``path`` relative to ``target``.
    """
    (target / "gt_database").mkdir(parents=True)
    cut = partial(_cut_objects, folder, target)
    database: dict[str, list[Info]] = {}
    for entries in _in_parallel(cut, infos, num_workers, "ground-truth database"):
        for entry in entries:
            database.setdefault(entry["name"], []).append(entry)
    return database


def _annotations(folder: KittiFolder, info: Info, calibration: Calibration) -> dict[str, np.ndarray]:
    frame_id = info["image"]["image_idx"]
    columns = label_columns(folder.labels(frame_id))
    objects = columns["name"] != DONT_CARE
    boxes = camera_to_lidar_boxes(
        columns["location"][objects], columns["dimensions"][objects], columns["rotation_y"][objects], calibration
    )
    points = folder.points(frame_id)
    seen = points[calibration.in_image(points[:, :3], info["image"]["image_shape"])]
    num_points = np.full(len(objects), -1, dtype=np.int32)
    num_points[: len(boxes)] = [points_in_box(seen, box).sum() for box in boxes]
    return {**columns, "gt_boxes_lidar": boxes, "num_points_in_gt": num_points}


def _cut_objects(folder: KittiFolder, target: Path, info: Info) -> list[Info]:
    frame_id, annos = info["point_cloud"]["lidar_idx"], info["annos"]
    points = folder.points(frame_id)
    entries = []
    for i, box in enumerate(annos["gt_boxes_lidar"]):
        name = str(annos["name"][i])
        path = f"gt_database/{frame_id}_{name}_{i}.bin"
        inside = points[points_in_box(points, box, DATABASE_MARGIN)]
        inside[:, :3] = inside[:, :3].astype(np.float64) - box[:3]
        inside.tofile(target / path)
        origin = {"name": name, "path": path, "image_idx": frame_id, "gt_idx": i}
        worth = {"num_points_in_gt": len(inside), "difficulty": int(annos["difficulty"][i])}
        entries.append(
            {**origin, **worth, "box3d_lidar": box, "bbox": annos["bbox"][i], "score": float(annos["score"][i])}
        )
    return entries


def _split_infos(folder: KittiFolder, num_workers: int) -> list[Info] | None:
    missing = next((path for path in (folder.list_file, folder.frames_folder) if not path.exists()), None)
    if missing is not None and folder.split != "train":
        log.warning("split %s is left out: there is no %s", folder.split, missing)
        return None
    read = partial(frame_info, folder, has_labels=folder.split != "test")
    return list(_in_parallel(read, folder.frame_ids(), num_workers, f"infos of {folder.split}"))


def _in_parallel(work: Callable[[Any], Any], items: Sequence[Any], num_workers: int, title: str) -> Iterator[Any]:
    with ThreadPoolExecutor(num_workers) as executor:
        try:
            yield from tqdm(executor.map(work, items), total=len(items), desc=title, unit="frame")
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _staging(data_path: Path) -> Iterator[Path]:
    if not data_path.is_dir():
        KittiFolder(data_path, "train").frame_ids()
    stage = Path(tempfile.mkdtemp(prefix=".infos-", dir=data_path))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _publish(stage: Path, data_path: Path) -> None:
    database, outdated = data_path / "gt_database", stage / "outdated"
    if database.exists():
        os.replace(database, outdated)
    os.replace(stage / "gt_database", database)
    for path in sorted(stage.glob("*.pkl")):
        os.replace(path, data_path / path.name)
