"""Which frames does OpenPCDet see? Info files of a split, written beside the run, so that no code of it is touched."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from easydict import EasyDict

from cakdp_ext.config import ConfigError
from cakdp_ext.files import atomic_path
from cakdp_ext.held_out import HELD_OUT, frames_of
from cakdp_ext.openpcdet.segments import choose_segments, has_segments, hold_out_segments, require_segments
from cakdp_ext.pickles import dump_arrays, load_arrays


def hold_out(config: EasyDict, folder: Path) -> EasyDict:
    """Keep ``DATA_CONFIG.NUM_HELD_OUT`` frames of train out of a training: neither trained on nor pasted.

    Args:
        config: with an absolute ``DATA_PATH``.
        folder: where the info files and databases of the frames that remain go.

    Returns:
        A copy whose ``INFO_PATH.train`` and ``DB_INFO_PATH`` name those files; ``config`` itself where nothing is held
        out.

    Raises:
        ConfigError: where no frame would remain, or for a data set whose frames cannot be told apart here.
        FileNotFoundError: for an info file or a database that is not there.
    """
    if not config.DATA_CONFIG.get("NUM_HELD_OUT"):
        return config
    config = deepcopy(config)
    data = config.DATA_CONFIG
    if has_segments(data):
        hold_out_segments(data, folder)
        return config
    infos = _train_infos(data)
    train = str(data.DATA_SPLIT["train"])
    kept = frames_of(train, list(infos), int(data.NUM_HELD_OUT))
    data.INFO_PATH["train"] = [_write([infos[frame] for frame in kept], folder / f"infos_{train}.pkl")]
    for number, step in enumerate(_sampling_steps(data)):
        step["DB_INFO_PATH"] = [
            _write(
                _database_of(Path(data.DATA_PATH, name), set(kept)), folder / f"dbinfos_{train}_{number}_{index}.pkl"
            )
            for index, name in enumerate(step["DB_INFO_PATH"])
        ]
    return config


def split_config(config: EasyDict, split: str, folder: Path | None = None) -> EasyDict:
    """Point what OpenPCDet tests on, ``DATA_SPLIT.test`` and ``INFO_PATH.test``, to any split.

    Args:
        config: with a ``DATA_PATH`` that holds from the working directory.
        split: ``held_out``, one of ``DATA_SPLIT``, or any other whose info files lie beside those of train. The split
            that is trained on comes without the frames held out.
        folder: where an info file goes that must be written; None takes one that lives as long as this process.

    Returns:
        A copy.

    Raises:
        ConfigError: for a split without info files, or where nothing is held out.
        FileNotFoundError: for an info file that is not there.
    """
    config = deepcopy(config)
    data = config.DATA_CONFIG
    if has_segments(data):
        choose_segments(data, split, folder or _temporary_folder())
        return config
    train, count = str(data.DATA_SPLIT["train"]), int(data.get("NUM_HELD_OUT") or 0)
    if split == HELD_OUT or (split == train and count):
        infos = _train_infos(data)
        frames = frames_of(split, list(infos), count)
        file = (folder or _temporary_folder()) / f"infos_{split}.pkl"
        data.INFO_PATH["test"] = [_write([infos[frame] for frame in frames], file)]
    elif "INFO_PATH" in data:
        data.INFO_PATH["test"] = _info_names(data, split)
    data.DATA_SPLIT["test"] = split
    return config


def require_infos(config: EasyDict, mode: str) -> None:
    """Refuse a data set of which no info file is there: OpenPCDet passes over missing ones without a word.

    Raises:
        FileNotFoundError: naming the files and the commands that make them.
    """
    data = config.DATA_CONFIG
    if has_segments(data):
        require_segments(data, mode)
        return
    folder = Path(data.DATA_PATH)
    names = (data.get("INFO_PATH") or {}).get(mode) or []
    found = [base / name for base in (folder, folder / str(data.get("VERSION", ""))) for name in names]
    if names and not any(file.is_file() for file in found):
        raise FileNotFoundError(
            f"no info file {folder / names[0]} (INFO_PATH.{mode}); make it with OpenPCDet's script for "
            f"{data.DATASET}, or for KITTI with: python tools/make_infos.py --data_path {folder}"
        )


def _train_infos(data: EasyDict) -> dict[str, Mapping[str, Any]]:
    """Descriptions of all frames of the training split, by name, in order."""
    infos: list[Any] = []
    for name in (data.get("INFO_PATH") or {}).get("train") or _unknown(data):
        infos += _read(Path(data.DATA_PATH, name))
    if not all("point_cloud" in info and "image" in info for info in infos):
        _unknown(data)
    return {str(info["point_cloud"]["lidar_idx"]): info for info in infos}


def _unknown(data: EasyDict) -> Any:
    raise ConfigError(
        f"DATA_CONFIG.NUM_HELD_OUT divides info files of KITTI's kind, which {data.DATASET} has not; list the frames "
        "as a split of their own, set NUM_HELD_OUT: 0, and name that split in MODEL.PRUNING.SPLIT"
    )


def _info_names(data: EasyDict, split: str) -> list[str]:
    """Info files of a split: those that the YAML names, or train's with the split's name in place of train's."""
    mode = next((mode for mode, name in data.DATA_SPLIT.items() if name == split), split)
    if mode in data.INFO_PATH:
        return list(data.INFO_PATH[mode])
    train = str(data.DATA_SPLIT["train"])
    names = [split.join(name.rsplit(train, 1)) for name in data.INFO_PATH["train"]]
    missing = next((name for name in names if not Path(data.DATA_PATH, name).is_file()), None)
    if missing:
        raise ConfigError(
            f"split {split} has no info file {Path(data.DATA_PATH, missing)}; make it, or name it in "
            f"DATA_CONFIG.INFO_PATH.{split}"
        )
    return names


def _sampling_steps(data: EasyDict) -> list[EasyDict]:
    """The augmentation steps that paste objects and are not switched off."""
    augmentor: Any = data.get("DATA_AUGMENTOR") or []
    is_list = isinstance(augmentor, Sequence)
    steps = augmentor if is_list else augmentor.get("AUG_CONFIG_LIST") or []
    off = [] if is_list else augmentor.get("DISABLE_AUG_LIST") or []
    return [step for step in steps if step.get("DB_INFO_PATH") and step.get("NAME") not in off]


def _database_of(file: Path, frames: Collection[str]) -> dict[str, list[Any]]:
    """The objects of a ground-truth database that were seen in some frames."""
    database = _read(file)
    if any("image_idx" not in entry for entries in database.values() for entry in entries):
        raise ConfigError(
            f"{file} does not say which frame an object is from (image_idx), so objects of the frames that "
            "DATA_CONFIG.NUM_HELD_OUT holds out would be pasted; make the database again, or set NUM_HELD_OUT: 0"
        )
    return {
        name: [entry for entry in entries if str(entry["image_idx"]) in frames] for name, entries in database.items()
    }


def _read(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(
            f"no {file}; make it with OpenPCDet's script for the data set, or for KITTI with tools/make_infos.py"
        )
    return load_arrays(file)


def _write(value: Any, file: Path) -> str:
    with atomic_path(file) as temporary:
        dump_arrays(value, temporary)
    return str(file.resolve())


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cakdp_split_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
