"""Every configuration takes a training step and a test step: small, and each combination of parts once."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from shipped import FILES, ROOT, batch_of, config_of, geometry_of, is_model, network_of, seeded, small

from cakdp_ext.detectors import build_detector
from cakdp_ext.distillation import FrozenTeacher
from cakdp_ext.engine.build import distill_config, pruning_config, source_file
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.pruning import apply_plan_, channel_graph, count_parameters, proportional_plan

pytestmark = pytest.mark.xdist_group("configs")


def combination(path: Path) -> str:
    """Describe what a step does: the network, the teacher's network, the distillation, whether it is cut.

    By how much and by which criterion it is cut changes widths alone, and the data sets of Waymo the frames alone.
    """
    config = config_of(path)
    distill, pruning = distill_config(config), pruning_config(config)
    teacher = network_of(config_of(source_file(distill.teacher, config.CONFIG_FILE))) if distill else None
    settings = {key: value for key, value in (config.MODEL.get("DISTILL") or {}).items() if key != "TEACHER"}
    return json.dumps([network_of(config), teacher, settings, pruning is not None])


COMBINATIONS: dict[str, Path] = {}
for _path in FILES:
    if is_model(_path):
        COMBINATIONS.setdefault(combination(_path), _path)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@cache
def _teacher(path: Path) -> FrozenTeacher:
    return FrozenTeacher(_network(path))


def _network(path: Path):
    config = small(config_of(path))
    return seeded(build_detector, config["MODEL"], config["CLASS_NAMES"], geometry_of(config))


_GRAPHS = {}


def _half(model, config):
    """Cut a student to half its filters, as every cut goes."""
    key = network_of(config)
    if key not in _GRAPHS:
        _GRAPHS[key] = channel_graph(model, geometry_of(config))
    whole = count_parameters(model)
    apply_plan_(model, proportional_plan(_GRAPHS[key], 0.5), _GRAPHS[key])
    assert count_parameters(model) < whole


def _step(path, model, config):
    """Give the step of a YAML, whose samples are whatever a fresh student or teacher is surest of."""
    distill = distill_config(small(config))
    if distill is None:
        return TrainingStep(model)
    teacher = _teacher(source_file(distill.teacher, str(path)))
    node = {**config["MODEL"]["DISTILL"], "SCORE_THRESH": 0.0}
    if node["METHOD"] == "SparseKD":
        node["PIVOT_THRESH"] = 0.0
    low = distill_config({**config, "MODEL": {**config["MODEL"], "DISTILL": node}})
    return TrainingStep(model, teacher=teacher, distill=low)


def _folder(path):
    """Give the folder of the data set that a YAML reads."""
    return path.parents[1] if path.parent.name in ("pairs", "ablation", "methods", "few_frames") else path.parent


def test_every_folder_has_combinations_of_its_own():
    assert len(COMBINATIONS) >= 60
    folders = {path.parts[1] for path in COMBINATIONS.values()}
    assert folders >= {"kitti", "waymo", "waymo_mini", "synthetic"}


@pytest.mark.parametrize("path", COMBINATIONS.values(), ids=str)
def test_a_training_step_and_a_test_step(path):
    config = config_of(path)
    model, batch = (
        _network(path),
        batch_of(config.DATA_CONFIG.DATASET, _folder(path) / "centerpoint.yaml"),
    )
    if pruning_config(config) is not None:
        _half(model, small(config))
    losses = _step(path, model.train(), config)(batch)
    assert ("distill_loss" in losses) == (distill_config(config) is not None)
    assert ("iou_loss" in losses) == ("IoU" in config.MODEL.DENSE_HEAD.NAME)
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert sum(len(p.unique()) > 1 for p in gradients) > 20
    assert all(torch.isfinite(grad).all() for grad in gradients)
    assert losses.get("distill_loss", torch.ones(())) > 0
    with torch.inference_mode():
        found = model.eval()(batch)
    assert len(found) == batch.batch_size
    assert all(len(each.boxes) == len(each.scores) == len(each.labels) for each in found)
