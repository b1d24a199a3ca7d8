"""Two gloo processes: they end alike, wait for nobody, and test like one."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny_world import PROJECT, environment, scalars

from cakdp_ext.checkpoint import read_checkpoint
from cakdp_ext.config import ConfigError
from cakdp_ext.datasets import collate, make_infos
from cakdp_ext.engine.build import build_full, build_student
from cakdp_ext.engine.data import EpochSampler, build_split
from cakdp_ext.engine.distributed import Workers, _pick_device, gather, mean_over_workers, torchrun_environment
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.engine.train import TrainRequest, _wrapped, train
from cakdp_ext.pruning import load_plan

pytestmark = pytest.mark.xdist_group("engine")
TIMEOUT = 240
AUGMENTORS = ["gt_sampling", "random_world_flip", "random_world_rotation", "random_world_scaling"]


def torchrun(script, *argv):
    """Run a script in two processes and give its output."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, *argv]
    done = subprocess.run(
        list(map(str, words)), env=environment(), text=True, timeout=TIMEOUT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def sparse_data(world, tmp_path_factory):
    """Four frames of train: one without objects, one without a point in range, two as they were."""
    data = world.copy_data(tmp_path_factory.mktemp("sparse"))
    (data / "ImageSets" / "train.txt").write_text("000001\n000002\n000004\n000006\n")
    (data / "training" / "label_2" / "000002.txt").write_text("")
    (data / "training" / "velodyne" / "000004.bin").write_bytes(b"")
    make_infos(data, 1)
    return data


def overrides(data, *more):
    augmentors = ("DATA_CONFIG.DATA_AUGMENTOR.DISABLE_AUG_LIST", json.dumps(AUGMENTORS))
    return ["DATA_CONFIG.DATA_PATH", str(data), "DATA_CONFIG.NUM_HELD_OUT", "0", *augmentors, *map(str, more)]


def threshold_between_the_first_two(world, data, plan):
    """A score that the best box of one frame of the first step reaches and that of the other does not."""
    config = world.config("second_cakdp", *overrides(data, "MODEL.PRUNING.PLAN", plan))
    frames = build_split(config, "train", training=True, seed=666)
    torch.manual_seed(666)
    model = build_student(config, frames.geometry, load_plan(plan)).model.train()
    pair = [list(EpochSampler(4, Workers(rank, 2, torch.device("cpu")), 666, 1))[0] for rank in (0, 1)]
    with torch.no_grad():
        logits = [model(collate([frames[index]])).predictions.cls_logits.double() for index in pair]
    best = sorted(float(each.sigmoid().max()) for each in logits)
    assert best[1] - best[0] > 1e-6
    return sum(best) / 2


@pytest.fixture(scope="module")
def ends(compressed, sparse_data, tmp_path_factory):
    """Folders of a distilled student and of a teacher, trained by two processes, and what each of them ended with."""
    root = tmp_path_factory.mktemp("two_ranks")
    plan = compressed.run("second_cakdp").plan
    threshold = f"{threshold_between_the_first_two(compressed, sparse_data, plan):.12f}"
    jobs = {
        "second_cakdp": ("MODEL.PRUNING.PLAN", plan, "MODEL.DISTILL.SCORE_THRESH", threshold),
        "voxel_rcnn": (),
    }
    rows = [
        {"cfg": compressed.cfg(name), "output": str(root / name), "overrides": overrides(sparse_data, *more)}
        for name, more in jobs.items()
    ]
    (root / "jobs.json").write_text(json.dumps(rows))
    torchrun(Path(__file__).with_name("two_ranks.py"), root / "jobs.json")
    return {
        name: [torch.load(root / name / f"rank_{rank}.pth", weights_only=True) for rank in (0, 1)] for name in jobs
    }, root


@pytest.mark.parametrize("name", ["second_cakdp", "voxel_rcnn"])
def test_both_processes_end_with_the_same_weights_whatever_their_frames_lack(ends, name):
    (one, two), root = ends[0][name], ends[1]
    assert all(torch.equal(one["parameters"][key], two["parameters"][key]) for key in one["parameters"])
    assert all(torch.isfinite(value).all() for value in one["parameters"].values())
    assert not all(torch.equal(one["means"][key], two["means"][key]) for key in one["means"]), "the same frames?"
    saved = read_checkpoint(root / name)
    assert all(torch.equal(saved["model_state"][key], value) for key, value in one["parameters"].items())
    assert saved["it"] == 4
    assert len(saved["random_state"]) == 2
    first = read_checkpoint(root / name / "ckpt" / "checkpoint_epoch_1.pth")["model_state"]
    assert not all(torch.equal(first[key], value) for key, value in one["parameters"].items())


def test_distillation_goes_on_where_only_one_process_has_representatives(ends):
    losses = [value for _, value in scalars(ends[1] / "second_cakdp" / "tensorboard")["train/distill_loss"]]
    assert losses[0] > 0
    assert np.isfinite(losses).all()


def test_two_processes_test_like_one(compressed):
    options = ("--batch_size", 1, "--eval_tag", "one")
    assert compressed.command("test", "second_cakdp", *options).code == 0
    argv = [*compressed.argv("test", "second_cakdp", "default"), "--batch_size", 2, "--eval_tag", "two"]
    torchrun(PROJECT / "tools" / "test.py", *argv)
    folders = [compressed.run("second_cakdp").evaluation("1", "val", tag) for tag in ("one", "two")]
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert one == two
    one, two = (pickle.loads((folder / "result.pkl").read_bytes()) for folder in folders)
    assert sum(len(frame["name"]) for frame in one) > 0
    for first, second in zip(one, two, strict=True):
        assert first["frame_id"] == second["frame_id"]
        for key in ("name", "score", "boxes_lidar", "bbox"):
            np.testing.assert_array_equal(first[key], second[key])


FOUR = Workers(0, 4, torch.device("cpu"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (TrainRequest(batch_size=6), "--batch_size 6 cannot be dealt out to 4 processes"),
        (TrainRequest(batch_size=4, sync_bn=True), "--sync_bn needs CUDA"),
    ],
)
def test_training_that_several_processes_cannot_share_is_refused(world, tmp_path, request_, message):
    with pytest.raises(ConfigError, match=message):
        train(world.config("second"), RunFolder(tmp_path / "run"), FOUR, request_)
    assert not (tmp_path / "run").exists()


def test_a_process_alone_needs_no_group():
    assert gather(("a", 1)) == [("a", 1)]
    assert mean_over_workers({"x": torch.tensor(2.0), "y": torch.tensor(-1.0)}) == {"x": 2.0, "y": -1.0}
    assert mean_over_workers({}) == {}


def test_both_processes_test_the_epoch_that_the_first_one_has_just_written(trained):
    argv = [*trained.argv("train", "second", "pair"), "--batch_size", 2, "--epochs", 1]
    torchrun(PROJECT / "tools" / "train.py", *argv)
    run = trained.run("second", "pair")
    assert [path.name for path in run.checkpoints()] == ["checkpoint_epoch_1.pth"]
    assert (run.evaluation("1", "val", "default") / "metrics.json").is_file()


def test_what_no_checkpoint_holds_is_not_sent_to_the_other_processes(world):
    config = world.config("second")
    model = build_full(config, build_split(config, "val").geometry)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sent = {id(buffer) for buffer in _wrapped(model, Workers(0, 2, torch.device("cpu")), False).modules_buffers}
    finally:
        dist.destroy_process_group()
    assert id(model.dense_head.anchors) not in sent
    assert sent == {id(value) for name, value in model.named_buffers() if name in model.state_dict()}
    assert sent


SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[03-05,11],cpu1"}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu8", "gpu7"),
        ("gpu[03-05,11],cpu1", "gpu03"),
        ("gpu[11,03]", "gpu11"),
        ("rack[1-2]gpu[3,5].site", "rack1gpu3.site"),
    ],
)
def test_slurms_variables_in_torchruns_words(hosts, first):
    assert torchrun_environment({**SLURM, "SLURM_STEP_NODELIST": hosts}, 18888) == {
        "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": first, "MASTER_PORT": "18888",
    }  # fmt: skip


@pytest.mark.parametrize("name", SLURM)
def test_slurm_that_is_not_there_is_named(name):
    slurm = {key: value for key, value in SLURM.items() if key != name}
    with pytest.raises(ValueError, match=f"--launcher slurm, but {name} is not set; start the command with srun"):
        torchrun_environment(slurm, 18888)


def test_processes_of_slurm_find_each_other():
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    code = f"""
from cakdp_ext.engine.distributed import gather, workers
with workers("cpu", "slurm", {port}) as place:
    print(place.rank, gather("rank %d" % place.rank))
"""
    slurm = {"SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**environment(), **slurm, "SLURM_PROCID": str(rank)},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [task.communicate(timeout=TIMEOUT)[0] for task in tasks]
    for rank, output in enumerate(outputs):
        assert f"{rank} ['rank 0', 'rank 1']" in output


@pytest.mark.parametrize(("visible", "expected"), [(4, 3), (1, 0)])
def test_process_takes_its_own_gpu_or_the_only_one_that_slurm_shows(monkeypatch, visible, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert _pick_device(None, 3) == torch.device("cuda", expected)
    assert _pick_device("cuda:2", 3) == torch.device("cuda", 2)
