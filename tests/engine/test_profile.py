"""Profiles of detectors through the command, against what their parts and the whole are counted to be."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from cakdp_ext.checkpoint import write_checkpoint
from cakdp_ext.engine.build import build_full
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.measure import cost_frames
from cakdp_ext.pruning import ACTIVATIONS, EXACT, THOP, count_layers, count_parameters

STAGES = ["vfe", "backbone_3d", "map_to_bev_module", "backbone_2d", "dense_head"]
MEASURED = ("--frames", 2, "--iterations", 3)


@pytest.mark.parametrize(("name", "parts"), [("second", STAGES), ("voxel_rcnn", [*STAGES, "roi_head"])])
def test_profile_of_a_checkpoint_adds_up(world, tmp_path, name, parts):
    config = world.config(name)
    val = build_split(config, "val")
    torch.manual_seed(0)
    model = build_full(config, val.geometry)
    write_checkpoint(tmp_path / "some.pth", model, {"epoch": 1})
    files = ("--json", tmp_path / "deep" / "out.json", "--csv", tmp_path / "out.csv")
    outcome = world.command("profile", name, "--ckpt", tmp_path / "some.pth", *MEASURED, *files)
    assert outcome.code == 0, outcome.err
    tree = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert [row["module"] for row in tree["modules"]] == [*parts, "rest"]
    frames = cost_frames(val, torch.device("cpu"), 2)
    counts = [count_layers(lambda m, b=batch: m(b), model) for batch in frames]
    for key, kind in (("macs", EXACT), ("macs_thop", THOP), ("activations", ACTIVATIONS)):
        for row in tree["modules"][:-1]:
            assert row[key] == sum(count[kind].under(row["module"]) for count in counts) / 2
        assert tree["total"][key] == sum(count[kind].total for count in counts) / 2
    for row in tree["modules"][:-1]:
        assert row["params"] == count_parameters(getattr(model, row["module"]))
    assert tree["total"]["params"] == count_parameters(model)
    assert tree["modules"][-1]["params"] == tree["modules"][-1]["macs"] == 0
    assert 0 < tree["total"]["latency_p50_ms"] <= tree["total"]["latency_p90_ms"] <= tree["total"]["latency_p99_ms"]
    assert 0 < tree["modules"][1]["latency_p50_ms"] < 3 * tree["total"]["latency_p50_ms"]
    assert (tree["iterations"], tree["frames"]) == (3, [frame for batch in frames for frame in batch.frame_ids])
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["module"] for row in rows] == [*parts, "rest", "total"]
    assert float(rows[-1]["macs"]) == tree["total"]["macs"]
    assert f"{count_parameters(model):,}" in outcome.out
    assert "some.pth" in outcome.out.splitlines()[0]


def test_an_untrained_network_is_profiled_with_the_same_random_weights(world):
    state = torch.get_rng_state()
    lines = [world.command("profile", "second", *MEASURED, tag="none").out.splitlines() for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert "random weights" in lines[0][0]
    totals = [[line.split()[:5] for line in each if line.startswith("total")] for each in lines]
    assert totals[0] == totals[1] != []
    assert not world.run("second", "none").path.exists()


def test_a_pruned_yaml_without_a_plan_says_what_to_run(world):
    outcome = world.command("profile", "second_cakdp", *MEASURED, tag="none")
    assert "no pruning plan at" in outcome.error
    assert "tools/prune.py" in outcome.error
