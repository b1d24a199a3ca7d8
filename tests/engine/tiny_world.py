"""A data set, configurations and commands small enough to run the whole pipeline in seconds."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from tensorboardX.proto.event_pb2 import Event, SessionLog

from cakdp_ext.config import load_config, merge
from cakdp_ext.datasets import make_infos
from cakdp_ext.datasets.scenes import LidarConfig, SceneConfig, StreetConfig, TrafficConfig, write_scenes
from cakdp_ext.engine.cli import run_command
from cakdp_ext.engine.runs import RunFolder

PROJECT = Path(__file__).resolve().parents[2]
SHIPPED = PROJECT / "cfgs" / "synthetic"
NUM_TRAIN, NUM_VAL, NUM_HELD_OUT, BATCH_SIZE = 10, 4, 2, 2
STEPS = (NUM_TRAIN - NUM_HELD_OUT) // BATCH_SIZE
SCENES = SceneConfig(
    num_train=NUM_TRAIN,
    num_val=NUM_VAL,
    label_distance=20.0,
    lidar=LidarConfig(beams=32, azimuth_step=0.5),
    traffic=TrafficConfig(cars=(2, 4), pedestrians=(1, 3), cyclists=(1, 3), far_cars=(0, 0), reach=13.0),
    street=StreetConfig(clutter=0.3),
)
DATA = {
    "NUM_HELD_OUT": NUM_HELD_OUT,
    "POINT_CLOUD_RANGE": [0, -6.4, -3, 12.8, 6.4, 1],
    "DATA_PROCESSOR": [
        {"NAME": "mask_points_and_boxes_outside_range", "REMOVE_OUTSIDE_BOXES": True},
        {"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": False}},
        {
            "NAME": "transform_points_to_voxels",
            "VOXEL_SIZE": [0.2, 0.2, 0.1],
            "MAX_POINTS_PER_VOXEL": 5,
            "MAX_NUMBER_OF_VOXELS": {"train": 2000, "test": 2000},
        },
    ],
}
NARROW = {"LAYER_NUMS": [1, 1], "NUM_FILTERS": [16, 16], "NUM_UPSAMPLE_FILTERS": [16, 16]}
ALL_BOXES = {"SCORE_THRESH": 0.001, "NMS_CONFIG": {"NMS_POST_MAXSIZE": 60}}
ROI_HEAD = {
    "SHARED_FC": [16, 16], "CLS_FC": [16, 16], "REG_FC": [16, 16],
    "ROI_GRID_POOL": {"GRID_SIZE": 3}, "TARGET_CONFIG": {"ROI_PER_IMAGE": 16},
}  # fmt: skip
CENTERS = {
    "SHARED_CONV_CHANNEL": 16,
    "CLASS_NAMES_EACH_HEAD": [["Cyclist", "Pedestrian"], ["Car"]],
    "POST_PROCESSING": {
        "SCORE_THRESH": 0.001,
        "MAX_OBJ_PER_SAMPLE": 60,
        "POST_CENTER_LIMIT_RANGE": [0, -7, -3, 14, 7, 1],
    },
}
NAMES = ("voxel_rcnn", "second", "second_pruned", "second_cakdp", "centerpoint", "centerpoint_cakdp")


@dataclass(frozen=True)
class World:
    """One generated data set with configurations for it, in a folder of its own."""

    root: Path

    @property
    def data(self) -> Path:
        """The data set."""
        return self.root / "data"

    def cfg(self, name: str) -> str:
        """Path of a configuration."""
        return str(self.root / "cfgs" / "tiny" / f"{name}.yaml")

    def config(self, name: str, *overrides: str) -> Any:
        """Read a configuration."""
        return load_config(self.cfg(name), overrides)

    def run(self, name: str, tag: str = "default") -> RunFolder:
        """Folder of a run."""
        return RunFolder(self.root / "output" / "tiny" / name / tag)

    def command(self, tool: str, name: str, *argv: Any, tag: str = "default") -> Outcome:
        """Run a command on one of the configurations, without loader processes unless they are asked for."""
        return command(tool, *self.argv(tool, name, tag), *argv)

    def argv(self, tool: str, name: str, tag: str) -> list[str]:
        """The flags that every test passes."""
        argv = ["--cfg", self.cfg(name), "--extra_tag", tag, "--output_dir", str(self.root / "output")]
        argv += ["--device", "cpu"]
        return argv if tool in ("prune", "profile") else [*argv, "--workers", "0"]

    def variant(self, name: str, folder: Path, tree: dict[str, Any], title: str | None = None) -> str:
        """Write a configuration that changes some keys of another one and give its path."""
        path = folder / "cfgs" / "tiny" / f"{title or name}.yaml"
        write_yaml(path, {"_BASE_CONFIG_": self.cfg(name), **tree})
        return str(path)

    def copy_run(self, name: str, tag: str) -> RunFolder:
        """Copy a run to where a test may go on with it."""
        shutil.copytree(self.run(name).path, self.run(name, tag).path)
        return self.run(name, tag)

    def copy_data(self, folder: Path) -> Path:
        """Copy the data set to where a test may damage it."""
        return Path(shutil.copytree(self.data, folder / "data"))


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line in which the command says what was wrong."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.err
        last = [line for line in re.split(r"[\r\n]+", self.err) if line.strip()][-1]
        assert last.startswith("error: "), self.err
        return last


def make_world(root: Path) -> World:
    """Generate the data set and write the configurations."""
    world = World(root)
    write_scenes(SCENES, world.data, progress=False)
    make_infos(world.data, 1)
    for name in NAMES:
        write_yaml(Path(world.cfg(name)), _tree(world, name))
    return world


def _tree(world: World, name: str) -> dict[str, Any]:
    student = name.removesuffix("_pruned").removesuffix("_cakdp")
    has_centers = student == "centerpoint"
    model: dict[str, Any] = {"BACKBONE_2D": NARROW, "POST_PROCESSING": {} if has_centers else dict(ALL_BOXES)}
    if has_centers:
        model["DENSE_HEAD"] = CENTERS
    if name == "voxel_rcnn":
        model["ROI_HEAD"] = ROI_HEAD
    if name != student:
        model["PRUNING"] = {"STUDENT": {"CFG": world.cfg(student), "CKPT": str(world.run(student).path)}}
    if name.endswith("_cakdp"):
        teacher = {"CFG": world.cfg("voxel_rcnn"), "CKPT": str(world.run("voxel_rcnn").path)}
        model["DISTILL"] = {"TEACHER": teacher, "SCORE_THRESH": 0.001}
        model["POST_PROCESSING"]["IOU_REFINEMENT"] = {"MODE": "mask", "DELTA": 0.001}
    shipped = SHIPPED.parent / "kitti" if has_centers else SHIPPED
    return {
        "_BASE_CONFIG_": str(shipped / f"{name}.yaml"),
        "DATA_CONFIG": merge(DATA, {"_BASE_CONFIG_": str(SHIPPED / "data.yaml"), "DATA_PATH": str(world.data)}),
        "MODEL": model,
        "OPTIMIZATION": {"NUM_EPOCHS": 1, "LR": 1e-4, "BATCH_SIZE_PER_GPU": BATCH_SIZE},
    }


def write_yaml(path: Path, tree: dict[str, Any]) -> None:
    """Write a mapping."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


@cache
def tool(name: str) -> Any:
    """Import a script of ``tools`` or ``benchmarks``."""
    file = next(path for folder in ("tools", "benchmarks") if (path := PROJECT / folder / f"{name}.py").is_file())
    spec = importlib.util.spec_from_file_location(f"tool_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(name: str, *argv: Any) -> Outcome:
    """Run a script of ``tools`` or ``benchmarks`` in this process, as its last line does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(tool(name).main, [str(word) for word in argv])
    return Outcome(code, out.getvalue(), err.getvalue())


def start(name: str, *argv: Any) -> subprocess.Popen[str]:
    """Start a script of ``tools`` as a process of its own."""
    words = [sys.executable, str(PROJECT / "tools" / f"{name}.py"), *map(str, argv)]
    return subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def environment() -> dict[str, str]:
    """One thread a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def contents(run: RunFolder) -> dict[Path, tuple[int, bytes]]:
    """Read every file of a run but its logs, with the time when it was written."""
    files = (path for path in run.path.rglob("*") if path.is_file() and path.suffix != ".log")
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read what TensorBoard shows of a folder: tag -> (step, value), by the format of its record files.

    A session that starts at a step hides what was written for that step and later ones before.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.session_log.status == SessionLog.START:
                found = {tag: [row for row in rows if row[0] < event.step] for tag, rows in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found
