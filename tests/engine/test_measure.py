"""What the engine builds and measures: costs, and surgery as an equation through its own building blocks."""

from __future__ import annotations

import pytest
import torch
from random_cut import random_plan, randomize_norms
from tiny_world import NUM_VAL

from cakdp_ext.checkpoint import CheckpointError, write_checkpoint
from cakdp_ext.config import ConfigError
from cakdp_ext.datasets import collate
from cakdp_ext.engine.build import (
    build_full,
    build_student,
    build_teacher,
    restore_student,
)
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.evaluate import seconds_per_frame
from cakdp_ext.engine.measure import cost_frames, measure_cost
from cakdp_ext.pruning import (
    channel_graph,
    class_logits,
    count_macs,
    count_parameters,
    masked,
    plan_to_dict,
    save_plan,
)

CPU = torch.device("cpu")


@pytest.fixture
def frames(world):
    return build_split(world.config("second"), "val")


@pytest.fixture
def student(world, frames, tmp_path):
    """A configuration of a pruned student, the full network it inherits from, and a plan."""
    torch.manual_seed(0)
    full = build_full(world.config("second"), frames.geometry)
    randomize_norms(full)
    write_checkpoint(tmp_path / "full.pth", full, {"epoch": 1})
    config = world.config("second_cakdp", "MODEL.PRUNING.STUDENT.CKPT", str(tmp_path / "full.pth"))
    return config, full.eval(), random_plan(channel_graph(full, frames.geometry), 0.5)


def test_compact_student_computes_what_the_masked_full_network_does(frames, student):
    config, full, plan = student
    compact = build_student(config, frames.geometry, plan).model.eval()
    batch = collate([frames[i] for i in range(NUM_VAL)])
    with torch.inference_mode():
        plain, got = class_logits(full, batch), compact.predict_dense(batch)
        with masked(full, plan, channel_graph(full, frames.geometry)) as as_if:
            want = as_if.predict_dense(batch)
    torch.testing.assert_close(got.cls_logits, want.cls_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.boxes, want.boxes, atol=1e-4, rtol=1e-4)
    assert (plain - got.cls_logits).abs().max() > 0.01, "a plan that changes nothing proves nothing"


def test_random_initial_weights_keep_the_shape_only(frames, student):
    config, full, plan = student
    inherited = build_student(config, frames.geometry, plan).model.state_dict()
    config.MODEL.PRUNING.INITIAL_WEIGHTS = "random"
    config.MODEL.PRUNING.STUDENT.CKPT = "/not/needed.pth"
    fresh = build_student(config, frames.geometry, plan).model.state_dict()
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape for key, value in inherited.items()}
    assert not torch.equal(fresh["backbone_2d.blocks.0.1.weight"], inherited["backbone_2d.blocks.0.1.weight"])


def test_restored_student_is_the_saved_one(frames, student, tmp_path):
    config, _, plan = student
    built = build_student(config, frames.geometry, plan).model.eval()
    write_checkpoint(tmp_path / "compact.pth", built, {"pruning": plan_to_dict(plan)})
    restored = restore_student(config, frames.geometry, tmp_path / "compact.pth")
    assert restored.plan.keep_indices == plan.keep_indices
    batch = collate([frames[0]])
    with torch.inference_mode():
        one, two = built(batch)[0], restored.model.eval()(batch)[0]
    assert len(one.boxes) > 0
    assert torch.equal(one.boxes, two.boxes)
    assert torch.equal(one.scores, two.scores)


def test_checkpoint_of_another_plan_than_the_yaml_names_is_refused(frames, student, tmp_path):
    config, full, plan = student
    model = build_student(config, frames.geometry, plan).model
    write_checkpoint(tmp_path / "compact.pth", model, {"pruning": plan_to_dict(plan)})
    save_plan(tmp_path / "other.json", random_plan(channel_graph(full, frames.geometry), 0.5, seed=1))
    config.MODEL.PRUNING.PLAN = str(tmp_path / "other.json")
    with pytest.raises(CheckpointError, match="was cut by another plan than .*other.json"):
        restore_student(config, frames.geometry, tmp_path / "compact.pth")


def test_plan_without_a_pruning_section_is_refused(world, frames, student):
    with pytest.raises(ConfigError, match="has no MODEL.PRUNING section"):
        build_student(world.config("second"), frames.geometry, student[2])


def test_teacher_is_built_frozen_and_only_where_one_is_asked_for(world, frames, tmp_path):
    config = world.config("second_cakdp", "MODEL.DISTILL.TEACHER.CKPT", str(tmp_path / "teacher.pth"))
    write_checkpoint(tmp_path / "teacher.pth", build_full(world.config("voxel_rcnn"), frames.geometry), {})
    teacher = build_teacher(config, frames.geometry, CPU)
    scene = teacher.encode(collate([frames[0]]))
    assert not scene.predictions.cls_logits.requires_grad
    assert build_teacher(world.config("second"), frames.geometry, CPU) is None


def test_cost_is_what_the_counters_say(frames, student):
    _, full, _ = student
    batches = cost_frames(frames, CPU, count=3)
    cost = measure_cost(full, batches)
    macs = [count_macs(lambda model, batch=batch: model(batch), full).total for batch in batches]
    assert cost.params == count_parameters(full) == sum(p.numel() for p in full.parameters())
    assert cost.macs == pytest.approx(sum(macs) / 3)
    assert len(set(macs)) == 3, "sparse convolutions cost what a frame's voxels ask for"
    assert 0 < cost.latency.p50 <= cost.latency.p90
    assert cost.memory is None or cost.memory > 10 * 2**20


def test_compact_student_costs_less(frames, student):
    config, full, plan = student
    batches = cost_frames(frames, CPU, count=1)
    compact = measure_cost(build_student(config, frames.geometry, plan).model, batches)
    assert compact.params < measure_cost(full, batches).params / 2
    assert 0 < compact.macs < measure_cost(full, batches).macs / 2


def test_cost_of_no_frame_is_refused(student):
    with pytest.raises(ValueError, match="cost is measured on frames, got none"):
        measure_cost(student[1], [])


@pytest.mark.parametrize(("count", "expected"), [(2, [0, 3]), (3, [0, 2, 3]), (9, [0, 1, 2, 3])])
def test_cost_frames_are_spread_over_the_split(frames, count, expected):
    names = [batch.frame_ids for batch in cost_frames(frames, CPU, count)]
    assert names == [(frames.frame_ids[i],) for i in expected]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([[5.0]], 5.0),
        ([[9.0, 1.0, 3.0]], 2.0),
        ([[9.0] * 2 + [1.0] * 18], 1.0),
        ([[9.0, 1.0], [8.0, 3.0], []], 2.0),
    ],
)
def test_time_of_a_frame_leaves_the_first_tenth_of_each_process_out(shares, expected):
    assert seconds_per_frame(shares) == expected
