"""OpenPCDet's own scripts under our commands: frames, resume, splits, several processes, and both engines' checkpoints.

``CAKDP_OPENPCDET_FORKS`` names further checkouts, with colons between them, that are held to the same.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "engine"))

from processes import environment_of  # noqa: E402
from tiny_world import NUM_HELD_OUT, STEPS, make_world  # noqa: E402

from cakdp_ext.checkpoint import read_checkpoint, write_checkpoint  # noqa: E402
from cakdp_ext.engine.build import build_full, restore_student  # noqa: E402
from cakdp_ext.engine.data import build_split  # noqa: E402
from cakdp_ext.pickles import load_arrays  # noqa: E402

pytestmark = pytest.mark.xdist_group("openpcdet")
FORKS = [fork for fork in os.environ.get("CAKDP_OPENPCDET_FORKS", "").split(":") if fork]


@pytest.fixture(scope="module", params=[None, *FORKS], ids=lambda fork: Path(fork).name if fork else "OpenPCDet")
def world(request, tmp_path_factory, checkout):
    """A tiny world and the variables of commands on it."""
    made = make_world(tmp_path_factory.mktemp("world"))
    root = request.param or str(checkout)
    asked = {"CAKDP_ENGINE": "openpcdet", "OPENPCDET_ROOT": root, "CAKDP_OPENPCDET_CPU": "1"}
    return made, environment_of(**asked, PYTHON=sys.executable)


def words_of(world, name, tag, *words):
    return ["--cfg", world.cfg(name), "--output_dir", str(world.root / "output"), "--extra_tag", tag, *map(str, words)]


@pytest.fixture(scope="module")
def run_tool(world):
    """``run_tool(name, tag, *words)`` -> everything that the command printed on ``second``."""

    def run(name, tag, *words, start=()):
        command = [
            *(start or (sys.executable, str(ROOT / "tools" / f"{name}.py"))),
            *words_of(world[0], "second", tag, *words),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=world[1], cwd=world[0].root, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def killed(world):
    """A training of three epochs that was killed after its first."""
    made, variables = world
    command = [sys.executable, str(ROOT / "tools" / "train.py"), *words_of(made, "second", "killed", "--epochs", 3)]
    run = made.run("second", "killed")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen([*command, "--workers", "1"], env=variables, cwd=made.root, **quiet) as process:
        while not run.checkpoints() and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert 1 <= len(run.checkpoints()) < 3
    return run


@pytest.fixture(scope="module")
def resumed(killed, run_tool):
    return killed, run_tool("train", "killed", "--epochs", 3, "--workers", 1)


def test_a_killed_training_goes_on(resumed):
    run, printed = resumed
    content = read_checkpoint(run.path)
    assert (content["epoch"], content["it"]) == (3, 3 * STEPS)
    assert re.search(r"Loading optimizer parameters from checkpoint .*checkpoint_epoch_[12].pth", printed)
    assert (run.path / "eval" / "eval_with_train" / "epoch_3" / "val" / "result.pkl").is_file()


def test_a_finished_training_says_so_and_does_nothing(resumed, run_tool):
    before = {file: file.stat().st_mtime_ns for file in resumed[0].checkpoints()}
    assert "lists every checkpoint; remove it to test them again" in run_tool("train", "killed", "--epochs", 3)
    assert {file: file.stat().st_mtime_ns for file in resumed[0].checkpoints()} == before


def test_both_engines_train_on_the_same_frames(world, resumed):
    config = world[0].config("second")
    theirs = [info["point_cloud"]["lidar_idx"] for info in load_arrays(resumed[0].path / "data" / "infos_train.pkl")]
    assert theirs == build_split(config, "train", training=True).frame_ids
    (database,) = (resumed[0].path / "data").glob("dbinfos_*.pkl")
    pasted = {entry["image_idx"] for entries in load_arrays(database).values() for entry in entries}
    assert pasted
    assert pasted <= set(theirs)


def test_any_split_of_a_run_folder_is_tested(world, resumed, run_tool):
    run_tool("test", "other", "--ckpt", resumed[0].path, "--split", "held_out", "--workers", "1")
    result = world[0].run("second", "other").evaluation("3", "held_out", "default") / "result.pkl"
    assert len(load_arrays(result)) == NUM_HELD_OUT


def test_every_checkpoint_is_tested_once(resumed, run_tool):
    words = ("--eval_all", "--max_waiting_mins", "0", "--workers", "0")
    assert run_tool("test", "killed", *words).count("has been evaluated") == 3
    assert "lists every checkpoint" in run_tool("test", "killed", *words)


def test_two_processes_train_and_test(world, run_tool):
    flags = ("--batch_size", "4", "--workers", "1", "--epochs", "2")
    printed = run_tool("train", "two", *flags, start=("bash", str(ROOT / "tools" / "dist_train.sh"), "2"))
    run = world[0].run("second", "two")
    assert "total_batch_size: 4" in printed
    assert read_checkpoint(run.path)["it"] == 2 * STEPS // 2
    run_tool("test", "two", "--workers", "1", start=("bash", str(ROOT / "tools" / "dist_test.sh"), "2"))
    assert len(load_arrays(run.evaluation("2", "val", "default") / "result.pkl")) == 4


def test_checkpoints_move_both_ways(world, resumed, run_tool):
    config = world[0].config("second")
    geometry = build_split(config, "val").geometry
    restore_student(config, geometry, resumed[0].path)
    torch.manual_seed(0)
    ours = build_full(config, geometry)
    write_checkpoint(world[0].run("second", "ours").ckpt / "checkpoint_epoch_7.pth", ours, {"it": 1, "epoch": 7})
    printed = run_tool("test", "ours", "--workers", "0")
    loaded, total = re.findall(r"loaded (\d+)/(\d+)", printed)[0]
    assert int(loaded) == int(total) == len(ours.state_dict())
