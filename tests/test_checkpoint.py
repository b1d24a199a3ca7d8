"""Checkpoints: atomic, strict, and readable when OpenPCDet wrote them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cakdp_ext.checkpoint import (
    PLAN_KEY,
    CheckpointError,
    allow_numpy_scalars,
    find_checkpoint,
    load_weights,
    pack_plan,
    read_checkpoint,
    unpack_plan,
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


def test_reading_a_checkpoint_forbids_nothing_that_was_allowed_before(tmp_path):
    torch.save({"model_state": net().state_dict(), "lr": np.float64(0.1)}, tmp_path / "c.pth")
    before = torch.serialization.get_safe_globals()
    try:
        allow_numpy_scalars()
        read_checkpoint(tmp_path / "c.pth")
        assert torch.load(tmp_path / "c.pth", weights_only=True)["lr"] == 0.1
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


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


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_plan_travels_among_tensors_and_comes_back_as_it_was(prefix):
    plan = {"keep_indices": {"conv": [0, 3]}, "source": {"of": "Häßler"}}
    state = {**net().state_dict(), prefix + PLAN_KEY: pack_plan(plan)}
    assert state[prefix + PLAN_KEY].dtype == torch.uint8
    assert unpack_plan(state, prefix) == plan
    assert unpack_plan(state, prefix) is None
    assert list(state) == list(net().state_dict())


def test_a_plan_among_the_tensors_of_a_file_becomes_its_entry(tmp_path):
    torch.save({"model_state": {**net().state_dict(), PLAN_KEY: pack_plan({"a": 1})}}, tmp_path / "c.pth")
    content = read_checkpoint(tmp_path / "c.pth")
    assert content["pruning"] == {"a": 1}
    assert load_weights(net(), content["model_state"], "c.pth") == []


@pytest.mark.parametrize("packed", [pack_plan({"a": 1})[:-1], torch.zeros(3), torch.tensor([-1]), torch.tensor(1)])
def test_a_damaged_plan_is_an_error_that_names_the_file(tmp_path, packed):
    torch.save({"model_state": {**net().state_dict(), PLAN_KEY: packed}}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"c.pth: its pruning plan is damaged .*; take another checkpoint"):
        read_checkpoint(tmp_path / "c.pth")


def test_a_file_of_an_optimizer_alone_is_no_checkpoint(tmp_path):
    torch.save({"model_state": None, "optimizer_state": {}}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="c.pth holds no model_state"):
        read_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("module", ["core", "_core"])
def test_numbers_written_under_another_numpy_are_read(tmp_path, module):
    name = np.float64(0).__reduce__()[0].__module__
    torch.save(
        {"model_state": net().state_dict(), "lr": np.float64(0.1)},
        tmp_path / "c.pth",
        _use_new_zipfile_serialization=False,
    )
    content = (tmp_path / "c.pth").read_bytes()
    other = f"numpy.{module}.multiarray"
    (tmp_path / "c.pth").write_bytes(content.replace(name.encode() + b"\n", other.encode() + b"\n"))
    assert other.encode() in (tmp_path / "c.pth").read_bytes()
    assert read_checkpoint(tmp_path / "c.pth")["lr"] == 0.1


class Kernel(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(shape))


def test_a_kernel_that_spconv_1_laid_out_is_turned_round():
    new, old = Kernel(8, 3, 3, 1, 4), Kernel(3, 3, 1, 4, 8)
    load_weights(new, old.state_dict(), "c.pth")
    assert torch.equal(new.weight[5, 0, 1, 0, 2], old.weight[0, 1, 0, 2, 5])
    with pytest.raises(
        CheckpointError, match=r"weight has shape \(3, 3, 1, 4, 7\), the model expects \(8, 3, 3, 1, 4\)"
    ):
        load_weights(new, Kernel(3, 3, 1, 4, 7).state_dict(), "c.pth")
    load_weights(new, new.state_dict(), "c.pth")
