"""Every configuration that ships builds, and its own sections parse."""

from __future__ import annotations

from pathlib import Path

import pytest

from cakdp_ext.config import from_node, load_config
from cakdp_ext.datasets.processing import PointProcessor
from cakdp_ext.datasets.scenes import read_scene_config
from cakdp_ext.detectors import build_detector
from cakdp_ext.engine.build import distill_config, load_source_config, pruning_config
from cakdp_ext.engine.schedule import OptimizationConfig
from cakdp_ext.types import OneStageStudent, TwoStageTeacher

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "cfgs").rglob("*.yaml"))
MODELS = [path for path in FILES if {"MODEL", "CLASS_NAMES"} <= set(load_config(ROOT / path))]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_there_are_configurations_with_models():
    assert len(MODELS) >= 8
    assert {path.parts[1] for path in MODELS} >= {"kitti", "synthetic"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_yaml_is_read_with_its_bases(path):
    assert len(load_config(path)) > 1


@pytest.mark.parametrize("path", MODELS, ids=str)
def test_detector_of_a_yaml_is_built(path):
    config = load_config(path)
    geometry = PointProcessor.from_config(config.DATA_CONFIG, training=True).voxelizer.geometry
    model = build_detector(config.MODEL, config.CLASS_NAMES, geometry)
    assert isinstance(model, OneStageStudent)
    assert model.sites.num_classes == len(config.CLASS_NAMES)
    assert isinstance(model, TwoStageTeacher) == ("ROI_HEAD" in config.MODEL)


@pytest.mark.parametrize("path", MODELS, ids=str)
def test_sections_of_a_yaml_parse(path):
    config = load_config(path)
    from_node(OptimizationConfig, config.OPTIMIZATION, str(path))
    distill, pruning = distill_config(config), pruning_config(config)
    assert (distill is not None) == ("DISTILL" in config.MODEL)
    assert (pruning is not None) == ("PRUNING" in config.MODEL)


@pytest.mark.parametrize("path", MODELS, ids=str)
def test_models_that_a_yaml_names_fit_it(path):
    config = load_config(path)
    for section in (distill_config(config), pruning_config(config)):
        source = getattr(section, "teacher", None) or getattr(section, "student", None)
        if source is None:
            continue
        named = load_source_config(source, config.CONFIG_FILE)
        assert named.CLASS_NAMES == config.CLASS_NAMES
        assert named.DATA_CONFIG == config.DATA_CONFIG
        tag = Path(source.ckpt)
        assert tag == Path("output", *Path(named.CONFIG_FILE).parts[1:-1], Path(named.CONFIG_FILE).stem, "default")


@pytest.mark.parametrize("path", [p for p in FILES if "LIDAR" in load_config(ROOT / p)], ids=str)
def test_scenes_of_a_yaml_parse(path):
    assert read_scene_config(path).num_frames > 0
