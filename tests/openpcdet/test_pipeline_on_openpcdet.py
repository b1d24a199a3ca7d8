"""Score, prune, distil and report with OpenPCDet as the engine, by the commands of the README."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "engine"))

from processes import results_of  # noqa: E402
from tiny_world import make_world  # noqa: E402

from cakdp_ext.checkpoint import PROJECTORS, read_checkpoint  # noqa: E402
from cakdp_ext.engine.build import restore_student  # noqa: E402
from cakdp_ext.engine.data import build_split  # noqa: E402
from cakdp_ext.engine.score import unpruned_student  # noqa: E402
from cakdp_ext.pruning import load_plan, load_scores, model_fingerprint  # noqa: E402

pytestmark = pytest.mark.xdist_group("openpcdet")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run_tool(world, checkout):
    """``run_tool(name, configuration, *flags, engine=...)`` runs a command on the tiny world."""

    def run(name, configuration, *flags, engine="openpcdet", launcher=()):
        command = [*launcher, ROOT / "tools" / f"{name}.py", "--cfg", world.cfg(configuration)]
        variables = {"CAKDP_ENGINE": engine, "CAKDP_OPENPCDET_CPU": "1", "OPENPCDET_ROOT": str(checkout)}
        results_of([*command, "--output_dir", world.root / "output", *flags], **variables)

    return run


@pytest.fixture(scope="module")
def compressed(world, run_tool):
    """The tiny world after teacher, student and compact student have been trained by OpenPCDet's scripts."""
    for name in ("voxel_rcnn", "second"):
        run_tool("train", name, "--workers", "0")
    run_tool("compress", "second_cakdp", "--workers", "0")
    return world


@pytest.fixture(scope="module")
def own(compressed):
    """The module and the YAML of docs/your_own_method.md that bring a projector, beside the YAMLs of the world."""
    page = (ROOT / "docs" / "your_own_method.md").read_text(encoding="utf-8")
    module, text = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("python", "yaml"))
    folder = Path(compressed.cfg("second_cakdp")).parent
    (folder / "hint.py").write_text(module, encoding="utf-8")
    tree = {**yaml.safe_load(text), "_BASE_CONFIG_": "second_cakdp.yaml"}
    assert tree["IMPORTS"] == ["hint.py"]
    (folder / "hint.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return compressed


def test_a_method_from_outside_teaches_by_one_file(own, run_tool):
    plan = own.run("second_cakdp").plan
    run_tool("train", "hint", "--workers", "0", "--set", "MODEL.PRUNING.PLAN", plan)
    saved = read_checkpoint(own.run("hint").path)
    assert saved[PROJECTORS]["methods.BevHint.projector.mix.weight"].abs().sum() > 0
    assert not any("projector" in name or "BevHint" in name for name in saved["model_state"])


def test_compress_reports_on_every_stage(compressed):
    run = compressed.run("second_cakdp")
    report = json.loads((run.path / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["teacher", "student", "pruned", "pruned + distilled", "pruned + distilled + IoU mask"]
    assert rows["pruned + distilled"]["params"] < 0.5 * rows["student"]["params"]
    assert [file.name for file in run.checkpoints()] == ["checkpoint_epoch_1.pth"]
    assert list((run.path / "eval" / "report").glob("*/result.pkl"))


def test_both_engines_score_the_same_filters_alike(compressed, run_tool):
    run_tool("score_filters", "second_cakdp", "--workers", "0", "--extra_tag", "ours", engine="builtin")
    theirs, ours = (load_scores(compressed.run("second_cakdp", tag).scores) for tag in ("default", "ours"))
    assert theirs.fingerprint == ours.fingerprint
    assert theirs.frame_ids == ours.frame_ids
    for name, values in ours.values.items():
        np.testing.assert_allclose(theirs.values[name], values, rtol=1e-3, atol=1e-8)


def test_checkpoint_of_openpcdets_loop_carries_its_plan_into_the_built_in_engine(compressed):
    run, config = compressed.run("second_cakdp"), compressed.config("second_cakdp")
    student = restore_student(config, build_split(config, "val").geometry, run.path)
    assert student.plan is not None
    assert student.plan.keep_indices == load_plan(run.plan).keep_indices
    assert "pruning_plan" in torch.load(run.checkpoints()[0], weights_only=True)["model_state"]


def test_score_files_name_the_student_that_openpcdet_trained(compressed):
    config = compressed.config("second_cakdp")
    student = unpruned_student(config, build_split(config, "held_out").geometry)
    assert load_scores(compressed.run("second_cakdp").scores).fingerprint == model_fingerprint(student)


def test_compress_goes_on_where_it_stopped(compressed, run_tool):
    run = compressed.run("second_cakdp")
    kept = {file: file.stat().st_mtime_ns for file in (run.scores, run.plan, *run.checkpoints())}
    run_tool("compress", "second_cakdp", "--workers", "0")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_compress_on_two_processes(compressed, run_tool):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    flags = ("--workers", "0", "--batch_size", "2", "--extra_tag", "two")
    run_tool("compress", "second_cakdp", *flags, launcher=launcher)
    run = compressed.run("second_cakdp", "two")
    assert load_plan(run.plan).keep_indices == load_plan(compressed.run("second_cakdp").plan).keep_indices
    assert (run.path / "report.html").is_file()


def test_methods_are_compared(compressed, run_tool):
    flags = ("--workers", "0", "--methods", "SKD", "PointDistiller", "--cost_steps", "1", "--extra_tag", "compared")
    run_tool("compare", "second_cakdp", *flags, "--set", "MODEL.PRUNING.SCORES", compressed.run("second_cakdp").scores)
    run = compressed.run("second_cakdp", "compared")
    rows = {row["name"]: row for row in json.loads((run.path / "report.json").read_text())["rows"]}
    assert list(rows) == ["teacher", "student", "no distillation", "narrow, no distillation", "SKD", "PointDistiller"]
    assert all(rows[name]["step_ms"] > 0 for name in list(rows)[2:])
    for slug in ("no_distillation", "narrow_no_distillation", "SKD", "PointDistiller"):
        content = read_checkpoint(run.path / f"{slug}_seed666")
        assert content["pruning"]
        assert ("distill_state" in content) == (slug == "PointDistiller")
