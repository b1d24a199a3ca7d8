"""How errors come out of a command."""

from __future__ import annotations

import pytest
from tiny_world import command, tool
from torch._utils import ExceptionWrapper

from cakdp_ext.config import ConfigError
from cakdp_ext.engine.cli import one_line, run_command


@pytest.mark.parametrize("error", [ConfigError("a.yaml: wrong; do this"), FileNotFoundError("no file ValueError: x")])
def test_error_of_a_loader_process_loses_its_wrapping(error):
    try:
        raise error from KeyError("what was behind it")
    except type(error):
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error), match="Traceback") as caught:
        wrapped.reraise()
    assert one_line(caught.value) == str(error)


def test_error_of_several_lines_comes_out_in_one():
    assert one_line(ValueError("first\nsecond")) == "first second"
    assert one_line(ValueError("")) == ""


def test_debugging_shows_where_an_error_came_from(monkeypatch):
    def fail(argv):
        raise ConfigError("wrong")

    assert run_command(fail, []) == 2
    monkeypatch.setenv("CAKDP_DEBUG", "1")
    with pytest.raises(ConfigError, match="wrong"):
        run_command(fail, [])


def test_a_mistake_of_the_program_is_not_hidden():
    def fail(argv):
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        run_command(fail, [])


def test_interrupting_says_how_to_go_on(capsys):
    def stop(argv):
        raise KeyboardInterrupt

    assert run_command(stop, []) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


TRAIN_FLAGS = (
    "--batch_size 4 --epochs 2 --workers 0 --extra_tag t --ckpt a.pth --pretrained_model b.pth --launcher pytorch "
    "--tcp_port 18888 --sync_bn --fix_random_seed --ckpt_save_interval 1 --local_rank 0 --max_ckpt_save_num 30 "
    "--max_waiting_mins 0 --start_epoch 0 --num_epochs_to_eval 0 --save_to_file --use_tqdm_to_record "
    "--logger_iter_interval 50 --ckpt_save_time_interval 300 --wo_gpu_stat --use_amp --set OPTIMIZATION.LR 0.1"
)
TEST_FLAGS = (
    "--batch_size 4 --workers 0 --extra_tag t --launcher slurm --tcp_port 18888 --local_rank 0 --eval_tag t "
    "--eval_all --ckpt_dir c --max_waiting_mins 30 --start_epoch 3 --save_to_file --infer_time "
    "--set OPTIMIZATION.LR 0.1"
)


@pytest.mark.parametrize(("name", "flags"), [("train", TRAIN_FLAGS), ("test", TEST_FLAGS)])
def test_flags_of_openpcdets_scripts_are_taken(name, flags):
    outcome = command(name, "--cfg_file", "cfgs/nothing.yaml", *flags.split())
    assert "cfgs/nothing.yaml" in outcome.error


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("train", "--merge_all_iters_to_one_epoch", "unrecognized arguments: --merge_all_iters_to_one_epoch"),
        ("prune", "--workers 2", "unrecognized arguments: --workers 2"),
        ("prune", "--keep 0.5 --macs 30G", "argument --macs: not allowed with argument --keep"),
        ("prune", "--frames 0", "argument --frames: invalid positive value: '0'"),
        ("test", "--start_epoch 3", "go with --eval_all"),
        ("test", "--max_waiting_mins 3", "go with --eval_all"),
        ("test", "--ckpt_dir c", "go with --eval_all"),
    ],
)
def test_flags_that_would_have_no_effect_are_refused(capsys, name, flags, message):
    with pytest.raises(SystemExit) as stopped:
        tool(name).main(["--cfg", "cfgs/nothing.yaml", *flags.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
