"""Run folders, atomic files and logs."""

from __future__ import annotations

import logging

import pytest

from cakdp_ext.checkpoint import epoch_of
from cakdp_ext.engine.runs import RunFolder, logging_to
from cakdp_ext.files import atomic_path


def test_layout_is_openpcdets(tmp_path):
    run = RunFolder.of("tools/cfgs/kitti/second.yaml", "tag", tmp_path)
    assert run.path == tmp_path / "kitti" / "second" / "tag"
    assert run.evaluation("80", "val", "default") == run.path / "eval/epoch_80/val/default"
    assert RunFolder.of("/elsewhere/mine/x.yaml", output_dir=tmp_path).path == tmp_path / "mine/x/default"


def test_checkpoints_are_ordered_by_epoch_not_by_name(tmp_path):
    yaml = tmp_path / "some.yaml"
    yaml.write_text("A: 1\n")
    run = RunFolder(tmp_path / "run").create({"A": 2, "CONFIG_FILE": str(yaml)})
    assert (run.path / "some.yaml").read_text() == "A: 1\n"
    assert (run.path / "merged_config.yaml").read_text().startswith("A: 2\n")
    for name in ("checkpoint_epoch_10.pth", "checkpoint_epoch_9.pth", "latest_model.pth", "checkpoint_epoch_x.pth"):
        (run.ckpt / name).touch()
    assert [epoch_of(p) for p in run.checkpoints()] == ["9", "10"]
    assert epoch_of(run.ckpt / "latest_model.pth") == "no_number"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half():
        with atomic_path(target) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_nested_logs_share_the_console_and_fill_both_files(tmp_path, capsys):
    with logging_to(tmp_path, "outer") as log:
        with logging_to(tmp_path / "in", "inner"):
            log.info("both %d", 1)
        log.info("outer only")
    assert capsys.readouterr().out.count("both 1") == 1
    outer, inner = next(tmp_path.glob("outer_*.log")).read_text(), next((tmp_path / "in").glob("*.log")).read_text()
    assert "both 1" in outer
    assert "outer only" in outer
    assert "outer only" not in inner
    assert logging.getLogger("cakdp_ext").handlers == []


def test_only_the_first_process_talks(tmp_path, capsys):
    with logging_to(tmp_path, "train", is_main=False) as log:
        log.info("quiet")
    assert "quiet" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_logger_is_left_as_it_was(tmp_path):
    log = logging.getLogger("cakdp_ext")
    before = (log.level, log.propagate, list(log.handlers))
    with logging_to(tmp_path, "train"):
        assert (log.level, log.propagate) == (logging.INFO, False)
    assert (log.level, log.propagate, list(log.handlers)) == before


def test_a_folder_that_cannot_be_made_leaves_the_logger_alone(tmp_path):
    log = logging.getLogger("cakdp_ext")
    before = (log.level, log.propagate, list(log.handlers))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), logging_to(tmp_path / "file" / "run", "train"):
        log.info("the first record opens the file")
    assert (log.level, log.propagate, list(log.handlers)) == before


def test_a_command_that_says_nothing_leaves_no_folder(tmp_path):
    with logging_to(tmp_path / "run", "train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_whole_log_is_written_when_the_block_ends_well_and_not_otherwise(tmp_path, capsys):
    for ends_well in (False, True):
        folder = tmp_path / str(ends_well)
        try:
            with logging_to(folder, "prune", is_whole=True) as log:
                log.info("tried %s", "once")
                assert not folder.exists()
                if not ends_well:
                    raise ValueError
        except ValueError:
            pass
        assert [path.read_text()[10:] for path in folder.glob("prune_*.log")] == ["tried once\n"] * ends_well
    assert capsys.readouterr().out.count("tried once") == 2


def test_a_log_without_a_folder_goes_to_the_console_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with logging_to(None, "prune") as log:
        log.info("shown")
    assert "shown" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
