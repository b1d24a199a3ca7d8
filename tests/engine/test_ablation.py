"""The study of the paper's ablations runs to its tables, and again without training."""

from __future__ import annotations

import importlib.util

import pytest
from tiny_world import PROJECT

from cakdp_ext.engine.cli import run_command

pytestmark = pytest.mark.xdist_group("engine")


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("ablation", PROJECT / "benchmarks" / "ablation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_is_printed_and_nothing_is_trained_twice(compressed, ablation, monkeypatch, capsys):
    monkeypatch.chdir(compressed.root)
    words = ["--folder", "tiny", "--tables", "7", "--seeds", "0", "--epochs", "1", "--teacher_epochs", "1"]
    assert run_command(ablation.main, words) == 0
    said = capsys.readouterr().out
    assert "\nTable 7 " in said
    assert "IoU mask > no IoU head: " in said
    assert all(f"\n{label} " in said for label in ("no IoU head", "previous", "IoU mask"))
    names = ("capr_kd", "capr_kd_iou", "capr_kd_previous_iou")
    runs = [compressed.run("second_cakdp", f"{name}_seed0") for name in names]
    runs.append(compressed.run("voxel_rcnn", "longer"))
    made = [path for run in runs for path in run.path.rglob("*") if path.suffix in (".pth", ".pkl", ".json")]
    assert len(made) >= 4 * 3
    times = {path: path.stat().st_mtime_ns for path in made}
    assert run_command(ablation.main, words) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == times
    assert capsys.readouterr().out.partition("Table 7")[2] == said.partition("Table 7")[2]


def test_a_study_without_scores_ends_before_the_teacher_is_trained(compressed, ablation, monkeypatch, capsys):
    monkeypatch.chdir(compressed.root)
    words = ["--folder", "tiny", "--scores", "nowhere.npz", "--tables", "7", "--seeds", "0", "--teacher_epochs", "2"]
    assert run_command(ablation.main, words) != 0
    assert "no scores of the student's filters in nowhere.npz; run make demo" in capsys.readouterr().err
