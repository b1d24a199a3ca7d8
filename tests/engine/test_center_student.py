"""The whole way with a student of centers under the teacher of anchors: train, score, prune, distil, test, report."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_world import NUM_HELD_OUT, STEPS, scalars

from cakdp_ext.checkpoint import read_checkpoint
from cakdp_ext.datasets import collate
from cakdp_ext.engine.build import build_full, build_student
from cakdp_ext.engine.data import build_split
from cakdp_ext.pruning import channel_graph, class_logits, load_plan, load_scores, masked

pytestmark = pytest.mark.xdist_group("engine")
LOSSES = ("hm_loss_head_0", "loc_loss_head_0", "hm_loss_head_1", "loc_loss_head_1")


@pytest.fixture(scope="module")
def run(trained):
    """Folder of what ``compress`` made of a trained student of centers."""
    for tool, name in (("train", "centerpoint"), ("compress", "centerpoint_cakdp")):
        outcome = trained.command(tool, name, *(("--num_epochs_to_eval", 0) if tool == "train" else ()))
        assert outcome.code == 0, outcome.err
    return trained.run("centerpoint_cakdp")


@pytest.fixture(scope="module")
def full(trained, run):
    """The trained student, and the frames that it was scored on."""
    config = trained.config("centerpoint")
    held_out = build_split(config, "held_out")
    model = build_full(config, held_out.geometry)
    model.load_state_dict(read_checkpoint(trained.run("centerpoint").path)["model_state"])
    return model.eval(), held_out


def test_scores_are_what_the_heat_maps_lose(full, run):
    model, held_out = full
    scores, graph = load_scores(run.scores), channel_graph(model, held_out.geometry)
    assert len(scores.frame_ids) == NUM_HELD_OUT
    everything = replace(
        load_plan(run.plan), keep_indices={layer.name: tuple(range(layer.num_filters)) for layer in graph.prunable}
    )
    batches = [collate([held_out[index]]) for index in range(NUM_HELD_OUT)]
    with torch.no_grad():
        whole = [class_logits(model, batch).sigmoid() for batch in batches]
        for layer in sorted(scores.values, key=lambda name: scores.values[name].max())[-3:]:
            filter_index = int(scores.values[layer].argmax())
            kept = tuple(i for i in everything.keep_indices[layer] if i != filter_index)
            plan = replace(everything, keep_indices={**everything.keep_indices, layer: kept})
            with masked(model, plan, graph):
                gaps = [
                    (before - class_logits(model, batch).sigmoid()).abs().sum(dim=2).mean().item()
                    for before, batch in zip(whole, batches, strict=True)
                ]
            assert scores.values[layer][filter_index] == pytest.approx(np.mean(gaps), rel=1e-3)
            assert scores.values[layer][filter_index] > 1e-6


def test_backbones_are_cut_and_the_head_is_whole(trained, run):
    plan, small = load_plan(run.plan), read_checkpoint(run.path)["model_state"]
    before = read_checkpoint(trained.run("centerpoint").path)["model_state"]
    assert sum(map(len, plan.keep_indices.values())) == sum(plan.num_filters.values()) // 2
    assert {layer.split(".")[0] for layer in plan.keep_indices} == {"backbone_3d", "backbone_2d"}
    for layer, kept in plan.keep_indices.items():
        assert small[f"{layer}.weight"].shape[1 if "deblocks" in layer else 0] == len(kept)
    outputs = [key for key in before if key.startswith("dense_head.heads_list")]
    assert all(small[key].shape == before[key].shape for key in outputs)
    new = {key.split(".")[3] for key in small if key.startswith("dense_head") and key not in before}
    assert new == {"iou"}
    assert not [key for key in small if "roi_head" in key or "teacher" in key]


def test_every_part_of_the_loss_counts(run):
    found = scalars(run.tensorboard)
    parts = [f"train/{part}" for part in (*LOSSES, "iou_loss", "distill_loss")]
    assert {"meta_data/learning_rate", "train/loss", *parts} == set(found)
    assert all(value > 0 for tag in parts for _, value in found[tag])
    assert found["train/loss"][0][1] == pytest.approx(sum(found[tag][0][1] for tag in parts), rel=1e-5)
    assert read_checkpoint(run.path)["it"] == STEPS


def test_report_compares_every_contestant(run):
    rows = {row["name"]: row for row in json.loads((run.path / "report.json").read_text())["rows"]}
    assert list(rows) == ["teacher", "student", "pruned", "pruned + distilled", "pruned + distilled + IoU mask"]
    assert rows["student"]["params"] > rows["pruned"]["params"] > 0
    assert rows["student"]["macs"] > rows["pruned"]["macs"] > 0
    assert all("Car_3d/moderate_R40" in row["ap"] for row in rows.values())


def test_mask_takes_detections_out(trained, run):
    config = trained.config("centerpoint_cakdp")
    val = build_split(config, "val")
    model = build_student(config, val.geometry, load_plan(run.plan)).model.eval()
    model.load_state_dict(read_checkpoint(run.path)["model_state"])
    with torch.no_grad():
        median = model.predict_dense(collate(list(val))).iou_logits.sigmoid().median().item()
    counts = []
    for number, delta in enumerate((0.0, median, 0.99)):
        options = ("--eval_tag", f"delta{number}", "--set", "MODEL.POST_PROCESSING.IOU_REFINEMENT.DELTA", delta)
        outcome = trained.command("test", "centerpoint_cakdp", *options)
        assert outcome.code == 0, outcome.err
        files = (run.evaluation("1", "val", f"delta{number}") / "final_result" / "data").glob("*.txt")
        counts.append(sum(len(file.read_text().splitlines()) for file in files))
    assert counts[0] > counts[1] > counts[2] == 0
