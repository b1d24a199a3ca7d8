"""Which checkpoints are tested while a training still writes them?"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cakdp_ext.checkpoint import CheckpointError
from cakdp_ext.engine import evaluate
from cakdp_ext.engine.evaluate import epochs_of


def touch(folder, *epochs):
    for epoch in epochs:
        (folder / f"checkpoint_epoch_{epoch}.pth").touch()


@pytest.mark.parametrize("is_run_folder", [False, True])
def test_epochs_are_given_in_order_from_the_first_that_is_asked_for(tmp_path, is_run_folder):
    folder = tmp_path / "ckpt"
    folder.mkdir()
    touch(folder, 9, 10, 2)
    found = epochs_of(tmp_path if is_run_folder else folder, 3)
    assert [file.name for file in found] == ["checkpoint_epoch_9.pth", "checkpoint_epoch_10.pth"]


def test_epochs_that_a_training_writes_meanwhile_are_given_too(tmp_path):
    touch(tmp_path, 1, 2)
    found = epochs_of(tmp_path)
    assert next(found).name == "checkpoint_epoch_1.pth"
    touch(tmp_path, 3)
    (tmp_path / "checkpoint_epoch_2.pth").unlink()  # a training keeps its last ones only
    assert [file.name for file in found] == ["checkpoint_epoch_3.pth"]


def test_patience_is_counted_from_the_end_of_the_last_test(tmp_path, monkeypatch):
    clock, training = SimpleNamespace(now=0.0), {50.0: 1, 200.0: 2, 500.0: 3}

    def sleep(seconds):
        clock.now += seconds
        touch(tmp_path, *(epoch for due, epoch in training.items() if due <= clock.now))

    monkeypatch.setattr(evaluate, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    found = epochs_of(tmp_path, patience=60.0)
    assert next(found).name == "checkpoint_epoch_1.pth"
    clock.now += 100.0  # while it is tested
    assert [file.name for file in found] == ["checkpoint_epoch_2.pth"]
    assert 260.0 <= clock.now <= 280.0


def test_waiting_for_epochs_ends(tmp_path):
    touch(tmp_path, 1)
    assert len(list(epochs_of(tmp_path, patience=0.05))) == 1
    with pytest.raises(CheckpointError, match=r"holds no checkpoint_epoch_\*\.pth from epoch 2 on; train first"):
        list(epochs_of(tmp_path, 2, patience=0.05))
