"""A killed run goes on by the same command and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from tiny_world import STEPS, command, contents, start

from cakdp_ext.checkpoint import read_checkpoint
from cakdp_ext.pruning import load_plan, load_scores, save_plan
from cakdp_ext.types import PruningPlan

pytestmark = pytest.mark.xdist_group("engine")
PATIENCE = 120.0


def kill_once(process, is_reached):
    """Wait until ``is_reached()``, then kill the process the hard way."""
    deadline = time.monotonic() + PATIENCE
    try:
        while not is_reached():
            assert process.poll() is None, f"it ended too early:\n{process.stdout.read()}"
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    finally:
        process.kill()
        process.stdout.close()


def differing(one, two, path=""):
    """Paths of everything that two nested checkpoints do not share exactly."""
    if isinstance(one, torch.Tensor):
        return [] if isinstance(two, torch.Tensor) and torch.equal(one, two) else [path]
    if isinstance(one, dict) and isinstance(two, dict):
        return [p for key in {*one, *two} for p in differing(one.get(key), two.get(key), f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [p for i, pair in enumerate(zip(one, two, strict=True)) for p in differing(*pair, f"{path}/{i}")]
    return [] if one == two else [path]


@pytest.mark.parametrize(("name", "workers"), [("second_cakdp", 0), ("voxel_rcnn", 0), ("voxel_rcnn", 1)])
def test_training_killed_within_an_epoch_ends_with_exactly_the_same_weights(compressed, name, workers):
    # The one has a plan, a teacher and an IoU head; the other dropout and randomly sampled RoIs.
    options = ["--epochs", 2, "--batch_size", 1, "--ckpt_save_time_interval", 0, "--num_epochs_to_eval", 0]
    options += ["--workers", workers]
    if name == "second_cakdp":
        options += ["--set", "MODEL.PRUNING.PLAN", compressed.run(name).plan]
    whole, killed = (compressed.run(name, f"{tag}_{workers}") for tag in ("whole", "killed"))
    assert compressed.command("train", name, *options, tag=whole.path.name).code == 0

    latest, middle = killed.ckpt / "latest_model.pth", 3
    process = start("train", *compressed.argv("train", name, killed.path.name), *options)
    kill_once(process, lambda: latest.is_file() and read_checkpoint(latest)["it"] >= middle)
    found = read_checkpoint(latest)
    assert (found["epoch"], found["it"]) == (0, found["step_in_epoch"])
    assert middle <= found["it"] < 2 * STEPS, "it must be killed within the first epoch"
    assert killed.checkpoints() == []

    outcome = compressed.command("train", name, *options, tag=killed.path.name)
    assert outcome.code == 0, outcome.err
    assert f"resumed at epoch 0, step {found['it']}" in outcome.out
    one, two = (read_checkpoint(folder.ckpt / "checkpoint_epoch_2.pth") for folder in (whole, killed))
    assert two["it"] == 4 * STEPS
    assert {"model_state", "optimizer_state", "schedule_state", "random_state"} <= set(one)
    assert differing(one, two) == []
    first = read_checkpoint(whole.ckpt / "checkpoint_epoch_1.pth")
    assert len(differing(first["model_state"], one["model_state"])) > 50, "two epochs must not end like one"


def test_scoring_killed_between_frames_gives_the_same_scores(compressed):
    argv = compressed.argv("score_filters", "second_cakdp", "killed_scoring")
    run = compressed.run("second_cakdp", "killed_scoring")
    kill_once(start("score_filters", *argv), run.scores.is_file)
    begun = load_scores(run.scores)
    assert len(begun.frame_ids) == 1
    outcome = compressed.command("prune", "second_cakdp", tag="killed_scoring")
    assert "lacks 1 of 2 frames; run tools/score_filters.py again" in outcome.error
    assert not run.plan.is_file()

    outcome = compressed.command("score_filters", "second_cakdp", tag="killed_scoring")
    assert outcome.code == 0, outcome.err
    assert "on 2 frames of held_out, 1 done" in outcome.out
    assert run.scores.read_bytes() == compressed.run("second_cakdp").scores.read_bytes()


def test_scoring_again_counts_no_frame_twice(compressed):
    run = compressed.copy_run("second_cakdp", "scored")
    before = run.scores.read_bytes()
    outcome = compressed.command("score_filters", "second_cakdp", tag="scored")
    assert outcome.code == 0, outcome.err
    assert run.scores.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--epochs", 3),
            "a training of 4 steps of 2 frames, this one has 12 of 2; keep epochs, batch size and frames",
        ),
        (("--batch_size", 4), "a training of 4 steps of 2 frames, this one has 2 of 4"),
        (("--set", "DATA_CONFIG.NUM_HELD_OUT", 4), "was trained with DATA_CONFIG.NUM_HELD_OUT 2, now 4 is asked for"),
        (("--set", "OPTIMIZATION.LR", 0.5), "now 0.5 is asked for; keep it, or use another --extra_tag"),
        (("--seed", 7), "was trained with --seed 666, now 7 is asked for"),
    ],
)
def test_resume_refuses_another_length_and_changes_nothing(trained, tmp_path, options, message):
    run = trained.copy_run("second", tmp_path.name)
    before = contents(run)
    outcome = trained.command("train", "second", "--num_epochs_to_eval", 0, *options, tag=run.path.name)
    assert message in outcome.error
    assert "use another --extra_tag" in outcome.error
    assert contents(run) == before


def test_refused_resume_keeps_the_yaml_that_the_run_was_made_with(trained, tmp_path):
    run = trained.copy_run("second", "longer")
    before = contents(run)
    longer = trained.variant("second", tmp_path, {"OPTIMIZATION": {"NUM_EPOCHS": 3}})
    argv = [*trained.argv("train", "second", "longer"), "--cfg", longer]
    outcome = command("train", *argv)
    assert "this one has 12 of 2" in outcome.error
    assert contents(run) == before


def test_resume_refuses_another_plan_and_changes_nothing(compressed, tmp_path):
    run = compressed.copy_run("second_cakdp", "other_plan")
    plan = load_plan(run.plan)
    layer, kept = next(iter(plan.keep_indices.items()))
    other = PruningPlan({**plan.keep_indices, layer: kept[1:]}, plan.num_filters, plan.fingerprint, plan.source)
    save_plan(tmp_path / "other.json", other)
    before = contents(run)
    options = ("--set", "MODEL.PRUNING.PLAN", tmp_path / "other.json")
    outcome = compressed.command("train", "second_cakdp", *options, tag="other_plan")
    assert "was cut by another plan; use another --extra_tag" in outcome.error
    assert contents(run) == before


def test_resume_takes_the_same_cut_from_another_file(compressed, tmp_path):
    plan = load_plan(compressed.copy_run("second_cakdp", "same_cut").plan)
    save_plan(
        tmp_path / "copy.json", PruningPlan(plan.keep_indices, plan.num_filters, plan.fingerprint, {"by": "hand"})
    )
    options = ("--num_epochs_to_eval", 0, "--set", "MODEL.PRUNING.PLAN", tmp_path / "copy.json")
    outcome = compressed.command("train", "second_cakdp", *options, tag="same_cut")
    assert outcome.code == 0, outcome.err
    assert "resumed at epoch 1" in outcome.out


def test_resume_refuses_a_checkpoint_of_another_engine(trained):
    run = trained.run("second", "foreign")
    content = read_checkpoint(trained.run("second").path)
    kept = {key: content[key] for key in ("model_state", "optimizer_state", "epoch", "it")}
    run.ckpt.mkdir(parents=True)
    torch.save(kept, run.ckpt / "checkpoint_epoch_1.pth")
    before = contents(run)
    outcome = trained.command("train", "second", tag="foreign")
    assert "was not written by this engine; give it as --pretrained_model instead" in outcome.error
    assert contents(run) == before


def test_resume_refuses_a_truncated_checkpoint_and_names_it(trained):
    run = trained.run("second", "cut_off")
    run.ckpt.mkdir(parents=True)
    file = trained.run("second").checkpoints()[-1]
    (run.ckpt / file.name).write_bytes(file.read_bytes()[:50_000])
    before = contents(run)
    outcome = trained.command("train", "second", tag="cut_off")
    assert f"{run.ckpt / file.name} cannot be read as a checkpoint" in outcome.error
    assert contents(run) == before
