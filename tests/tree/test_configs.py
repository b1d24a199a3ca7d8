"""Every configuration that ships builds, and its own sections parse."""

from __future__ import annotations

from pathlib import Path

import pytest
from shipped import FILES, ROOT, built, config_of, is_model

from cakdp_ext.config import from_node
from cakdp_ext.contract import OneStageStudent, TwoStageTeacher
from cakdp_ext.datasets.scenes import read_scene_config
from cakdp_ext.engine.build import distill_config, pruning_config, source_file
from cakdp_ext.engine.schedule import OptimizationConfig

pytestmark = pytest.mark.xdist_group("configs")  # what is read and built once is shared in one process
MODELS = [path for path in FILES if is_model(path)]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_there_are_configurations_with_models():
    assert len(MODELS) >= 85
    assert {path.parts[1] for path in MODELS} >= {"kitti", "waymo", "waymo_mini", "synthetic"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_yaml_is_read_with_its_bases(path):
    assert len(config_of(path)) > 1


@pytest.mark.parametrize("path", MODELS, ids=str)
def test_detector_of_a_yaml_is_built(path):
    config = config_of(path)
    model = built(config)
    assert isinstance(model, OneStageStudent)
    assert model.sites.num_classes == len(config.CLASS_NAMES)
    assert isinstance(model, TwoStageTeacher) == ("ROI_HEAD" in config.MODEL)


@pytest.mark.parametrize(
    "path", [p for p in FILES if {"pairs", "ablation", "waymo", "waymo_mini"} & set(p.parts)], ids=str
)
def test_yaml_of_a_table_is_short(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 25


@pytest.mark.parametrize("path", MODELS, ids=str)
def test_sections_of_a_yaml_parse(path):
    config = config_of(path)
    from_node(OptimizationConfig, config.OPTIMIZATION, str(path))
    distill, pruning = distill_config(config), pruning_config(config)
    assert (distill is not None) == bool(config.MODEL.get("DISTILL"))
    assert (pruning is not None) == ("PRUNING" in config.MODEL)


@pytest.mark.parametrize("path", MODELS, ids=str)
def test_models_that_a_yaml_names_fit_it(path):
    config = config_of(path)
    for section in (distill_config(config), pruning_config(config)):
        source = getattr(section, "teacher", None) or getattr(section, "student", None)
        if source is None:
            continue
        named = config_of(source_file(source, config.CONFIG_FILE))
        assert named.CLASS_NAMES == config.CLASS_NAMES
        assert _seen(named) == _seen(config)
        tag = Path(source.ckpt)
        assert tag == Path("output", *Path(named.CONFIG_FILE).parts[1:-1], Path(named.CONFIG_FILE).stem, "default")


def _seen(config):
    """The data set without what differs between trainings."""
    return {key: value for key, value in config.DATA_CONFIG.items() if key != "DATA_AUGMENTOR"}


@pytest.mark.parametrize("path", [p for p in FILES if "LIDAR" in config_of(p)], ids=str)
def test_scenes_of_a_yaml_parse(path):
    assert read_scene_config(path).num_frames > 0
