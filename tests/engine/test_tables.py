"""The command that prints the paper's tables, on tables about the tiny world."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from tiny_world import command

from cakdp_ext.checkpoint import read_checkpoint
from cakdp_ext.config import load_config
from cakdp_ext.engine.build import build_student
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.measure import cost_frames, measure_cost
from cakdp_ext.engine.prune import make_plan
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.engine.tables.ours import read_metrics
from cakdp_ext.pruning import count_layers, count_parameters, load_plan

pytestmark = pytest.mark.xdist_group("engine")


@pytest.fixture
def tables(compressed, tmp_path):
    """Write tables about the tiny world; gives a function that prints them."""
    content = {
        "Table 1": {
            "title": "of two classes",
            "metrics": {"Car": "Car_3d/moderate_R40", "Cyc.": "Cyclist_3d/moderate_R40", "mAP": "mean"},
            "rows": [
                {
                    "label": "plain",
                    "cfg": compressed.cfg("second"),
                    "params": 5.3,
                    "macs": 80.7,
                    "ap": [81.33, 65.89, 73.61],
                },
                {"label": "cut", "cfg": compressed.cfg("second_cakdp"), "params": 1.5, "macs": 30.2},
            ],
        },
        "Figure 6": {
            "title": "of nothing printed",
            "metrics": {"Car": "Car_3d/moderate_R40"},
            "rows": [{"label": "alone", "cfg": compressed.cfg("second_pruned")}],
        },
    }
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def printed(*argv, code=0, changed=None):
        if changed is not None:
            path.write_text(yaml.safe_dump(changed(content), sort_keys=False), encoding="utf-8")
        outcome = command("tables", "--cfg", path, "--output_dir", compressed.root / "output", *argv)
        assert outcome.code == code, outcome.err
        return outcome

    return printed


def rows_of(text):
    """Read a Markdown table: label -> cells."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines if cells[0] not in ("", "---")}


def test_rows_of_finished_runs_have_every_figure(compressed, tables):
    rows = rows_of(tables("--markdown", "--only", "Table").out)
    assert list(rows) == ["plain", "cut"]
    run = compressed.run("second_cakdp")
    config = compressed.config("second_cakdp")
    val = build_split(config, "val")
    model = build_student(config, val.geometry, load_plan(run.plan)).model
    model.load_state_dict(read_checkpoint(run.path)["model_state"])
    assert rows["cut"][:3] == ["1.5", f"{count_parameters(model) / 1e6:.2f}", "30.2"]
    assert rows["cut"][6] == "checkpoint"
    frames = cost_frames(val, next(model.parameters()).device)
    assert rows["cut"][5] == f"{measure_cost(model, frames).macs / 1e9:.1f}"
    mean = sum(count_layers(lambda m, batch=batch: m(batch), model)["thop"].total for batch in frames) / len(frames)
    assert rows["cut"][3] == f"{mean / 1e9:.1f}"
    assert rows["cut"][4] == f"{100 * (mean / 30.2e9 - 1):+.1f} %"
    metrics = json.loads((run.evaluation("1", "val", "default") / "metrics.json").read_text())
    car, cyclist = metrics["Car_3d/moderate_R40"], metrics["Cyclist_3d/moderate_R40"]
    assert rows["cut"][7:] == [f"- / {car:.2f}", f"- / {cyclist:.2f}", f"- / {(car + cyclist) / 2:.2f}"]
    assert rows["plain"][0] == "5.3"
    assert rows["plain"][6:] == ["", "81.33 / -", "65.89 / -", "73.61 / -"]  # trained, but tested by nobody


def test_pruned_rows_without_a_run_ask_for_scores(compressed, tables):
    nothing = rows_of(tables("--markdown", "--extra_tag", "none", "--frames", 0).out)
    assert nothing["cut"][:7] == ["1.5", "-", "30.2", "-", "-", "-", "?"]
    assert nothing["alone"][:7] == ["-", "-", "-", "-", "-", "-", "?"]
    assert nothing["plain"][1] != "-"
    scores = f"{compressed.cfg('second')}={compressed.run('second_cakdp').scores}"
    scored = rows_of(tables("--markdown", "--extra_tag", "none", "--frames", 0, "--scores", scores).out)
    finished = rows_of(tables("--markdown", "--frames", 0).out)
    assert scored["cut"][6] == scored["alone"][6] == "scores"
    assert scored["cut"][1] == finished["cut"][1]


def test_report_stands_in_where_nobody_tested_a_run(compressed, tables):
    run = compressed.copy_run("second_cakdp", "reported")
    for file in (run.path / "eval").rglob("metrics.json"):
        file.unlink()
    ap = {"Car_3d/moderate_R40": 12.345, "Cyclist_3d/moderate_R40": None}
    shown = [{"name": "other", "ap": {"Car_3d/moderate_R40": 1.0}}, {"name": "the result", "ap": ap}]
    (run.path / "report.json").write_text(json.dumps({"rows": shown}))
    rows = rows_of(tables("--markdown", "--extra_tag", "reported", "--frames", 0).out)
    assert rows["cut"][7:] == ["- / 12.35", "- / -", "- / -"]
    tested = run.reported("the result") / "metrics.json"
    tested.parent.mkdir(parents=True)
    tested.write_text(json.dumps({**ap, "mAP_3d/moderate_R40": 45.678}))
    assert read_metrics(run, "val") == {"Car_3d/moderate_R40": 12.345, "mAP_3d/moderate_R40": 45.678}
    (run.path / "report.json").write_text("{")
    assert "report.json is no whole evaluation" in tables("--extra_tag", "reported", code=2).error


def test_table_is_aligned_for_a_terminal(tables):
    title, *lines = tables("--frames", 0, "--only", "Table 1").out.split("\n\n")[0].splitlines()
    assert title == "Table 1. of two classes"
    assert [line.split()[0] for line in lines[1:]] == ["plain", "cut"]
    assert len({len(line) for line in lines}) == 1


def _with_row(**changes):
    def change(content):
        row = {**content["Table 1"]["rows"][0], **changes}
        return {**content, "Table 1": {**content["Table 1"], "rows": [*content["Table 1"]["rows"], row]}}

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "more than one row plain"),
        ({"label": "third", "cfg": "none.yaml"}, "names none.yaml, but there is no"),
        ({"label": "third", "ap": [1.0]}, "has 1 figures under ap, but the table has 3 metrics"),
        ({"label": "third", "flops": 1.0}, "may hold ap, cfg, label, macs, params; got"),
    ],
)
def test_mistakes_in_the_data_are_named(tables, changes, message):
    assert message in tables(code=2, changed=_with_row(**changes)).error


def test_mistakes_on_the_command_line_are_named(tables):
    assert "has 'Table 9' in its name" in tables("--only", "Table 9", code=2).error
    assert "--scores takes YAML=FILE" in tables("--scores", "second.npz", code=2).error


def test_row_that_keeps_every_filter_starts_as_the_trained_student(trained, tmp_path):
    config = load_config(
        trained.variant("second_cakdp", tmp_path, {"MODEL": {"PRUNING": {"CRITERION": "ProPr", "KEEP_RATIO": 1.0}}})
    )
    run = RunFolder(tmp_path)
    plan = make_plan(config, run)
    assert plan.keep_ratio == 1.0
    student = build_student(config, build_split(config, "val").geometry, load_plan(run.plan)).model.state_dict()
    for name, value in read_checkpoint(trained.run("second").path)["model_state"].items():
        assert torch.equal(student[name], value), name
