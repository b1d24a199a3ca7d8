"""Methods side by side by command: every row from the same cut and start, tested, measured, resumed."""

from __future__ import annotations

import json
import shutil
import statistics

import pytest
import torch
from test_distributed import torchrun
from tiny_world import PROJECT, scalars

from cakdp_ext.checkpoint import read_checkpoint
from cakdp_ext.engine.comparison.narrow import latency_ratio
from cakdp_ext.engine.contestants import shown_ap
from cakdp_ext.engine.report import ReportRow, console_table
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.pruning import load_plan

pytestmark = pytest.mark.xdist_group("engine")
METHODS = ("SKD", "{NAME: VanillaKD, WEIGHT: 0.01}")
LABELS = ["no distillation", "narrow, no distillation", "SKD", "VanillaKD (WEIGHT 0.01)"]
SLUGS = ["no_distillation", "narrow_no_distillation", "SKD", "VanillaKD_WEIGHT_0.01"]
AP = "Car_3d/moderate_R40"


def compare(world, *options, tag="compare", methods=METHODS, seeds=(0, 1), steps=0):
    argv = [*(["--methods", *methods] if methods else []), "--seeds", *seeds, "--cost_steps", steps]
    cut = ("MODEL.PRUNING.SCORES", world.run("second_cakdp").scores)
    return world.command("compare", "second_cakdp", *argv, "--set", *cut, *options, tag=tag)


@pytest.fixture(scope="module")
def done(compressed):
    """Two methods and two seeds; what was said."""
    outcome = compare(compressed)
    assert outcome.code == 0, outcome.err
    return compressed.run("second_cakdp", "compare"), outcome.out


def of(run, slug, seed):
    return RunFolder(run.path / f"{slug}_seed{seed}")


@pytest.fixture(scope="module")
def rows(done):
    return {row["name"]: row for row in json.loads((done[0].path / "report.json").read_text())["rows"]}


def test_every_row_is_trained_with_every_seed_from_the_same_cut_and_start(done):
    run, _ = done
    starts = {}
    for slug in SLUGS:
        for seed in (0, 1):
            content = read_checkpoint(of(run, slug, seed).path)
            plan = load_plan(run.path / ("narrow.json" if slug.startswith("narrow") else "plan.json"))
            kept = content["pruning"]["keep_indices"]
            assert {name: tuple(kept[name]) for name in kept} == plan.keep_indices
            assert content["settings"]["--seed"] == str(seed)
            starts[slug, seed] = scalars(of(run, slug, seed).tensorboard)["train/cls_loss"][0][1]
    for seed in (0, 1):
        assert starts["SKD", seed] == pytest.approx(starts["no_distillation", seed], rel=1e-6)
        assert starts["VanillaKD_WEIGHT_0.01", seed] == pytest.approx(starts["no_distillation", seed], rel=1e-6)
    assert starts["SKD", 0] != pytest.approx(starts["SKD", 1], rel=1e-3)
    assert "train/distill_loss" not in scalars(of(run, SLUGS[0], 0).tensorboard)
    assert scalars(of(run, SLUGS[3], 0).tensorboard)["train/distill_loss"][0][1] > 0


def test_rows_hold_means_and_spreads_of_the_tests(done, rows):
    run, _ = done
    assert list(rows) == ["teacher", "student", *LABELS]
    for slug, label in zip(SLUGS, LABELS, strict=True):
        files = [of(run, slug, seed).evaluation("1", "val", "default") / "metrics.json" for seed in (0, 1)]
        found = [json.loads(file.read_text()) for file in files]
        for name, value in rows[label]["ap"].items():
            each = [metrics[name] for metrics in found]
            assert value == pytest.approx(statistics.mean(each))
            assert rows[label]["ap_spread"][name] == pytest.approx(statistics.stdev(each))
        means = [
            statistics.mean(metrics[f"{c}_3d/moderate_R40"] for c in ("Car", "Pedestrian", "Cyclist"))
            for metrics in found
        ]
        assert rows[label]["ap_spread"]["mean"] == pytest.approx(statistics.stdev(means))
        assert rows[label]["mean_ap_of_seeds"] == pytest.approx(means)
    assert AP in rows["teacher"]["ap"]
    assert rows["teacher"]["ap_spread"] == {}
    assert rows["teacher"]["mean_ap_of_seeds"] == []


def test_costs_are_those_of_the_networks(rows):
    assert rows["no distillation"]["params"] == rows["SKD"]["params"] < rows["student"]["params"]
    assert rows["no distillation"]["macs"] == rows["SKD"]["macs"] < rows["student"]["macs"]
    assert rows["narrow, no distillation"]["params"] not in (rows["SKD"]["params"], rows["student"]["params"])
    assert rows["SKD"]["latency_p50_ms"] > 0
    assert rows["SKD"]["config"] == "0.50 CaPr"
    share = float(rows["narrow, no distillation"]["config"].split()[0])
    assert rows["narrow, no distillation"]["config"] == f"{share:.2f} ProPr"
    assert 0.1 < share < 1
    assert "times as long as the compact student, run in turns; mean of each seed: " in rows[LABELS[1]]["note"]


def test_the_narrow_network_is_chosen_by_latency(done):
    source = load_plan(done[0].path / "narrow.json").source
    assert source["criterion"] == "ProPr"
    assert 0.5 < source["latency_ratio"] < 2
    assert source["as_fast_as"] == {n: len(k) for n, k in load_plan(done[0].plan).keep_indices.items()}


def test_the_report_and_the_log_name_every_row(done):
    run, said = done
    page = (run.path / "report.html").read_text()
    for label in LABELS:
        assert label in page
        assert label in said
    assert "±" in page
    assert "mean of each seed: " in page
    assert "Mean AP of each training" in page


def test_a_second_call_makes_nothing_again_and_another_seed_only_itself(compressed, done):
    run, _ = done
    kept = {path: path.stat().st_mtime_ns for pattern in ("*/ckpt/*.pth", "*.json", "**/metrics.json")
            for path in run.path.glob(pattern) if path.name != "report.json"}  # fmt: skip
    assert len(kept) > 16
    (of(run, "SKD", 1).evaluation("1", "val", "default") / "tested.json").unlink()
    again = compare(compressed, seeds=(0, 1, 2), methods=("SKD",))
    assert again.code == 0, again.err
    changed = [path for path, time in kept.items() if path.stat().st_mtime_ns != time]
    assert [path.parents[4].name for path in changed] == ["SKD_seed1"]
    assert of(run, "SKD", 2).checkpoints()
    names = [row["name"] for row in json.loads((run.path / "report.json").read_text())["rows"]]
    assert names == ["teacher", "student", *LABELS[:3]]


def test_steps_are_timed_where_they_are_asked_for(compressed, done):
    shutil.copytree(done[0].path, done[0].path.with_name("timed"))
    outcome = compare(compressed, tag="timed", methods=(), seeds=(0,), steps=1)
    assert outcome.code == 0, outcome.err
    run = compressed.run("second_cakdp", "timed")
    rows = {row["name"]: row for row in json.loads((run.path / "report.json").read_text())["rows"]}
    assert rows["SKD"]["step_ms"] > 0
    assert rows["teacher"]["step_ms"] is None
    assert rows["SKD"]["step_memory_mb"] is None or rows["SKD"]["step_memory_mb"] > 50
    assert rows["SKD"]["note"] == ""
    assert "Step [ms]" in (run.path / "report.html").read_text()


def test_two_processes_share_every_training_and_test(compressed):
    argv = compressed.argv("compare", "second_cakdp", "two")
    asked = ("--methods", "SKD", "--seeds", 0, "--cost_steps", 0, "--batch_size", 4)
    torchrun(PROJECT / "tools" / "compare.py", *argv, *asked, "--set", "MODEL.PRUNING.SCORES",
             compressed.run("second_cakdp").scores)  # fmt: skip
    run = compressed.run("second_cakdp", "two")
    content = read_checkpoint(of(run, "SKD", 0).path)
    assert len(content["random_state"]) == 2
    assert [row["name"] for row in json.loads((run.path / "report.json").read_text())["rows"]][-1] == "SKD"


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (("SKD", "XKD"), (), "unknown distillation METHOD 'XKD'; valid methods: .*SKD.*TKD, TSKD, VanillaKD"),
        (("SKD", "SKD"), (), "--methods names one twice: SKD, SKD"),
        (("{NAME: VanillaKD, HEAT: 2}",), (), "unknown key HEAT in METHOD VanillaKD of MODEL.DISTILL"),
        (("{NAME: SKD",), (), "--methods takes names and YAML mappings, got '{NAME: SKD'"),
        (("SKD",), ("MODEL.DISTILL", "null"), "has no MODEL.DISTILL; methods are compared under its teacher"),
        (("{NAME: PointDistiller, SCALE: x_conv9}",), (), "unknown SCALE 'x_conv9'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(compressed, methods, options, message):
    outcome = compare(compressed, *options, tag="refused", methods=methods, seeds=(0,))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(outcome.error)
    assert not list(compressed.run("second_cakdp", "refused").path.glob("*_seed0"))


def test_seeds_must_differ(compressed):
    assert "--seeds must be different numbers, got [1, 1]" in compare(compressed, seeds=(1, 1)).error


def test_latencies_are_compared_in_turns():
    class Slow:
        def __init__(self, size):
            self.matrix = torch.ones(size, size)

        def predict_dense(self, batch):
            return self.matrix @ self.matrix

    class Frame:
        voxels = torch.zeros(1)

    assert latency_ratio(Slow(400), Slow(100), [Frame(), Frame()]) > 2
    assert latency_ratio(Slow(100), Slow(400), [Frame(), Frame()]) < 0.5


def test_spreads_stand_beside_means():
    row = ReportRow("SKD", ap={AP: 70.0}, ap_spread={AP: 1.25}, config="0.50 CaPr")
    plain = ReportRow("teacher", ap={AP: 80.0})
    lines = console_table([plain, row]).splitlines()
    assert lines[0].split() == ["Model", "Config", "Car"]
    assert lines[3].endswith("70.00 ± 1.25")
    assert console_table([plain, row], markdown=True).splitlines()[-1] == "| SKD | 0.50 CaPr | 70.00 ± 1.25 |"


def test_reports_show_what_kitti_and_waymo_are_judged_by():
    kitti = {"Car_3d/moderate_R40": 70.0, "Car_bev/easy_R40": 80.0}
    waymo = {"OBJECT_TYPE_TYPE_CAR_LEVEL_2/APH": 60.0, "mAP_LEVEL_2/AP": 61.0}
    left_out = {"Car_3d/moderate_R11": 71.0, "mAP_3d/moderate_R40": 72.0, "Car_image/easy_R40": 9.0, "recall/gt": 3.0}
    assert shown_ap({**kitti, **waymo, **left_out}) == {**kitti, **waymo}
