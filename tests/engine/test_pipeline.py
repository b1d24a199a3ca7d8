"""The whole way through the real commands: train, score, prune, distil, test, and one verb for all of it."""

from __future__ import annotations

import json
import logging
import pickle
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import NUM_HELD_OUT, STEPS, scalars

from cakdp_ext.checkpoint import read_checkpoint
from cakdp_ext.engine.build import build_full
from cakdp_ext.engine.data import build_split
from cakdp_ext.pruning import count_parameters, load_plan, load_scores, model_fingerprint

pytestmark = pytest.mark.xdist_group("engine")
MIN_FILTERS = 4
"""Of the shipped configuration."""


@pytest.fixture(scope="module")
def run(compressed):
    """Folder of the stages, one by one."""
    return compressed.run("second_cakdp")


@pytest.fixture(scope="module")
def at_once(compressed):
    """What ``compress`` says, and its folder."""
    outcome = compressed.command("compress", "second_cakdp", tag="at_once")
    assert outcome.code == 0, outcome.err
    return outcome, compressed.run("second_cakdp", "at_once")


def frames_of(world, split, name="second_cakdp"):
    return build_split(world.config(name), split).frame_ids


def test_scores_know_their_model_rule_and_frames(compressed, run):
    scores = load_scores(run.scores)
    config = compressed.config("second")
    model = build_full(config, build_split(config, "val").geometry)
    model.load_state_dict(read_checkpoint(compressed.run("second").path)["model_state"])
    assert scores.fingerprint == model_fingerprint(model)
    assert (scores.removal, scores.split) == ("channel", "held_out")
    assert list(scores.frame_ids) == frames_of(compressed, "held_out")
    assert len(scores.frame_ids) == NUM_HELD_OUT
    assert all(np.isfinite(values).all() for values in scores.values.values())
    assert max(values.max() for values in scores.values.values()) > 0


def test_frames_held_out_are_no_frames_to_train_on(compressed):
    held_out, train = set(frames_of(compressed, "held_out")), set(frames_of(compressed, "train"))
    assert not held_out & train
    assert len(train) == STEPS * 2


def test_plan_keeps_half_of_all_filters_and_says_where_it_is_from(run):
    plan, scores = load_plan(run.plan), load_scores(run.scores)
    total = sum(map(len, scores.values.values()))
    assert sum(map(len, plan.keep_indices.values())) == total // 2
    assert {name: len(values) for name, values in scores.values.items()} == plan.num_filters
    assert plan.source["scored_model"] == scores.fingerprint
    assert plan.source["scores"] == str(run.scores)
    by_score = {name: kept for name, kept in plan.keep_indices.items() if len(kept) > MIN_FILTERS}
    worst_kept = min(scores.values[name][list(kept)].min() for name, kept in by_score.items())
    removed = [np.delete(values, plan.keep_indices[name]) for name, values in scores.values.items()]
    assert worst_kept >= np.concatenate(removed).max()
    assert min(map(len, plan.keep_indices.values())) >= MIN_FILTERS


def test_checkpoint_holds_the_plan_and_the_narrow_tensors(compressed, run):
    content = read_checkpoint(run.ckpt / "checkpoint_epoch_1.pth")
    full = read_checkpoint(compressed.run("second").path)["model_state"]
    plan = load_plan(run.plan)
    assert content["pruning"] == json.loads(run.plan.read_text())
    for layer, kept in plan.keep_indices.items():
        weight = content["model_state"][f"{layer}.weight"]
        axis = 1 if "deblocks" in layer else 0
        assert weight.shape[axis] == len(kept)
        assert full[f"{layer}.weight"].shape[axis] == plan.num_filters[layer]
    assert sum(v.numel() for v in content["model_state"].values()) < sum(v.numel() for v in full.values()) / 2
    assert not [key for key in content["model_state"] if "roi_head" in key or "teacher" in key]
    assert "dense_head.conv_iou.weight" in content["model_state"]


def test_training_starts_from_the_inherited_weights(compressed, run):
    content = read_checkpoint(run.path)
    assert (content["epoch"], content["step_in_epoch"], content["it"]) == (1, 0, STEPS)
    start = read_checkpoint(compressed.run("second").path)["model_state"]
    plan = load_plan(run.plan)
    kept = list(plan.keep_indices["backbone_3d.conv_input.0"])
    before = start["backbone_3d.conv_input.0.weight"][kept]
    after = content["model_state"]["backbone_3d.conv_input.0.weight"]
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, before, atol=STEPS * 2e-4, rtol=0.01)  # inherited: a few small steps away


def test_distillation_and_iou_loss_are_logged_and_not_zero(run):
    found = scalars(run.tensorboard)
    parts = ("cls_loss", "loc_loss", "dir_loss", "iou_loss", "distill_loss")
    assert {"meta_data/learning_rate", "train/loss", *(f"train/{part}" for part in parts)} == set(found)
    assert all(value > 0 for tag in found for _, value in found[tag])
    total = sum(found[f"train/{part}"][0][1] for part in parts)
    assert found["train/loss"][0][1] == pytest.approx(total, rel=1e-5)
    (log,) = run.path.glob("train_*.log")
    (line,) = [line for line in log.read_text().splitlines() if "epoch 1/1" in line]
    words = line.split()
    for part in ("distill_loss", "iou_loss"):
        assert float(words[words.index(part) + 1]) > 0


@pytest.mark.parametrize("name", ["second", "voxel_rcnn"])
def test_plain_training_has_no_distillation_and_no_iou_loss(trained, name):
    tags = set(scalars(trained.run(name).tensorboard))
    assert "train/cls_loss" in tags
    assert not {"train/distill_loss", "train/iou_loss"} & tags
    assert ("train/rcnn_cls_loss" in tags) == (name == "voxel_rcnn")


def test_evaluation_leaves_figures_detections_and_curves(compressed, run):
    folder = run.evaluation("1", "val", "default")
    metrics = json.loads((folder / "metrics.json").read_text())
    wanted = product(("Car", "Pedestrian", "Cyclist"), ("3d", "bev"), ("easy", "moderate", "hard"))
    keys = {f"{name}_{kind}/{level}_R40" for name, kind, level in wanted}
    assert keys <= set(metrics)
    assert {"recall/rcnn_0.3", "recall/rcnn_0.5", "recall/rcnn_0.7"} <= set(metrics)
    annotations = pickle.loads((folder / "result.pkl").read_bytes())
    assert [frame["frame_id"] for frame in annotations] == frames_of(compressed, "val")
    assert sum(len(frame["name"]) for frame in annotations) > 0
    for frame in annotations:
        lines = (folder / "final_result" / "data" / f"{frame['frame_id']}.txt").read_text().splitlines()
        assert len(lines) == len(frame["name"])
    curves = scalars(run.tensorboard / "eval_val")
    assert keys <= set(curves)
    assert curves["recall/rcnn_0.3"][-1] == (1, pytest.approx(metrics["recall/rcnn_0.3"]))


def test_run_folder_keeps_the_yaml_and_the_logs(compressed, run):
    assert (run.path / "second_cakdp.yaml").read_text() == Path(compressed.cfg("second_cakdp")).read_text()
    for prefix in ("score", "prune", "train"):
        assert list(run.path.glob(f"{prefix}_*.log"))
    assert not logging.getLogger("cakdp_ext").handlers
    assert not [path for path in run.path.rglob("*.tmp")]


def test_compress_gives_what_the_stages_give(run, at_once):
    _, other = at_once
    scores, plan = load_scores(run.scores), load_plan(run.plan)
    again = load_scores(other.scores)
    assert again.frame_ids == scores.frame_ids
    assert all(np.array_equal(again.values[name], values) for name, values in scores.values.items())
    assert load_plan(other.plan).keep_indices == plan.keep_indices
    one, two = (read_checkpoint(folder.path)["model_state"] for folder in (run, other))
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_report_compares_every_contestant(compressed, at_once):
    outcome, run = at_once
    tree = json.loads((run.path / "report.json").read_text())
    rows = {row["name"]: row for row in tree["rows"]}
    assert list(rows) == ["teacher", "student", "pruned", "pruned + distilled", "pruned + distilled + IoU mask"]
    assert rows["teacher"]["params"] > rows["student"]["params"] > rows["pruned"]["params"]
    assert rows["teacher"]["macs"] > rows["student"]["macs"] > rows["pruned"]["macs"] > 0
    config = compressed.config("second")
    assert rows["student"]["params"] == count_parameters(build_full(config, build_split(config, "val").geometry))
    assert rows["pruned + distilled"]["params"] > rows["pruned"]["params"]  # the IoU branch
    assert rows["pruned + distilled"]["macs"] == rows["pruned + distilled + IoU mask"]["macs"]
    assert all(row["latency_p50_ms"] > 0 and "Car_3d/moderate_R40" in row["ap"] for row in rows.values())
    plan = load_plan(run.plan)
    assert tree["filters_per_layer"] == {n: [len(plan.keep_indices[n]), total] for n, total in plan.num_filters.items()}
    assert (run.path / "report.html").read_text().count("<tr") > len(rows)
    assert outcome.out.count("pruned + distilled + IoU mask") == 1
    tested = [path.parent.name for path in (run.path / "eval" / "report").glob("*/metrics.json")]
    assert sorted(tested) == sorted(name.replace(" ", "_") for name in rows)


def test_compress_reuses_scores_plan_and_checkpoint_of_the_stages(compressed):
    run = compressed.copy_run("second_cakdp", "reused")
    kept = [run.scores, run.plan, *run.checkpoints()]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in kept]
    outcome = compressed.command("compress", "second_cakdp", tag="reused")
    assert outcome.code == 0, outcome.err
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in kept] == before
    assert "resumed at epoch 1, step 0" in outcome.out
    assert " filters on " not in outcome.out
    assert (run.path / "report.html").is_file()


@pytest.mark.parametrize(
    ("tool", "key", "value", "made_with"),
    [
        ("compress", "KEEP_RATIO", 0.3, 0.5),
        ("compress", "MIN_FILTERS", 5, 4),
        ("prune", "REMOVAL", "zero_weight", "channel"),
        ("prune", "SPLIT", "train", "held_out"),
    ],
)
def test_scores_and_plans_of_other_settings_are_refused(compressed, tmp_path, tool, key, value, made_with):
    run = compressed.copy_run("second_cakdp", tmp_path.name)
    kept = [run.scores, run.plan, *run.checkpoints()]
    before = [path.read_bytes() for path in kept]
    outcome = compressed.command(tool, "second_cakdp", "--set", f"MODEL.PRUNING.{key}", value, tag=run.path.name)
    assert f"was made with {key} {made_with}, now {value} is asked for; use another --extra_tag" in outcome.error
    assert [path.read_bytes() for path in kept] == before


def test_plan_from_a_table_of_the_authors_kind(compressed, run, tmp_path):
    flat = np.concatenate(list(load_scores(run.scores).values.values()))
    rows = [flat / 4, flat * 3 / 4]  # one row a GPU; their sum is the score
    (tmp_path / "table.txt").write_text("\n".join(" ".join(map(repr, row.tolist())) for row in rows))
    options = ("--set", "MODEL.PRUNING.SCORES", tmp_path / "table.txt")
    outcome = compressed.command("prune", "second_cakdp", *options, tag="table")
    assert outcome.code == 0, outcome.err
    plan = load_plan(compressed.run("second_cakdp", "table").plan)
    assert plan.keep_indices == load_plan(run.plan).keep_indices
    assert plan.source["removal"] == "zero_weight"


def test_pruning_alone_trains_without_teacher(compressed, run):
    options = ["--num_epochs_to_eval", 0, "--set", "MODEL.PRUNING.PLAN", run.plan]
    outcome = compressed.command("train", "second_pruned", *options)
    assert outcome.code == 0, outcome.err
    content = read_checkpoint(compressed.run("second_pruned").path)
    assert content["pruning"] == json.loads(run.plan.read_text())
    assert "dense_head.conv_iou.weight" not in content["model_state"]
    assert "train/distill_loss" not in scalars(compressed.run("second_pruned").tensorboard)


def test_distilling_under_amp_on_cpu(compressed, run):
    options = ["--use_amp", "--num_epochs_to_eval", 0, "--set", "MODEL.PRUNING.PLAN", run.plan]
    outcome = compressed.command("train", "second_cakdp", *options, tag="amp")
    assert outcome.code == 0, outcome.err
    exact, amp = (scalars(folder.tensorboard) for folder in (run, compressed.run("second_cakdp", "amp")))
    for part in ("loss", "distill_loss", "iou_loss"):
        assert amp[f"train/{part}"][0][1] == pytest.approx(exact[f"train/{part}"][0][1], rel=0.05)
    one, two = (read_checkpoint(compressed.run("second_cakdp", tag).path)["model_state"] for tag in ("default", "amp"))
    assert not all(torch.equal(one[key], two[key]) for key in one), "bfloat16 must have been used"
    assert {value.dtype for value in two.values()} == {torch.float32, torch.int64}


@pytest.fixture(scope="module")
def two_epochs(trained):
    """Folder of a training of two epochs."""
    outcome = trained.command("train", "second", "--epochs", 2, "--num_epochs_to_eval", 0, tag="two")
    assert outcome.code == 0, outcome.err
    return trained.run("second", "two")


@pytest.mark.parametrize(
    ("options", "tested"),
    [
        ((), ["1", "2"]),
        (("--start_epoch", 2), ["2"]),
        (("--start_epoch", 2, "--max_waiting_mins", 0.002), ["2"]),
    ],
)
def test_every_checkpoint_of_a_run_is_tested(trained, two_epochs, tmp_path, options, tested):
    options = ("--eval_all", "--eval_tag", tmp_path.name, *options)
    outcome = trained.command("test", "second", *options, tag="two")
    assert outcome.code == 0, outcome.err
    found = [epoch for epoch in ("1", "2") if two_epochs.evaluation(epoch, "val", tmp_path.name).exists()]
    assert found == tested


def test_time_of_a_frame_is_logged_where_it_is_asked_for(trained, two_epochs):
    plain, timed = (trained.command("test", "second", *flags, tag="two").out for flags in ((), ("--infer_time",)))
    assert "ms a frame" not in plain
    (line,) = [line for line in timed.splitlines() if "ms a frame" in line]
    assert float(line.split("checkpoint_epoch_2.pth: ")[1].split()[0]) > 0


def test_training_goes_on_from_the_checkpoint_that_is_named(trained, two_epochs):
    first, last = two_epochs.checkpoints()
    options = ("--epochs", 2, "--num_epochs_to_eval", 0, "--ckpt", first)
    outcome = trained.command("train", "second", *options, tag="from_the_first")
    assert outcome.code == 0, outcome.err
    assert "resumed at epoch 1, step 0" in outcome.out
    (again,) = trained.run("second", "from_the_first").checkpoints()
    assert again.name == last.name
    one, two = (read_checkpoint(file)["model_state"] for file in (last, again))
    assert all(torch.equal(one[key], two[key]) for key in one)
