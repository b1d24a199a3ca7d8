"""A student whose backbones are defined outside the package goes the whole way by its YAMLs and our commands.

Backbones and YAMLs are those of docs/your_own_student.md, which so stays true.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from tiny_world import PROJECT, command, scalars, write_yaml

from cakdp_ext.checkpoint import read_checkpoint
from cakdp_ext.config import load_config, merge
from cakdp_ext.datasets import collate
from cakdp_ext.engine.build import build_full, build_student
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.pruning import channel_graph, class_logits, load_plan, load_scores, masked

pytestmark = pytest.mark.xdist_group("engine")
PAGE = PROJECT / "docs" / "your_own_student.md"
SUMS = [
    ["backbone_3d.down.2.0", "backbone_3d.residual.0"],
    ["backbone_2d.stem.0", "backbone_2d.residual.0"],
]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run_of(home, name):
    return RunFolder.of(home / f"{name}.yaml", "default", home / "output")


@pytest.fixture(scope="module")
def home(trained, tmp_path_factory):
    """A folder with the module and the two YAMLs of the page, on the small data set."""
    root = tmp_path_factory.mktemp("own")
    (root / "two_paths.py").write_text(blocks("python")[0], encoding="utf-8")
    for name, text in zip(("two_paths", "two_paths_cakdp"), blocks("yaml"), strict=True):
        tree = yaml.safe_load(text)
        base = "second_cakdp" if name.endswith("_cakdp") else "second"
        assert tree.pop("_BASE_CONFIG_") == f"cfgs/kitti/{base}.yaml"
        write_yaml(root / f"{name}.yaml", {"_BASE_CONFIG_": trained.cfg(base), **tree})
    tree = yaml.safe_load((root / "two_paths_cakdp.yaml").read_text())
    source = {"CFG": "two_paths.yaml", "CKPT": str(run_of(root, "two_paths").path)}
    write_yaml(root / "two_paths_cakdp.yaml", merge(tree, {"MODEL": {"PRUNING": {"STUDENT": source}}}))
    yield root
    sys.modules.pop("two_paths", None)


def run(home, tool, name, *options, tag="default"):
    argv = ["--cfg", home / f"{name}.yaml", "--output_dir", home / "output", "--extra_tag", tag]
    outcome = command(tool, *argv, *(() if tool == "prune" else ("--workers", 0, "--device", "cpu")), *options)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture(scope="module")
def done(home):
    """What the stages said."""
    run(home, "train", "two_paths", "--num_epochs_to_eval", 0)
    return {stage: run(home, stage, "two_paths_cakdp") for stage in ("score_filters", "prune", "train")}


@pytest.fixture(scope="module")
def folder(home, done):
    return run_of(home, "two_paths_cakdp").path


@pytest.fixture(scope="module")
def full(home, done):
    """The trained network before the cut, and its data."""
    config = load_config(home / "two_paths.yaml")
    frames = build_split(config, "held_out")
    model = build_full(config, frames.geometry)
    model.load_state_dict(read_checkpoint(run_of(home, "two_paths").path)["model_state"])
    return model.eval(), frames


def test_every_layer_of_both_backbones_can_be_cut(full):
    model, frames = full
    graph = channel_graph(model, frames.geometry)
    convolutions = {
        name for name, module in model.named_modules() if "backbone" in name and "Conv" in type(module).__name__
    }
    assert {layer.name for layer in graph.prunable} == convolutions
    assert sorted(name for name in graph.pinned if "backbone" in name) == []


def test_sums_are_one_decision_that_counts_once_and_the_print_says_so(done, folder):
    plan = load_plan(folder / "plan.json")
    for first, second in SUMS:
        assert plan.keep_indices[first] == plan.keep_indices[second]
    assert [tie["layers"] for tie in plan.source["sums"]] == SUMS
    kept, total = plan.source["decisions"]
    twice = sum(tie["decisions"][1] for tie in plan.source["sums"])
    assert total == sum(plan.num_filters.values()) - twice
    assert kept == total // 2
    assert f"by CaPr: {kept} of {total} decisions stay" in done["prune"].out
    for tie in plan.source["sums"]:
        stay, count = tie["decisions"]
        assert f"  {stay} of {count} stay: {' + '.join(tie['layers'])}" in done["prune"].out


def test_scores_are_what_the_predictions_lose(full, folder):
    model, frames = full
    graph, scores = channel_graph(model, frames.geometry), load_scores(folder / "scores.npz")
    batches = [collate([frames[index]]) for index in range(len(frames))]
    everything = replace(
        load_plan(folder / "plan.json"),
        keep_indices={layer.name: tuple(range(layer.num_filters)) for layer in graph.prunable},
    )
    with torch.no_grad():
        whole = [class_logits(model, batch).sigmoid() for batch in batches]
        for group in graph.groups[::7]:
            keep = {
                name: tuple(i for i in kept if (name, i) not in group) for name, kept in everything.keep_indices.items()
            }
            with masked(model, replace(everything, keep_indices=keep), graph):
                gaps = [
                    (before - class_logits(model, batch).sigmoid()).abs().sum(dim=2).mean().item()
                    for before, batch in zip(whole, batches, strict=True)
                ]
            total = sum(scores.values[layer][channel] for layer, channel in group)
            assert total == pytest.approx(np.mean(gaps), rel=1e-3, abs=1e-8)


def test_the_compact_network_is_the_masked_one(home, full, folder):
    model, frames = full
    plan, graph = load_plan(folder / "plan.json"), channel_graph(model, frames.geometry)
    small = build_student(load_config(home / "two_paths_cakdp.yaml"), frames.geometry, plan).model.eval()
    batch = collate(list(frames))
    with torch.no_grad(), masked(model, plan, graph):
        torch.testing.assert_close(class_logits(small, batch), class_logits(model, batch), atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in small.backbone_2d.parameters()) < 0.5 * sum(
        p.numel() for p in model.backbone_2d.parameters()
    )


def test_it_is_distilled(folder):
    found = scalars(folder / "tensorboard")
    assert all(value > 0 for _, value in found["train/distill_loss"])
    assert read_checkpoint(folder)["pruning"] == json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize("criterion", ["ProPr", "RV-CaPr"])
def test_other_criteria_cut_it_too(home, done, folder, criterion):
    options = ["--set", "MODEL.PRUNING.CRITERION", criterion]
    scores = ["MODEL.PRUNING.SCORES", folder / "scores.npz"] if criterion == "RV-CaPr" else []
    said = run(home, "prune", "two_paths_cakdp", *options, *scores, tag=criterion).out
    assert f"by {criterion}: " in said
    plan = load_plan(folder.parent / criterion / "plan.json")
    assert plan.source["criterion"] == criterion
    assert [tie["layers"] for tie in plan.source["sums"]] == SUMS


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("two_paths.py", "must be a list of modules or .py files, got 'two_paths.py'"),
        (["no_such.py"], "no file no_such.py beside the YAML or in "),
        (["no_such_module"], "Python finds no module 'no_such_module'; put its folder on PYTHONPATH"),
        (["json.py"], "has the name of another module, json; rename it"),
    ],
)
def test_imports_that_cannot_be_are_named(home, tmp_path, entries, message):
    (tmp_path / "json.py").touch()
    write_yaml(tmp_path / "bad.yaml", {"_BASE_CONFIG_": str(home / "two_paths.yaml"), "IMPORTS": entries})
    outcome = command("train", "--cfg", tmp_path / "bad.yaml", "--output_dir", tmp_path, "--workers", 0)
    assert f"IMPORTS of {tmp_path / 'bad.yaml'}" in outcome.error or "json.py" in outcome.error
    assert message in outcome.error


def test_without_imports_the_name_is_unknown(home, tmp_path):
    tree = {"_BASE_CONFIG_": str(home / "two_paths.yaml"), "IMPORTS": [], "MODEL": {"BACKBONE_3D": {"NAME": "OnePath"}}}
    write_yaml(tmp_path / "bare.yaml", tree)
    outcome = command("train", "--cfg", tmp_path / "bare.yaml", "--output_dir", tmp_path, "--workers", 0)
    assert "unknown BACKBONE_3D NAME 'OnePath'; known names:" in outcome.error
