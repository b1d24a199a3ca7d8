"""Which segments of Waymo does OpenPCDet see? A folder that links to the data and has lists of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from easydict import EasyDict

from cakdp_ext.config import ConfigError, required
from cakdp_ext.files import atomic_path
from cakdp_ext.held_out import HELD_OUT, frames_of
from cakdp_ext.pickles import dump_arrays, load_arrays
from cakdp_ext.waymo_layout import LAYOUT, WaymoFolder

NEEDED = {"tensorflow": "tensorflow", "waymo_open_dataset": "waymo-open-dataset-tf-2-12-0"}
"""Modules of OpenPCDet's Waymo evaluation -> what installs them."""


def has_segments(data: EasyDict) -> bool:
    """Tell whether a data set comes in segments: it is OpenPCDet's ``WaymoDataset``, or a kin of it."""
    return "PROCESSED_DATA_TAG" in data


def hold_out_segments(data: EasyDict, folder: Path) -> None:
    """Keep whole segments with ``NUM_HELD_OUT`` frames out of a training: neither trained on nor pasted.

    Args:
        data: ``DATA_CONFIG`` with an absolute ``DATA_PATH``; it is changed in place.
        folder: where lists and databases of the segments that remain go.

    Raises:
        ConfigError: where no segment would remain.
        FileNotFoundError: for a list, the segments or a database that is not there.
    """
    train = str(data.DATA_SPLIT["train"])
    kept = _segments_of(data, train)
    for number, step in enumerate(_sampling_steps(data)):
        _restrict(step, Path(data.DATA_PATH), set(kept), folder / f"dbinfos_{train}_{number}")
    data.DATA_PATH = str(_linked(Path(data.DATA_PATH), folder / "trained_on", {train: kept}))


def choose_segments(data: EasyDict, split: str, folder: Path) -> None:
    """Point what is tested on to a split, where it must be to the segments of train that are (not) held out.

    Args:
        data: ``DATA_CONFIG``; it is changed in place.
        split: ``held_out``, that of train, or any other that has a list.
        folder: where lists go that must be written.

    Raises:
        ConfigError: where nothing is held out.
        FileNotFoundError: for a list or the segments that are not there.
    """
    train, name = str(data.DATA_SPLIT["train"]), split
    if split in (HELD_OUT, train):
        intervals = required(data, "SAMPLED_INTERVAL")
        data.SAMPLED_INTERVAL = EasyDict({**intervals, "test": required(data, "SAMPLED_INTERVAL", "train")})
    if split == HELD_OUT or (split == train and data.get("NUM_HELD_OUT")):
        name = HELD_OUT if split == HELD_OUT else f"{train}_trained_on"
        lists = {name: _segments_of(data, split)}
        data.DATA_PATH = str(_linked(Path(data.DATA_PATH), folder / name, lists))
    data.DATA_SPLIT["test"] = name


def require_segments(data: EasyDict, mode: str) -> None:
    """Refuse a split of which no segment is there: OpenPCDet passes over missing ones with a count.

    Raises:
        FileNotFoundError: naming the first one.
    """
    folder = WaymoFolder(Path(data.DATA_PATH), str(data.PROCESSED_DATA_TAG))
    split = str(data.DATA_SPLIT[mode])
    names = folder.segments(split)
    if names and not any(folder.info_file(name) for name in names):
        raise FileNotFoundError(
            f"none of the {len(names)} segments of ImageSets/{split}.txt lies in {folder.segments_folder} "
            f"(first: {names[0]}); {LAYOUT}"
        )


def require_evaluation(config: Mapping[str, Any]) -> None:
    """Refuse to be judged by OpenPCDet's Waymo evaluation where what it imports is missing, before anything runs.

    Raises:
        ConfigError: naming what to install, and how to do without.
    """
    metric = config.get("MODEL", {}).get("POST_PROCESSING", {}).get("EVAL_METRIC")
    if not has_segments(config["DATA_CONFIG"]) or metric != "waymo":
        return
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"OpenPCDet's Waymo evaluation needs {' and '.join(missing)}: install that in its environment, or test "
            "with CAKDP_ENGINE=builtin, which judges by the same rules without it and reads the same checkpoints"
        )


def _segments_of(data: EasyDict, split: str) -> list[str]:
    """Names of the segments of train that ``frames_of`` gives to a split, in order."""
    folder = WaymoFolder(Path(data.DATA_PATH), str(data.PROCESSED_DATA_TAG))
    interval = int(required(data, "SAMPLED_INTERVAL", "train"))
    infos = folder.split_infos(str(data.DATA_SPLIT["train"]))[::interval]
    segments = [str(info["point_cloud"]["lidar_sequence"]) for info in infos]
    frames = [str(info["frame_id"]) for info in infos]
    chosen = set(frames_of(split, frames, int(data.get("NUM_HELD_OUT") or 0), segments))
    return list(dict.fromkeys(name for name, frame in zip(segments, frames, strict=True) if frame in chosen))


def _linked(root: Path, folder: Path, lists: Mapping[str, Sequence[str]]) -> Path:
    """Make a folder that has everything of the data's root, and these lists of segments."""
    (folder / "ImageSets").mkdir(parents=True, exist_ok=True)
    for path in root.resolve().iterdir():
        if path.name != "ImageSets":
            with suppress(FileExistsError):
                (folder / path.name).symlink_to(path)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (root / "ImageSets").glob("*.txt")}
    texts.update({split: "".join(f"{name}.tfrecord\n" for name in names) for split, names in lists.items()})
    for split, text in texts.items():
        with atomic_path(folder / "ImageSets" / f"{split}.txt") as path:
            path.write_text(text, encoding="utf-8")
    return folder.resolve()


def _sampling_steps(data: EasyDict) -> list[EasyDict]:
    """Augmentation steps that paste objects and are not switched off."""
    augmentor = data.get("DATA_AUGMENTOR") or {}
    off = augmentor.get("DISABLE_AUG_LIST") or []
    steps = augmentor.get("AUG_CONFIG_LIST") or []
    return [step for step in steps if step.get("DB_INFO_PATH") and step.get("NAME") not in off]


def _restrict(step: EasyDict, root: Path, segments: Collection[str], stem: Path) -> None:
    """Let a sampling step paste objects of some segments only; OpenPCDet's fallback is settled here."""
    backup = step.get("BACKUP_DB_INFO")
    if backup and not (root / step["DB_INFO_PATH"][0]).is_file() and (root / backup["DB_INFO_PATH"]).is_file():
        step["DB_INFO_PATH"], step["DB_DATA_PATH"] = [backup["DB_INFO_PATH"]], [backup["DB_DATA_PATH"]]
        step["NUM_POINT_FEATURES"] = backup["NUM_POINT_FEATURES"]
    step["DB_INFO_PATH"] = [
        _write_database(root / name, segments, stem.with_name(f"{stem.name}_{index}.pkl"))
        for index, name in enumerate(step["DB_INFO_PATH"])
    ]


def _write_database(file: Path, segments: Collection[str], target: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(
            f"no {file}; make it with OpenPCDet's script for the data set, or with tools/make_infos.py --cfg"
        )
    database = {
        name: [entry for entry in entries if str(entry["sequence_name"]) in segments]
        for name, entries in load_arrays(file).items()
    }
    with atomic_path(target) as path:
        dump_arrays(database, path)
    return str(target.resolve())
