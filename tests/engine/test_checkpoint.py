"""Checkpoints: atomic, strict, and readable when OpenPCDet wrote them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cakdp_ext.engine import checkpoint
from cakdp_ext.engine.checkpoint import (
    CheckpointError,
    epochs_of,
    find_checkpoint,
    load_weights,
    read_checkpoint,
    write_checkpoint,
)


def net(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


def test_round_trip_keeps_every_tensor_and_the_state(tmp_path):
    model, other = net(), net()
    write_checkpoint(tmp_path / "c.pth", model, {"epoch": 3, "pruning": {"keep": {"a": [0, 2]}}})
    content = read_checkpoint(tmp_path / "c.pth")
    assert content["epoch"] == 3
    assert content["pruning"] == {"keep": {"a": [0, 2]}}
    assert load_weights(other, content["model_state"], "c.pth") == []
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_openpcdets_one_cycle_checkpoint_with_numpy_scalars_is_read(tmp_path):
    state = {"model_state": net().state_dict(), "optimizer_state": {"lr": np.float64(0.1)}, "epoch": 1, "it": 2}
    torch.save(state, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth")["optimizer_state"]["lr"] == 0.1


def test_a_run_folder_stands_for_its_last_epoch(tmp_path):
    for epoch in (2, 10):
        write_checkpoint(tmp_path / "ckpt" / f"checkpoint_epoch_{epoch}.pth", net(), {"epoch": epoch})
    assert find_checkpoint(tmp_path).name == "checkpoint_epoch_10.pth"
    assert find_checkpoint(tmp_path / "ckpt").name == "checkpoint_epoch_10.pth"


def test_missing_truncated_and_foreign_files_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has the training finished an epoch"):
        find_checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no checkpoint at .*gone.pth"):
        read_checkpoint(tmp_path / "gone.pth")
    write_checkpoint(tmp_path / "c.pth", net(), {})
    (tmp_path / "cut.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:200])
    with pytest.raises(
        CheckpointError, match="cut.pth cannot be read .*: copy it again, or name another one"
    ) as caught:
        read_checkpoint(tmp_path / "cut.pth")
    assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no model_state"):
        read_checkpoint(tmp_path / "list.pth")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_checkpoint_cannot_execute_anything(tmp_path, capsys):
    torch.save({"model_state": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="evil.pth cannot be read"):
        read_checkpoint(tmp_path / "evil.pth")
    assert "executed" not in capsys.readouterr().out


def test_first_tensor_of_another_shape_is_named():
    with pytest.raises(CheckpointError, match=r"0.weight has shape \(2, 3\), the model expects \(4, 3\)"):
        load_weights(net(), net(2).state_dict(), "c.pth")


def test_missing_and_unknown_tensors_are_named():
    state = net().state_dict()
    bias = state.pop("0.bias")
    with pytest.raises(CheckpointError, match="lacks tensor 0.bias"):
        load_weights(net(), state, "c.pth")
    assert load_weights(net(), state, "c.pth", may_miss=("0.bias",)) == ["0.bias"]
    with pytest.raises(CheckpointError, match="unknown tensor head.bias"):
        load_weights(net(), {**net().state_dict(), "head.bias": bias}, "c.pth")


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

    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
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
