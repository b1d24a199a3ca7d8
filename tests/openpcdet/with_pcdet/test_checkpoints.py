"""Checkpoints go from engine to engine with their plan, and one that does not fit is refused by name and cure."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from both_engines import assert_same_detections, tensors_of
from pcdet.models import model_fn_decorator
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from cakdp_ext.checkpoint import PLAN_KEY, CheckpointError, pack_plan, read_checkpoint, unpack_plan, write_checkpoint
from cakdp_ext.engine.build import build_student, restore_student
from cakdp_ext.pruning import plan_from_dict, plan_to_dict

LOG = logging.getLogger("test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def compact(both):
    """The built-in engine's compact student."""
    torch.manual_seed(1)
    return build_student(both.student_config(), both.geometry, both.plan).model.eval()


@pytest.fixture(scope="module")
def builtin(both, compact, folder):
    """A pruned checkpoint as the built-in engine writes it."""
    write_checkpoint(folder / "builtin.pth", compact, {"epoch": 1, "it": 4, "pruning": plan_to_dict(both.plan)})
    return folder / "builtin.pth"


@pytest.fixture(scope="module")
def theirs(both, folder):
    """A pruned checkpoint as OpenPCDet's loop writes it."""
    return both.save(both.student(), folder / "theirs.pth")


@pytest.fixture(scope="module")
def unpruned(both, folder):
    """One of the same detector before the cut."""
    config = both.config("second_cakdp")
    del config.MODEL["PRUNING"]
    return both.save(both.theirs(config), folder / "unpruned.pth")


@pytest.fixture(scope="module")
def other_plan(both, folder):
    """One that was cut by another plan."""
    both.another_plan("other.json", seed=1)
    path = both.world.root / "other.json"
    return both.save(both.student("MODEL.PRUNING.PLAN", path), folder / "other_plan.pth")


def tested(both):
    """A detector as OpenPCDet's test script builds it: the YAML prunes, by a plan that only the checkpoint knows."""
    return both.theirs(both.config("second_cakdp"))


def tested_without_pruning(both):
    config = both.config("second_cakdp")
    del config.MODEL["PRUNING"]
    return both.theirs(config)


def load(model, path):
    model.load_params_from_file(filename=str(path), logger=LOG, to_cpu=True)
    return model


def test_pruned_checkpoint_of_the_builtin_engine_loads_with_its_plan(both, compact, builtin):
    model = load(tested(both), builtin)
    with torch.inference_mode():
        assert_same_detections(model(both.batch_dict())[0], compact(both.batch()))
    assert plan_from_dict(unpack_plan(model.state_dict())).keep_indices == both.plan.keep_indices


def test_pruned_checkpoint_of_openpcdets_loop_loads_in_the_builtin_engine_with_its_plan(both, theirs):
    model = load(tested(both), theirs)
    ours = restore_student(both.config("second_cakdp"), both.geometry, theirs)
    assert ours.plan.keep_indices == both.plan.keep_indices
    assert ours.plan.source == both.plan.source
    with torch.inference_mode():
        assert_same_detections(model(both.batch_dict())[0], ours.model.eval()(both.batch()))


def test_unpruned_checkpoints_go_both_ways(both, folder):
    second = both.weights("second")
    write_checkpoint(folder / "second.pth", second, {"epoch": 1})
    pair, _ = both.pair("second")
    model = load(pair, folder / "second.pth")
    with torch.inference_mode():
        assert_same_detections(model(both.batch_dict())[0], second(both.batch()))
    path = both.save(model, folder / "second_of_theirs.pth")
    assert restore_student(both.config("second"), both.geometry, path).plan is None
    assert PLAN_KEY not in model.state_dict()


def test_one_detector_tests_checkpoint_after_checkpoint(both, theirs, folder):
    second = both.student(seed=2)
    path = both.save(second, folder / "second_epoch.pth")
    model = tested(both)
    for file in (theirs, path):
        load(model, file)
        assert torch.equal(
            model.dense_head.conv_iou.weight, torch.load(file)["model_state"]["dense_head.conv_iou.weight"]
        )


def test_a_plan_in_the_yaml_serves_testing_too(both, theirs):
    model = both.theirs(both.student_config())
    assert PLAN_KEY in model.state_dict()
    load(model, theirs)


def trained(both):
    return both.student()


REFUSED = {
    "pruned checkpoint under an unpruned YAML": (
        tested_without_pruning, "theirs", "it is pruned, but the YAML has no MODEL.PRUNING; use the YAML it was",
    ),
    "pruned checkpoint of the built-in engine under an unpruned YAML": (
        tested_without_pruning, "builtin", "it is pruned, but the YAML has no MODEL.PRUNING; use the YAML it was",
    ),
    "unpruned checkpoint under a pruned YAML": (
        tested, "unpruned", "it is not pruned, but the YAML has MODEL.PRUNING; use the YAML it was trained with",
    ),
    "unpruned checkpoint into a cut network": (
        trained, "unpruned", "it is not pruned, but this detector was cut by MODEL.PRUNING.PLAN; use the YAML",
    ),
    "another plan": (
        trained, "other_plan", "it was cut by another plan than MODEL.PRUNING.PLAN; use the YAML it was trained with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", ["load_params_from_file", "load_params_with_optimizer"])
@pytest.mark.parametrize("case", REFUSED)
def test_trap_6_a_checkpoint_of_another_shape_is_an_error_that_names_file_and_cure(both, request, case, way):
    build, name, message = REFUSED[case]
    path, model = request.getfixturevalue(name), build(both)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        getattr(model, way)(filename=str(path), logger=LOG, to_cpu=True)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def drop_a_tensor(state):
    del state["backbone_2d.blocks.0.1.weight"]


def add_a_tensor(state):
    state["dense_head.extra.weight"] = torch.zeros(1)


def reshape_a_tensor(state):
    state["dense_head.conv_box.weight"] = state["dense_head.conv_box.weight"][:, :-1]


def damage_the_plan(state):
    state[PLAN_KEY] = state[PLAN_KEY][:-9]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_a_tensor, r"lacks tensor backbone_2d.blocks.0.1.weight"),
        (add_a_tensor, r"has the unknown tensor dense_head.extra.weight"),
        (reshape_a_tensor, r"dense_head.conv_box.weight has shape .*, the model expects"),
        (damage_the_plan, r"its pruning plan is damaged .*; take another checkpoint"),
    ],
)
def test_loading_is_strict_even_where_openpcdets_is_not(both, theirs, tmp_path, spoil, message):
    content = torch.load(theirs)
    spoil(content["model_state"])
    torch.save(content, tmp_path / "spoiled.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tested(both), tmp_path / "spoiled.pth")
    assert "spoiled.pth" in str(caught.value)


def resume(model, *files):
    """Go through checkpoints, newest first, as OpenPCDet's automatic resume does."""
    for file in files:
        try:
            return model.load_params_with_optimizer(str(file), to_cpu=True, optimizer=None, logger=LOG)
        except:  # noqa: E722 (as it is there)
            pass
    return None


def test_a_refused_resume_is_an_error_at_the_first_training_step_even_when_the_caller_swallowed_it(both, other_plan):
    model = both.student()
    assert resume(model, other_plan) is None
    model.eval()(both.batch_dict())
    model.train()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="other_plan.pth: it was cut by another plan"):
            model_fn_decorator()(model, both.batch_dict())


def test_a_file_that_cannot_be_read_or_an_optimizer_that_does_not_fit_is_remembered_too(both, theirs, tmp_path):
    (tmp_path / "cut_off.pth").write_bytes(theirs.read_bytes()[:1000])
    model = both.student()
    assert resume(model, tmp_path / "cut_off.pth") is None
    with pytest.raises(CheckpointError, match="cut_off.pth cannot be read"):
        model(both.batch_dict())
    wrong = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    content = {**torch.load(theirs), "optimizer_state": torch.optim.Adam(model.parameters()).state_dict()}
    torch.save(content, tmp_path / "optimizer.pth")
    with pytest.raises(CheckpointError, match=r"optimizer.pth: loaded state dict contains a parameter group"):
        model.load_params_with_optimizer(str(tmp_path / "optimizer.pth"), to_cpu=True, optimizer=wrong, logger=LOG)
    with pytest.raises(CheckpointError, match="optimizer.pth"):
        model(both.batch_dict())


def test_resuming_from_an_older_checkpoint_after_a_broken_one_is_a_resume(both, theirs, tmp_path):
    (tmp_path / "cut_off.pth").write_bytes(theirs.read_bytes()[:1000])
    model = both.student()
    assert resume(model, tmp_path / "cut_off.pth", theirs) == (3, 1)
    assert torch.isfinite(model(both.batch_dict())[0]["loss"])


def test_resume_goes_on_from_weights_step_and_optimizer_of_its_own_loop(both, openpcdet, tmp_path):
    """With the NumPy numbers of the one-cycle optimizer, which PyTorch reads only where they are allowed."""
    from train_utils.optimization import build_optimizer
    from train_utils.train_utils import checkpoint_state, save_checkpoint

    settings = both.student_config().OPTIMIZATION
    model = both.student()
    optimizer = build_optimizer(model, settings)
    optimizer.lr = np.float64(0.01)
    ret = model_fn_decorator()(model, both.batch_dict())
    ret.loss.backward()
    optimizer.step()
    save_checkpoint(checkpoint_state(model, optimizer, 2, 7), tmp_path / "checkpoint_epoch_2")
    again = both.student(seed=5)
    other = build_optimizer(again, settings)
    file = str(tmp_path / "checkpoint_epoch_2.pth")
    assert read_checkpoint(file)["pruning"]["keep_indices"]
    assert again.load_params_with_optimizer(file, to_cpu=True, optimizer=other, logger=LOG) == (7, 2)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    first = next(iter(optimizer.opt.state.values()))
    assert torch.equal(next(iter(other.opt.state.values()))["exp_avg"], first["exp_avg"])
    assert int(again.global_step) == 1


def test_any_wrapper_keeps_the_plan_among_its_tensors(both):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for wrap in (AveragedModel, DistributedDataParallel):
            wrapper = wrap(both.student())
            state = wrapper.state_dict()
            assert f"module.{PLAN_KEY}" in state
            wrapper.load_state_dict(state)
            other = {**state, f"module.{PLAN_KEY}": pack_plan(another(both))}
            with pytest.raises(CheckpointError, match="another plan"):
                wrapper.load_state_dict(other)
    finally:
        torch.distributed.destroy_process_group()


def another(both):
    kept = {name: list(range(len(rows))) for name, rows in both.plan.keep_indices.items()}
    return {**plan_to_dict(both.plan), "keep_indices": kept}


def test_a_state_dict_without_a_plan_does_not_fit_a_cut_network(both):
    model = both.student()
    with pytest.raises(CheckpointError, match="it is not pruned, but this detector was cut"):
        model.load_state_dict(tensors_of(model))
