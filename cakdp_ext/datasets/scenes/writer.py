"""A data set in KITTI's layout, from a configuration."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets.scenes.config import SceneConfig
from cakdp_ext.datasets.scenes.frame import FOLDERS, FrameGenerator

STAMP = "scenes.json"
GENERATOR_VERSION = 1
"""Raised whenever the same configuration would give other files."""


@dataclasses.dataclass(frozen=True)
class SceneSummary:
    """What a generated data set holds.

    Attributes:
        num_frames: frames of all splits.
        mean_points: points a frame.
        objects: KITTI's type -> labelled objects in all frames.
        reused: whether it was there already.
    """

    num_frames: int
    mean_points: float
    objects: dict[str, int]
    reused: bool = False


def write_scenes(
    config: SceneConfig, out: str | Path, *, workers: int = 1, overwrite: bool = False, progress: bool = True
) -> SceneSummary:
    """Write a data set of generated scenes in KITTI's layout, or find that it is there already.

    The stamp ``scenes.json`` in the folder holds the configuration; it is completed, atomically, when every other
    file is written. A folder with the complete stamp of the same configuration is left as it is; one whose generation
    was interrupted is generated anew. The files are the same for any number of workers.

    Args:
        config: what to generate.
        out: the folder; it is made where it does not exist.
        workers: processes that generate frames.
        overwrite: replace a generated data set of another configuration, with everything else in its folder.
        progress: show a progress bar.

    Returns:
        What the data set holds.

    Raises:
        ConfigError: for a folder with other content, or a generated data set of another configuration without
            ``overwrite``; nothing is changed then.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    out = Path(out)
    wanted = {"generator": GENERATOR_VERSION, "config": json.loads(json.dumps(dataclasses.asdict(config)))}
    found = _claim(out, wanted, overwrite)
    if found is not None:
        return SceneSummary(**found, reused=True)
    for folder in FOLDERS:
        (out / "training" / folder).mkdir(parents=True, exist_ok=True)
    _write_splits(config, out / "ImageSets")
    summary = _write_frames(config, out / "training", workers, progress)
    counts = {key: value for key, value in dataclasses.asdict(summary).items() if key != "reused"}
    _write_stamp(out, {**wanted, "summary": counts})
    return summary


def _claim(out: Path, wanted: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Make the folder ready for generation, or give the summary of the finished data set it already holds."""
    out.mkdir(parents=True, exist_ok=True)
    stamp = _read_stamp(out)
    if stamp is None and any(out.iterdir()):
        raise ConfigError(f"{out} holds files but no {STAMP}, so it was not generated; choose another folder")
    if stamp is not None:
        same = all(stamp.get(key) == value for key, value in wanted.items())
        if same and stamp.get("summary"):
            return dict(stamp["summary"])
        if not same and not overwrite:
            raise ConfigError(f"{out} holds scenes of another configuration: {_difference(stamp, wanted)}; "
                              "choose another folder, or replace it with --overwrite")  # fmt: skip
        _write_stamp(out, wanted)
        _empty(out)
    _write_stamp(out, wanted)
    return None


def _read_stamp(out: Path) -> dict[str, Any] | None:
    path = out / STAMP
    if not path.is_file():
        return None
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged ({error}); remove {out} and generate it again") from error
    if not isinstance(stamp, dict):
        raise ConfigError(f"{path} must hold a mapping, got {type(stamp).__name__}; choose another folder")
    return stamp


def _difference(stamp: dict[str, Any], wanted: dict[str, Any]) -> str:
    old, new = dict(_leaves(stamp, "")), dict(_leaves(wanted, ""))
    keys = [key for key in new if old.get(key) != new[key]]
    return ", ".join(f"{key} is {old.get(key)} there and {new[key]} here" for key in keys)


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key.upper()}.")
        else:
            yield f"{prefix}{key.upper()}".removeprefix("CONFIG."), value


def _write_stamp(out: Path, stamp: dict[str, Any]) -> None:
    partial = out / f"{STAMP}.{os.getpid()}.partial"
    partial.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, out / STAMP)


def _empty(out: Path) -> None:
    for path in out.iterdir():
        if path.name == STAMP:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_splits(config: SceneConfig, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    names = [f"{index:06d}\n" for index in range(config.num_frames)]
    splits = {"train": names[: config.num_train], "val": names[config.num_train :], "test": []}
    for split, lines in splits.items():
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def _write_frames(config: SceneConfig, training: Path, workers: int, progress: bool) -> SceneSummary:
    jobs = [(config, index, str(training)) for index in range(config.num_frames)]
    bar = tqdm(total=len(jobs), desc="scenes", unit="frame", disable=not progress)
    points, objects = 0, Counter[str]()
    with bar:
        for num_points, names in _results(jobs, workers):
            points += num_points
            objects.update(names)
            bar.update()
    return SceneSummary(len(jobs), points / len(jobs), dict(sorted(objects.items())))


def _results(jobs: list[tuple[SceneConfig, int, str]], workers: int) -> Iterator[tuple[int, list[str]]]:
    if workers == 1:
        yield from map(_write_frame, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_write_frame, jobs, chunksize=4)


@lru_cache(maxsize=2)
def _generator(config: SceneConfig) -> FrameGenerator:
    return FrameGenerator(config)


def _write_frame(job: tuple[SceneConfig, int, str]) -> tuple[int, list[str]]:
    config, index, training = job
    frame = _generator(config).write(index, Path(training))
    return len(frame.returns.points), [label.name for label in frame.labels]
