"""MODEL.WIDTH makes the same network in both engines, and checkpoints know it."""

from __future__ import annotations

import logging

import pytest
import torch

from cakdp_ext.checkpoint import CheckpointError, read_checkpoint
from cakdp_ext.config import ConfigError
from cakdp_ext.engine.build import build_full, restore_student
from cakdp_ext.openpcdet.build import build_detector
from cakdp_ext.openpcdet.guards import LoadingGuard

LOG = logging.getLogger("test")


def narrow_config(both, width, name="second"):
    config = both.config(name)
    config.MODEL.NAME = {"second": "SECONDNetCaKDP", "centerpoint": "CenterPointCaKDP"}[name]
    config.MODEL.WIDTH = width
    return config


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_a_narrow_student_is_the_same_network_in_both_engines(both, training):
    config = narrow_config(both, {"BACKBONE_3D": 0.5, "BACKBONE_2D": 0.75})
    ours, theirs = build_full(config, both.geometry).eval(), both.theirs(config, training=training)
    assert shapes(ours) == shapes(theirs)
    assert theirs.state_dict()["backbone_3d.conv_input.0.weight"].shape[0] == 8
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        both_say = [model.eval().predict_dense(both.batch()).cls_logits for model in (theirs, ours)]
    torch.testing.assert_close(*both_say, rtol=1e-4, atol=1e-4)


def test_a_narrow_center_student_is_the_same_network_in_both_engines(both, openpcdet):
    config = narrow_config(both, 0.5, "centerpoint")
    assert shapes(build_full(config, both.geometry)) == shapes(both.theirs(config, training=True))


def save(model, path):
    guard = LoadingGuard(is_strict=False)
    guard.model = model
    write = guard.save_checkpoint(lambda state, filename: torch.save(state, f"{filename}.pth"))
    write({"model_state": model.state_dict(), "optimizer_state": None, "epoch": 1, "it": 3}, filename=path)
    return f"{path}.pth"


def test_a_checkpoint_moves_to_the_other_engine_and_to_no_other_width(both, tmp_path):
    config = narrow_config(both, 0.5)
    theirs = both.theirs(config)
    file = save(theirs, tmp_path / "checkpoint_epoch_1")
    assert read_checkpoint(file)["width"] == {"backbone_3d": 0.5, "backbone_2d": 0.5}
    ours = restore_student(config, both.geometry, file).model.eval()
    with torch.no_grad():
        said = [model.eval().predict_dense(both.batch()).cls_logits for model in (theirs, ours)]
    torch.testing.assert_close(*said, rtol=1e-4, atol=1e-4)
    wider = both.theirs(narrow_config(both, 0.75))
    with pytest.raises(CheckpointError, match="checkpoint_epoch_1.pth was trained with MODEL.WIDTH .*0.5.* has .*0.75"):
        wider.load_params_from_file(file, LOG, to_cpu=True)
    full = both.theirs(narrow_config(both, None))
    with pytest.raises(CheckpointError, match="the YAML has none"):
        full.load_params_from_file(file, LOG, to_cpu=True)


def test_a_checkpoint_that_says_nothing_is_told_by_its_shapes(both, tmp_path):
    model = both.theirs(narrow_config(both, 0.5))
    torch.save({"model_state": model.state_dict()}, tmp_path / "bare.pth")
    wider = both.theirs(narrow_config(both, 0.75))
    with pytest.raises(CheckpointError, match="the model expects .* of other widths"):
        wider.load_params_from_file(str(tmp_path / "bare.pth"), LOG, to_cpu=True)


def test_openpcdets_own_detectors_do_not_pass_over_a_width(both):
    config = narrow_config(both, 0.5)
    config.MODEL.NAME = "SECONDNet"
    with pytest.raises(ConfigError, match="MODEL.WIDTH: SECONDNet is OpenPCDet's own"):
        build_detector(config.MODEL, config.CLASS_NAMES, both.geometry)
    with pytest.raises(ConfigError, match="MODEL.WIDTH: SECONDNet is OpenPCDet's own"):
        LoadingGuard(is_strict=False).build_network(lambda model_cfg: both.theirs(config))(model_cfg=config.MODEL)
