"""Scripts with OpenPCDet's interface run on our configuration, under guard, and leave nothing behind."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from easydict import EasyDict
from stand_in import make_checkout

from cakdp_ext.checkpoint import CheckpointError
from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet import launch as launching
from cakdp_ext.openpcdet.hook import AfterImport
from cakdp_ext.openpcdet.launch import Job, flags_of, launch


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The stand-in in the place of OpenPCDet; it has no registries that our names could go to."""
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if not isinstance(finder, AfterImport)])
    root = make_checkout(tmp_path / "checkout")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pcdet"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(root)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "pcdet"]:
        del sys.modules[name]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "any place" / "kitti" / "second" / "tag"


@pytest.fixture
def start(checkout, run):
    """``start(script, *words, **model)`` -> what the script saw."""

    def start(script, *words, tests=True, adjust=lambda args: None, **model):
        tree = {
            "CLASS_NAMES": ["Car"],
            "DATA_CONFIG": {"STEPS": [{"NAME": "flip"}]},
            "MODEL": {"CHANNELS": 3, **model},
            "OPTIMIZATION": {"OPTIMIZER": "adam_onecycle", "PCT_START": 0.4},
        }
        words = ("--cfg_file", "/x/cfgs/kitti/second.yaml", "--extra_tag", "tag", *words)
        launch(Job(checkout, script, EasyDict(tree), run, words, tests), adjust)
        return json.loads((run / "seen.json").read_text())

    return start


def save(file, width=3, **state):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state": torch.nn.Linear(width, 1).state_dict(), "it": 0, "epoch": 0, **state}, file)
    return str(file)


def test_script_runs_in_our_folder_on_our_configuration(start, run, checkout):
    seen = start("train", "--epochs", "3")
    assert [file.name for file in sorted((run / "ckpt").iterdir())] == [f"checkpoint_epoch_{n}.pth" for n in (1, 2, 3)]
    assert seen["cfg"]["MODEL"] == {"CHANNELS": 3}
    assert seen["argv"][0] == str(checkout / "tools" / "train.py")
    assert seen["path"][0] == str(checkout / "tools")
    assert "../" not in seen["path"]


def test_lists_of_mappings_can_be_read_by_attribute(start):
    names = []

    def adjust(args):
        names.extend(step.NAME for step in sys.modules["pcdet.config"].cfg.DATA_CONFIG.STEPS)

    start("train", adjust=adjust)
    assert names == ["flip"]


def test_nothing_global_stays_changed(start, checkout):
    import test as standard_library

    before = list(sys.argv), list(sys.path), dict(os.environ)
    start("train")
    assert (sys.argv, sys.path, dict(os.environ)) == before
    assert sys.modules["test"] is standard_library
    assert not {"train", "_init_path", "helper_of_the_scripts"} & set(sys.modules)
    from pcdet.config import cfg

    assert cfg == {"ROOT_DIR": checkout, "LOCAL_RANK": 0}
    assert not hasattr(cfg, "MODEL")
    with pytest.raises(RuntimeError):
        start("train", FAILS=True)
    assert (sys.argv, sys.path, dict(os.environ)) == before
    assert sys.modules["test"] is standard_library


def test_both_scripts_run_one_after_the_other(start, run):
    start("train")
    start("test", "--ckpt", str(run / "ckpt" / "checkpoint_epoch_2.pth"))
    assert start("test", "--eval_all")["args"]["eval_all"]


def test_process_killed_while_it_saves_leaves_no_half_checkpoint(start, run, monkeypatch):
    def killed(state, file):
        Path(file).write_bytes(b"half")
        raise SystemExit(9)

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(SystemExit):
        start("train")
    assert not glob.glob(str(run / "ckpt" / "*.pth"))


def test_tests_after_training_end_without_waiting(start, run):
    start("train")
    assert (run / "tested.txt").read_text().split() == ["2"]


def test_finished_training_ends_again_and_says_why_nothing_is_tested(start, run, caplog):
    start("train")
    start("train", "--ckpt", str(run / "ckpt" / "checkpoint_epoch_2.pth"))
    assert "tested.txt lists every checkpoint; remove it to test them again" in caplog.text


def test_training_that_keeps_no_checkpoint_to_test(start, run, caplog):
    start("train", "--ckpt", save(run / "last.pth", epoch=9, it=18), "--epochs", "9")
    assert "ckpt holds no checkpoint_epoch_*.pth from epoch 9 on; --ckpt_save_interval" in caplog.text


def test_training_as_a_stage_is_not_tested(start, run):
    start("train", tests=False)
    assert not (run / "tested.txt").exists()


def test_testing_all_of_nothing_is_an_error(start):
    with pytest.raises(CheckpointError, match=r"ckpt holds no checkpoint_epoch_\*.pth from epoch 4 on; train first"):
        start("test", "--eval_all", "--start_epoch", "4")


def test_patience_lasts_from_the_last_checkpoint(start, run, monkeypatch):
    save(run / "ckpt" / "checkpoint_epoch_1.pth")
    clock = iter(range(0, 10_000, 20))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            save(run / "ckpt" / "checkpoint_epoch_2.pth")

    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", sleep)
    start("test", "--eval_all", "--max_waiting_mins", "1")
    assert (run / "tested.txt").read_text().split() == ["1", "2"]
    assert 3 <= len(slept) <= 5


@pytest.mark.parametrize("words", [("--ckpt",), ("--eval_all",)])
def test_half_a_network_is_not_tested(start, run, words):
    file = save(run / "ckpt" / "checkpoint_epoch_1.pth", width=5)
    with pytest.raises(CheckpointError, match=r"epoch_1.pth has weight of shape \(1, 5\), the model expects \(1, 3\)"):
        start("test", *words, *([file] if words[0] == "--ckpt" else []))


def test_weights_to_start_from_may_fit_in_part(start, run, caplog):
    start("train", "--pretrained_model", save(run / "theirs.pth", width=5))
    assert "theirs.pth has weight of shape (1, 5), the model expects (1, 3)" in caplog.text
    assert "tensors that do not fit keep their values" in caplog.text


@pytest.mark.parametrize("script", ["train", "test"])
def test_sections_that_the_detector_passes_over_are_refused(start, script):
    with pytest.raises(ConfigError, match=r"MODEL.DISTILL: Plain is OpenPCDet's own, which passes over that"):
        start(script, "--ckpt", "nowhere.pth", NAME="Plain", DISTILL={"ALPHA": 1.0})


def test_checkpoint_to_go_on_from_must_fit(start, run):
    file = save(run / "theirs.pth")
    content = torch.load(file)
    del content["model_state"]["bias"]
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"theirs.pth lacks tensor bias; it belongs to another model"):
        start("train", "--ckpt", file)


def test_too_few_iterations_are_named(start):
    with pytest.raises(ConfigError, match=r"2 iterations in all are too few for .*adam_onecycle, .* 0.4 of them"):
        start("train", "--epochs", "1")


def test_a_fault_of_theirs_keeps_its_traceback(start):
    with pytest.raises(RuntimeError, match=r"train.py failed: ValueError: a fault of theirs") as caught:
        start("train", FAILS=True)
    assert isinstance(caught.value.__cause__, ValueError)


def test_what_the_parser_found_can_be_adjusted(start):
    def adjust(args):
        assert isinstance(args, Namespace)
        assert args.epochs == 2
        args.epochs = 4

    assert start("train", adjust=adjust)["args"]["epochs"] == 4


def test_path_of_the_yaml_is_safe_in_their_shell_command(start):
    seen = start("train", "--cfg_file", "/x/cfgs/my kitti/$(second).yaml")
    assert seen["args"]["cfg_file"] == "'/x/cfgs/my kitti/$(second).yaml'"


def test_script_of_another_kind_is_refused(start, checkout):
    (checkout / "tools" / "train.py").write_text("print('no functions here')\n")
    with pytest.raises(ConfigError, match=r"train.py has no main, parse_config, .*`import cakdp_ext` at its top"):
        start("train")


def test_flags_are_read_without_running_the_script(checkout):
    lines = (
        "raise SystemExit",
        "parser.add_argument('--of_a_fork', type=int)",
        "p.add_argument('-x', '--long', help='--')",
    )
    (checkout / "tools" / "train.py").write_text("\n".join(lines))
    assert flags_of(checkout, "train") == ["--of_a_fork", "--long"]


def test_openpcdet_that_cannot_be_imported(checkout, monkeypatch):
    monkeypatch.setattr(launching, "register", lambda: __import__("pcdet.not_built"))
    with pytest.raises(
        ConfigError, match=r"cannot be imported \(No module named 'pcdet.not_built'\).*CAKDP_OPENPCDET_CPU=1"
    ):
        launching.require_openpcdet(checkout)


def test_openpcdet_without_gpu_wants_to_be_asked_for_cpu(checkout, monkeypatch):
    monkeypatch.setattr(launching, "register", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launching, "_runs_on_cpu", lambda: False)
    with pytest.raises(ConfigError, match=r"OpenPCDet needs CUDA, .* CAKDP_OPENPCDET_CPU=1 .*CAKDP_ENGINE=builtin"):
        launching.require_openpcdet(checkout)
    monkeypatch.setattr(launching, "_runs_on_cpu", lambda: True)
    launching.require_openpcdet(checkout)
