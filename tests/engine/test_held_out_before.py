"""Frames are held out only where the student's training left them out too, by whichever engine it was trained."""

from __future__ import annotations

import logging

import pytest
import torch
from easydict import EasyDict

from cakdp_ext.config import ConfigError, dump_config
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.engine.score import _require_same_held_out


def config_of(count):
    return EasyDict(CLASS_NAMES=["Car"], DATA_CONFIG={"NUM_HELD_OUT": count}, MODEL={}, OPTIMIZATION={})


@pytest.fixture
def run(tmp_path):
    """A run as OpenPCDet's script leaves it: nothing in its checkpoint tells how it was trained."""
    run = RunFolder(tmp_path)
    run.ckpt.mkdir()
    torch.save({"model_state": {}}, run.ckpt / "checkpoint_epoch_1.pth")
    (run.path / "merged_config.yaml").write_text(dump_config(config_of(2)))
    return run


def test_the_run_folder_says_what_openpcdets_checkpoints_do_not(run):
    _require_same_held_out(config_of(2), str(run.path))
    for ckpt in (run.path, run.checkpoints()[0]):
        with pytest.raises(ConfigError, match=r"was trained with DATA_CONFIG.NUM_HELD_OUT 2, now 4 is asked for"):
            _require_same_held_out(config_of(4), str(ckpt))


def test_where_nothing_says_it_there_is_a_warning(run, caplog):
    (run.path / "merged_config.yaml").unlink()
    with caplog.at_level(logging.WARNING, logger="cakdp_ext"):
        _require_same_held_out(config_of(4), str(run.path))
    assert "was trained without the frames that are held out now" in caplog.text
