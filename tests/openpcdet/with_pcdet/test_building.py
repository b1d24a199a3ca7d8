"""What a student is made of when it is built: inherited weights, a plan, a teacher."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.pruning import load_plan


def test_kernels_that_spconv_1_laid_out_are_turned_round(both, tmp_path):
    """As the checkpoints of OpenPCDet's model zoo are."""
    ours = both.weights("voxel_rcnn")
    state = {key: v.permute(1, 2, 3, 4, 0) if v.dim() == 5 else v for key, v in ours.state_dict().items()}
    both.save(ours, tmp_path / "spconv_1.pth")
    torch.save({"model_state": state}, tmp_path / "spconv_1.pth")
    student = both.student("MODEL.DISTILL.TEACHER.CKPT", tmp_path / "spconv_1.pth")
    teacher = student._distillation.teacher._module
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in teacher.state_dict().items())


def test_the_compact_network_starts_from_the_trained_weights_of_the_filters_that_stay(both):
    model, full = both.student(), both.weights("second").state_dict()
    kept = list(both.plan.keep_indices["backbone_3d.conv_input.0"])
    assert 0 < len(kept) < 16
    assert torch.equal(model.backbone_3d.conv_input[0].weight, full["backbone_3d.conv_input.0.weight"][kept])
    assert not torch.equal(
        both.student("MODEL.PRUNING.INITIAL_WEIGHTS", "random").backbone_3d.conv_input[0].weight,
        model.backbone_3d.conv_input[0].weight,
    )


def test_training_without_a_plan_says_which_commands_make_one(both):
    with pytest.raises(ConfigError, match=r"PRUNING has no PLAN.*score_filters.py and tools/prune.py, then set"):
        both.theirs(both.config("second_cakdp"), training=True)


def test_a_plan_of_another_network_is_refused_by_its_file(both, tmp_path):
    config = both.student_config()
    config.MODEL.BACKBONE_2D.NUM_FILTERS = [16, 24]
    with pytest.raises(ConfigError, match=r"MODEL.PRUNING.PLAN .*plan.json: the plan cuts another architecture"):
        both.theirs(config)
    shutil.copy(both.world.root / "plan.json", tmp_path / "broken.json")
    (tmp_path / "broken.json").write_text((tmp_path / "broken.json").read_text()[:100])
    with pytest.raises(ConfigError, match="broken.json"):
        both.theirs(both.student_config("MODEL.PRUNING.PLAN", tmp_path / "broken.json"))
    assert load_plan(both.world.root / "plan.json") == both.plan


def test_a_teacher_without_a_second_stage_is_refused_when_the_student_is_built(both):
    cfg = both.world.cfg("second")
    ckpt = both.world.run("second").path
    with pytest.raises(
        ConfigError, match="SECONDNet has no RoI head; MODEL.DISTILL.METHOD asks the teacher's second stage"
    ):
        both.student("MODEL.DISTILL.TEACHER.CFG", cfg, "MODEL.DISTILL.TEACHER.CKPT", ckpt)


def test_a_teacher_of_other_anchors_is_refused_when_the_student_is_built(both, tmp_path):
    anchors = copy.deepcopy(both.config("voxel_rcnn").MODEL.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG)
    plain = [{**dict(each), "anchor_rotations": [0, 1.0]} for each in anchors]
    cfg = both.world.variant("voxel_rcnn", tmp_path, {"MODEL": {"DENSE_HEAD": {"ANCHOR_GENERATOR_CONFIG": plain}}})
    with pytest.raises(ConfigError, match="anchors of student and teacher must be the same"):
        both.student("MODEL.DISTILL.TEACHER.CFG", cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CLASS_NAMES": ["Car"]}, r"does not know Pedestrian, Cyclist: the student has CLASS_NAMES .* in any order"),
        (
            {"DATA_CONFIG": {"POINT_CLOUD_RANGE": [0, -6.4, -3, 6.4, 6.4, 1]}},
            "sees the range and voxels .* the student",
        ),
        ({"MODEL": {"NAME": "Nobody"}}, "OpenPCDet has no detector 'Nobody'; it has .*SECONDNet"),
    ],
)
def test_a_teacher_of_another_world_is_refused_when_the_student_is_built(both, tmp_path, changes, message):
    cfg = both.world.variant("voxel_rcnn", tmp_path, changes)
    with pytest.raises(ConfigError, match=message):
        both.student("MODEL.DISTILL.TEACHER.CFG", cfg)


def test_testing_needs_no_teacher(both):
    config = both.student_config("MODEL.DISTILL.TEACHER.CKPT", "nowhere")
    model = both.theirs(config)
    assert model._distillation is None
    assert len(model(both.batch_dict())[0]) == 2
