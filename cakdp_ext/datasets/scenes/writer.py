"""A data set in KITTI's or Waymo's layout, from a configuration."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets.scenes.config import SceneConfig
from cakdp_ext.datasets.scenes.frame import FOLDERS, FrameGenerator
from cakdp_ext.datasets.scenes.segments import segments_of, write_lists, write_scene_segment

STAMP = "scenes.json"
GENERATOR_VERSION = 1
"""Raised whenever the same configuration would give other files."""
LAYOUTS = ("kitti", "waymo")
Written = list[tuple[int, list[str]]]
"""Points and names of the labelled objects of each frame."""


@dataclasses.dataclass(frozen=True)
class SceneSummary:
    """What a generated data set holds.

    Attributes:
        num_frames: frames of all splits.
        mean_points: points a frame.
        objects: class -> labelled objects in all frames.
        reused: whether it was there already.
    """

    num_frames: int
    mean_points: float
    objects: dict[str, int]
    reused: bool = False


def write_scenes(
    config: SceneConfig,
    out: str | Path,
    *,
    layout: str = "kitti",
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> SceneSummary:
    """Write a data set of generated scenes, or find that it is there already.

    In KITTI's layout every frame is a scene of its own; in Waymo's, ``sequence.frames`` sweeps make a segment.

    The stamp ``scenes.json`` in the folder holds the configuration; it is completed, atomically, when every other
    file is written. A folder with the complete stamp of the same configuration is left as it is; one whose generation
    was interrupted is generated anew. The files are the same for any number of workers.

    Args:
        config: what to generate.
        out: the folder; it is made where it does not exist.
        layout: ``kitti`` or ``waymo``.
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
    if layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    wanted = _wanted(config, layout)
    found = _claim(out, wanted, overwrite)
    if found is not None:
        return SceneSummary(**found, reused=True)
    summary = (_write_kitti if layout == "kitti" else _write_waymo)(config, out, workers, progress)
    counts = {key: value for key, value in dataclasses.asdict(summary).items() if key != "reused"}
    _write_stamp(out, {**wanted, "summary": counts})
    return summary


def _wanted(config: SceneConfig, layout: str) -> dict[str, Any]:
    """What the stamp says of a data set; what was left to its default of None, and KITTI's layout, it does not."""
    asked = {key: value for key, value in dataclasses.asdict(config).items() if value is not None}
    stamp = {"generator": GENERATOR_VERSION, "config": json.loads(json.dumps(asked))}
    return stamp if layout == "kitti" else {**stamp, "layout": layout}


def _write_kitti(config: SceneConfig, out: Path, workers: int, progress: bool) -> SceneSummary:
    for folder in FOLDERS:
        (out / "training" / folder).mkdir(parents=True, exist_ok=True)
    _write_splits(config, out / "ImageSets")
    jobs = [(config, index, str(out / "training")) for index in range(config.num_frames)]
    return _run(_write_frame, jobs, config.num_frames, workers, progress)


def _write_waymo(config: SceneConfig, out: Path, workers: int, progress: bool) -> SceneSummary:
    write_lists(config, out)
    jobs = [(config, segment, str(out)) for segment in segments_of(config)]
    return _run(write_scene_segment, jobs, config.num_frames, workers, progress)


def _claim(out: Path, wanted: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Make the folder ready for generation, or give the summary of the finished data set it already holds."""
    out.mkdir(parents=True, exist_ok=True)
    stamp = _read_stamp(out)
    if stamp is None and any(out.iterdir()):
        raise ConfigError(f"{out} holds files but no {STAMP}, so it was not generated; choose another folder")
    if stamp is not None:
        same = all(stamp.get(key) == wanted.get(key) for key in {*wanted, "layout"})
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
    old, new = (dict(_leaves({"layout": "kitti", **tree}, "")) for tree in (stamp, wanted))
    keys = [key for key in {**new, **old} if old.get(key) != new.get(key) and not key.startswith("SUMMARY")]
    return ", ".join(f"{key} is {old.get(key)} there and {new.get(key)} here" for key in keys)


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


def _run(
    write: Callable[[Any], Written], jobs: Sequence[Any], num_frames: int, workers: int, progress: bool
) -> SceneSummary:
    bar = tqdm(total=num_frames, desc="scenes", unit="frame", disable=not progress)
    points, objects = 0, Counter[str]()
    with bar:
        for written in _results(write, jobs, workers):
            for num_points, names in written:
                points += num_points
                objects.update(names)
            bar.update(len(written))
    return SceneSummary(num_frames, points / num_frames, dict(sorted(objects.items())))


def _results(write: Callable[[Any], Written], jobs: Sequence[Any], workers: int) -> Iterator[Written]:
    if workers == 1:
        yield from map(write, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(write, jobs, chunksize=1 if len(jobs) < 4 * workers else 4)


@lru_cache(maxsize=2)
def _generator(config: SceneConfig) -> FrameGenerator:
    return FrameGenerator(config)


def _write_frame(job: tuple[SceneConfig, int, str]) -> Written:
    config, index, training = job
    frame = _generator(config).write(index, Path(training))
    return [(len(frame.returns.points), [label.name for label in frame.labels])]
