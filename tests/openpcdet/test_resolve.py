"""Any YAML, from any folder, becomes one tree whose paths hold everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cakdp_ext.config import ConfigError, ModelSource, load_config
from cakdp_ext.engine.build import load_source_config
from cakdp_ext.openpcdet.resolve import make_absolute, require_data, resolve

PROJECT = Path(__file__).resolve().parents[2]


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def checkout(tmp_path):
    """OpenPCDet's folder of configurations, as far as it matters here."""
    tools = tmp_path / "OpenPCDet" / "tools"
    write(tools / "cfgs/dataset_configs/k.yaml", "DATA_PATH: ../data/k\n")
    write(
        tools / "cfgs/kitti_models/m.yaml", "DATA_CONFIG: {_BASE_CONFIG_: cfgs/dataset_configs/k.yaml}\nMODEL: {A: 1}\n"
    )
    (tools.parent / "data/k").mkdir(parents=True)
    return tools.parent


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_theirs_resolve_from_any_folder(checkout, elsewhere):
    config = make_absolute(resolve("cfgs/kitti_models/m.yaml", ("MODEL.A", "2"), checkout), checkout)
    assert config.MODEL.A == 2
    assert Path(config.DATA_CONFIG.DATA_PATH) == checkout / "data/k"


def test_a_yaml_of_ones_own_may_start_from_theirs(checkout, elsewhere):
    write(elsewhere / "mine.yaml", "_BASE_CONFIG_: cfgs/kitti_models/m.yaml\nMODEL: {B: 3}\n")
    assert resolve("mine.yaml", (), checkout).MODEL == {"A": 1, "B": 3}
    with pytest.raises(ConfigError, match=r"names the base 'cfgs/kitti_models/m.yaml', which is neither .*elsewhere"):
        resolve("mine.yaml")


def test_ours_resolve_from_any_folder(elsewhere):
    config = resolve("cfgs/kitti/second_cakdp.yaml")
    assert config == load_config(PROJECT / "cfgs/kitti/second_cakdp.yaml")
    absolute = make_absolute(config)
    teacher, student = absolute.MODEL.DISTILL.TEACHER, absolute.MODEL.PRUNING.STUDENT
    assert Path(teacher.CFG) == PROJECT / "cfgs/kitti/voxel_rcnn.yaml"
    assert Path(student.CFG) == PROJECT / "cfgs/kitti/second.yaml"
    assert absolute.MODEL.PRUNING.PLAN is None
    assert config.MODEL.DISTILL.TEACHER.CFG == "voxel_rcnn.yaml"


def test_a_model_that_a_yaml_names_may_be_one_of_theirs(checkout, elsewhere, monkeypatch):
    for name in ("pcdet/__init__.py", "tools/train.py", "tools/test.py"):
        write(checkout / name)
    monkeypatch.setenv("OPENPCDET_ROOT", str(checkout))
    monkeypatch.setenv("CAKDP_ENGINE", "openpcdet")
    config = load_source_config(ModelSource("cfgs/kitti_models/m.yaml", "m.pth"), str(elsewhere / "own.yaml"))
    assert config.MODEL == {"A": 1}
    assert config.DATA_CONFIG == {"DATA_PATH": "../data/k"}


def test_what_is_missing_is_meant_from_the_working_directory(elsewhere):
    config = make_absolute(resolve("cfgs/kitti/second_cakdp.yaml", ("DATA_CONFIG.DATA_PATH", "no/data")))
    assert Path(config.DATA_CONFIG.DATA_PATH) == elsewhere / "no/data"
    with pytest.raises(ConfigError, match=r"no data folder .*no/data; .*starts at one of .*elsewhere"):
        require_data(config)


def test_working_directory_comes_first_and_a_run_folder_becomes_its_last_epoch(elsewhere):
    write(elsewhere / "data/kitti/here")
    write(elsewhere / "plan.json")
    write(elsewhere / "voxel_rcnn.yaml", "the one beside the YAML comes before this one")
    for epoch in (2, 10):
        (file := elsewhere / f"runs/teacher/ckpt/checkpoint_epoch_{epoch}.pth").parent.mkdir(
            parents=True, exist_ok=True
        )
        torch.save({"model_state": {}}, file)
    overrides = ("MODEL.DISTILL.TEACHER.CKPT", "runs/teacher", "MODEL.PRUNING.PLAN", "plan.json")
    config = make_absolute(resolve("cfgs/kitti/second_cakdp.yaml", overrides))
    assert Path(config.DATA_CONFIG.DATA_PATH) == elsewhere / "data/kitti"
    assert Path(config.MODEL.DISTILL.TEACHER.CKPT) == elsewhere / "runs/teacher/ckpt/checkpoint_epoch_10.pth"
    assert Path(config.MODEL.DISTILL.TEACHER.CFG) == PROJECT / "cfgs/kitti/voxel_rcnn.yaml"
    assert Path(config.MODEL.PRUNING.PLAN) == elsewhere / "plan.json"


def test_sections_that_a_yaml_takes_away_are_left_alone(elsewhere):
    write(
        elsewhere / "plain.yaml", "_BASE_CONFIG_: cfgs/kitti/second_cakdp.yaml\nMODEL: {DISTILL: null, PRUNING: null}\n"
    )
    config = make_absolute(resolve("plain.yaml"))
    assert config.MODEL.DISTILL is None


def flatten(*words, cwd):
    command = [sys.executable, PROJECT / "tools/flatten.py", *words]
    variables = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=True, env=variables)
    assert not done.stderr
    return done.stdout


def test_flattened_yaml_says_the_same_without_bases(elsewhere):
    text = flatten("--cfg", "cfgs/kitti/second_cakdp.yaml", "--set", "OPTIMIZATION.LR", "0.001", cwd=elsewhere)
    assert text.startswith("# cfgs/kitti/second_cakdp.yaml with its bases")
    assert str(PROJECT) not in text
    expected = load_config(PROJECT / "cfgs/kitti/second_cakdp.yaml", ("OPTIMIZATION.LR", "0.001"))
    assert yaml.safe_load(text) == {key: value for key, value in expected.items() if key != "CONFIG_FILE"}


def test_flattened_yaml_of_theirs_with_absolute_paths(checkout, elsewhere):
    words = ("--cfg", "cfgs/kitti_models/m.yaml", "--absolute", "--openpcdet_root")
    for name in ("pcdet/__init__.py", "tools/train.py", "tools/test.py"):
        write(checkout / name)
    tree = yaml.safe_load(flatten(*words, str(checkout), cwd=elsewhere))
    assert tree == {"DATA_CONFIG": {"DATA_PATH": str(checkout / "data/k")}, "MODEL": {"A": 1}}
