"""OpenPCDet's own ``tools/train.py`` and ``tools/test.py`` on CPU: a few steps, a resume, two processes."""

from __future__ import annotations

import math
import re

import pytest
import torch

pytestmark = pytest.mark.real_data
TRAIN = ("train.py", "--batch_size", 2, "--fix_random_seed", "--ckpt_save_interval", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def checkpoints(folder):
    return folder / "output" / "kitti_models" / "small" / "default" / "ckpt"


@pytest.fixture(scope="module")
def first_epoch(run_program, kitti, folder):
    return run_program("scripts.py", kitti, folder, *TRAIN, "--epochs", 1, "--workers", 1)[1]


@pytest.fixture(scope="module")
def resumed(run_program, kitti, folder, first_epoch):
    return run_program("scripts.py", kitti, folder, *TRAIN, "--epochs", 2, "--workers", 0)[1]


@pytest.fixture(scope="module")
def two_processes(run_program, kitti, folder):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    arguments = ("train.py", "--launcher", "pytorch", "--batch_size", 4, "--epochs", 1, "--workers", 1)
    return run_program("scripts.py", kitti, folder, *arguments, "--extra_tag", "two", launcher=launcher)[1]


def read(path):
    return torch.load(path, map_location="cpu", weights_only=False)


def losses(output):
    return [float(number) for number in re.findall(r"[Ll]oss[=:] ?([-\w.]+)", output)]


def test_training_ends_with_a_checkpoint_and_an_evaluation(first_epoch, checkpoints):
    state = read(checkpoints / "checkpoint_epoch_1.pth")
    assert (state["epoch"], state["it"]) == (1, 6)
    assert losses(first_epoch)
    assert all(map(math.isfinite, losses(first_epoch)))
    assert "Evaluation done" in first_epoch
    assert len(re.findall(r"Car AP_R40@", first_epoch)) == 2


def test_resume_goes_on_where_it_stopped(first_epoch, resumed, checkpoints):
    """Without the allow-list it would begin again at epoch 0, without a word."""
    assert "Loading optimizer parameters" in resumed
    before, after = (read(checkpoints / f"checkpoint_epoch_{epoch}.pth") for epoch in (1, 2))
    assert (after["epoch"], after["it"]) == (2, 12)
    steps = [float(next(iter(s["optimizer_state"]["state"].values()))["step"]) for s in (before, after)]
    assert steps == [6, 12]


def test_checkpoint_is_tested(run_program, kitti, folder, resumed, checkpoints):
    checkpoint = checkpoints / "checkpoint_epoch_2.pth"
    _, output = run_program(
        "scripts.py", kitti, folder, "test.py", "--batch_size", 2, "--workers", 0, "--ckpt", checkpoint
    )
    assert "Evaluation done" in output
    assert (checkpoints.parent / "eval" / "epoch_2" / "val" / "default" / "result.pkl").is_file()


def test_two_processes_share_a_batch(two_processes, folder):
    assert "total_batch_size: 4" in two_processes
    output = folder / "output" / "kitti_models" / "small" / "two"
    assert read(output / "ckpt" / "checkpoint_epoch_1.pth")["it"] == 3  # 11 frames, 4 a step
    assert all(map(math.isfinite, losses(two_processes)))
    assert "Evaluation done" in two_processes
