"""Methods that are defined outside the package train by their YAMLs and our commands.

Methods and YAMLs are those of docs/your_own_method.md, which so stays true.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_distributed import torchrun
from tiny_world import PROJECT, command, scalars, write_yaml

from cakdp_ext.checkpoint import PROJECTORS, read_checkpoint
from cakdp_ext.config import load_config
from cakdp_ext.datasets import collate
from cakdp_ext.engine.build import build_student, build_teacher
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.pruning import load_plan
from cakdp_ext.types import Role

pytestmark = pytest.mark.xdist_group("engine")
PAGE = PROJECT / "docs" / "your_own_method.md"
PROJECTOR = "methods.BevHint.projector.mix.weight"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def home(compressed, tmp_path_factory):
    """A folder with the modules and the YAMLs of the page, on the small data set."""
    root = tmp_path_factory.mktemp("own")
    for name, module, text in zip(("smooth", "hint"), blocks("python"), blocks("yaml"), strict=True):
        (root / f"{name}.py").write_text(module, encoding="utf-8")
        tree = yaml.safe_load(text)
        assert tree.pop("_BASE_CONFIG_") == "cfgs/kitti/second_cakdp.yaml"
        assert tree["IMPORTS"] == [f"{name}.py"]
        write_yaml(root / f"{name}.yaml", {"_BASE_CONFIG_": compressed.cfg("second_cakdp"), **tree})
    yield root
    for name in ("smooth", "hint"):
        sys.modules.pop(name, None)


def train(compressed, home, name, tag, *options):
    argv = ["--cfg", home / f"{name}.yaml", "--output_dir", home / "output", "--extra_tag", tag, "--workers", 0]
    plan = ("--set", "MODEL.PRUNING.PLAN", compressed.run("second_cakdp").plan)
    outcome = command("train", *argv, "--device", "cpu", "--epochs", 2, "--num_epochs_to_eval", 0, *options, *plan)
    assert outcome.code == 0, outcome.err
    return RunFolder.of(home / f"{name}.yaml", tag, home / "output")


@pytest.fixture(scope="module")
def hinted(compressed, home):
    return train(compressed, home, "hint", "whole")


def test_the_first_method_of_the_page_trains(compressed, home):
    run = train(compressed, home, "smooth", "default")
    assert all(value > 0 for _, value in scalars(run.tensorboard)["train/distill_loss"])
    assert PROJECTORS not in read_checkpoint(run.path)


def test_several_methods_have_a_curve_each(hinted):
    found = scalars(hinted.tensorboard)
    for name in ("SKD", "BevHint", "VanillaKD"):
        assert all(value > 0 for _, value in found[f"train/distill_loss_{name}"]), name
    assert "train/distill_loss" not in found


def test_the_projector_is_trained_and_the_network_that_is_saved_is_the_students_alone(compressed, home, hinted):
    first, last = (read_checkpoint(hinted.ckpt / f"checkpoint_epoch_{epoch}.pth") for epoch in (1, 2))
    assert set(last[PROJECTORS]) == {PROJECTOR, PROJECTOR.replace("weight", "bias")}
    assert not torch.equal(first[PROJECTORS][PROJECTOR], last[PROJECTORS][PROJECTOR])
    config = load_config(compressed.cfg("second_cakdp"))
    geometry = build_split(config, "val").geometry
    model = build_student(config, geometry, load_plan(compressed.run("second_cakdp").plan)).model
    model.load_state_dict(last["model_state"], strict=True)
    mixed, widths = last[PROJECTORS][PROJECTOR], model.dense_head.conv_cls.in_channels
    assert mixed.shape[0] > mixed.shape[1] == widths


def differing(one, two):
    if isinstance(one, torch.Tensor):
        return not (isinstance(two, torch.Tensor) and torch.equal(one, two))
    if isinstance(one, dict):
        return one.keys() != two.keys() or any(differing(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) != len(two) or any(differing(*pair) for pair in zip(one, two, strict=True))
    return one != two


def test_a_resume_goes_on_with_the_projector_and_ends_the_same(compressed, home, hinted):
    begun = RunFolder.of(home / "hint.yaml", "resumed", home / "output")
    begun.ckpt.mkdir(parents=True)
    (begun.ckpt / "checkpoint_epoch_1.pth").write_bytes((hinted.ckpt / "checkpoint_epoch_1.pth").read_bytes())
    train(compressed, home, "hint", "resumed")
    wanted, found = (read_checkpoint(run.ckpt / "checkpoint_epoch_2.pth") for run in (hinted, begun))
    for key in ("model_state", PROJECTORS, "optimizer_state", "it"):
        assert not differing(wanted[key], found[key]), key


def test_a_checkpoint_without_its_projector_is_no_place_to_go_on_from(compressed, home, hinted):
    begun = RunFolder.of(home / "hint.yaml", "robbed", home / "output")
    begun.ckpt.mkdir(parents=True)
    content = torch.load(hinted.ckpt / "checkpoint_epoch_1.pth", weights_only=False)
    del content[PROJECTORS]
    torch.save(content, begun.ckpt / "checkpoint_epoch_1.pth")
    with pytest.raises(AssertionError, match=f"{PROJECTORS} of the checkpoint .* lacks tensor {PROJECTOR}"):
        train(compressed, home, "hint", "robbed")


@pytest.fixture(scope="module")
def ends(compressed, home, tmp_path_factory):
    """What each of two processes ends with: under the page's projector, and under every method of others at once."""
    root, plan = tmp_path_factory.mktemp("two_ranks"), str(compressed.run("second_cakdp").plan)
    every = "{METHOD: [VanillaKD, {NAME: GID, FEATURE_WEIGHT: 0.1}, PointDistiller, {NAME: SparseKD, PIVOT: rank}]}"
    jobs = [
        {"cfg": str(cfg), "output": str(root / name), "overrides": ["MODEL.PRUNING.PLAN", plan, *more]}
        for name, cfg, more in (
            ("hint", home / "hint.yaml", ()),
            ("others", compressed.cfg("second_cakdp"), ("MODEL.DISTILL", every)),
        )
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    torchrun(Path(__file__).with_name("two_ranks.py"), root / "jobs.json")
    return {
        name: [torch.load(root / name / f"rank_{rank}.pth", weights_only=True) for rank in (0, 1)]
        for name in ("hint", "others")
    }


@pytest.mark.parametrize("name", ["hint", "others"])
def test_two_processes_share_the_gradients_of_projectors(ends, name):
    one, two = ends[name]
    for part in ("parameters", "projectors"):
        trained = [key for key in one[part] if "running" not in key and "num_batches" not in key]
        assert trained
        assert all(torch.equal(one[part][key], two[part][key]) for key in trained)
    assert not all(torch.equal(one["means"][key], two["means"][key]) for key in one["means"]), "the same frames?"


def test_a_teacher_computes_what_is_asked_for_and_no_more(compressed):
    config = load_config(compressed.cfg("second_cakdp"))
    frames = build_split(config, "val")
    teacher = build_teacher(config, frames.geometry, torch.device("cpu"))
    ran = []
    for name in ("vfe", "backbone_3d", "map_to_bev_module", "backbone_2d", "dense_head", "roi_head"):
        getattr(teacher._module, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    batch, stages = collate([frames[0]]), ["vfe", "backbone_3d", "map_to_bev_module", "backbone_2d", "dense_head"]
    for role, count in ((Role.VOXELS, 1), (Role.SPARSE, 2), (Role.BEV, 4), (Role.DENSE, 5), (Role.BOXES, 5)):
        ran.clear()
        teacher.encode(batch, frozenset({role}))
        assert ran == stages[:count], role
