"""What OpenPCDet's ways do to a frozen teacher and to a network that is cut, one trap after the other.

Trap 6, checkpoints that load in part, is in ``test_checkpoints.py``.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from both_engines import without_objects
from pcdet.models import build_network, model_fn_decorator
from torch.nn.parallel import DistributedDataParallel

from cakdp_ext.checkpoint import PLAN_KEY
from cakdp_ext.openpcdet.batches import to_batch, to_batch_dict


def teacher_of(student):
    return student._distillation.teacher


def network_of(student):
    """The teacher's network, which nothing but a test may touch."""
    return teacher_of(student)._module


def test_trap_1_building_twice_from_one_configuration_gives_the_same_network(both):
    """RoI heads change their configuration in place."""
    config = both.student_config()
    before = copy.deepcopy(config)
    built = [build_network(model_cfg=config.MODEL, num_class=3, dataset=both.dataset(True)) for _ in range(2)]
    assert config == before
    for one, other in zip(*(model.state_dict().items() for model in built), strict=True):
        assert (one[0], one[1].shape) == (other[0], other[1].shape)
    for one, other in zip(*(network_of(model).state_dict().items() for model in built), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])


def test_trap_1_the_engine_builds_teachers_from_a_copy(both):
    from cakdp_ext.openpcdet.build import build_detector

    config = both.config("voxel_rcnn")
    before = copy.deepcopy(config)
    shapes = [
        [value.shape for value in build_detector(config.MODEL, config.CLASS_NAMES, both.geometry).state_dict().values()]
        for _ in range(2)
    ]
    assert shapes[0] == shapes[1]
    assert config == before


def test_trap_2_module_list_holds_the_modules_that_were_cut(both):
    student = both.student()
    held = [student.vfe, student.backbone_3d, student.map_to_bev_module, student.backbone_2d, student.dense_head]
    assert len(student.module_list) == len(held)
    assert all(one is other for one, other in zip(student.module_list, held, strict=True))
    inside = {id(parameter) for module in student.module_list for parameter in module.parameters()}
    assert inside == {id(parameter) for parameter in student.parameters()}
    widths = {name: len(rows) for name, rows in both.plan.keep_indices.items()}
    modules = dict(student.named_modules())
    assert {name: modules[name].weight.shape[0] for name in widths if name.startswith("backbone_3d")} == {
        name: width for name, width in widths.items() if name.startswith("backbone_3d")
    }
    full = sum(parameter.numel() for parameter in both.weights("second").parameters())
    assert sum(parameter.numel() for parameter in student.parameters()) < 0.5 * full


def test_trap_3_the_teacher_stays_in_eval_mode_when_the_loop_calls_train(both):
    student = both.student()
    step = model_fn_decorator()
    statistics = {key: value.clone() for key, value in network_of(student).state_dict().items()}
    for _ in range(2):
        student.train()
        step(student, both.batch_dict()).loss.backward()
        assert student.training
        assert not any(module.training for module in network_of(student).modules())
    assert all(torch.equal(value, statistics[key]) for key, value in network_of(student).state_dict().items())
    assert int(student.global_step) == 2


def test_trap_4_an_optimizer_of_leaf_modules_sees_exactly_the_compact_parameters(both):
    student = both.student()
    leaves = [module for module in student.modules() if not list(module.children())]
    seen = {id(parameter) for module in leaves for parameter in module.parameters(recurse=False)}
    assert seen == {id(parameter) for parameter in student.parameters()}
    assert not seen & {id(parameter) for parameter in network_of(student).parameters()}


@pytest.mark.parametrize("name", ["adam_onecycle", "adam"])
def test_trap_4_openpcdets_optimizer_sees_exactly_the_compact_parameters(both, openpcdet, name):
    from train_utils.optimization import build_optimizer

    settings = both.student_config().OPTIMIZATION
    settings.OPTIMIZER = name
    student = both.student()
    optimizer = build_optimizer(student, settings)
    groups = getattr(optimizer, "opt", optimizer).param_groups
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(seen) == sorted(id(parameter) for parameter in student.parameters())
    before = {key: value.detach().clone() for key, value in student.named_parameters()}
    model_fn_decorator()(student, both.batch_dict()).loss.backward()
    optimizer.step()
    assert [key for key, value in student.named_parameters() if torch.equal(value, before[key])] == []


def test_trap_5_the_teacher_is_in_no_state_dict_parameter_module_or_broadcast(both):
    student = both.student()
    plain = both.config("second_cakdp")
    del plain.MODEL["DISTILL"], plain.MODEL["PRUNING"]
    keys = set(both.theirs(plain).state_dict())
    assert set(student.state_dict()) == keys | {PLAN_KEY}
    assert network_of(student) not in set(student.modules())
    of_teacher = {value.data_ptr() for value in network_of(student).state_dict().values()}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(student)
        sent = [*parallel._module_parameters, *parallel.modules_buffers]
        assert set(parallel.module.state_dict()) == keys | {PLAN_KEY}
    finally:
        torch.distributed.destroy_process_group()
    assert {id(value) for value in sent} <= {id(value) for value in (*student.parameters(), *student.buffers())}
    assert not of_teacher & {value.data_ptr() for value in sent}


def test_trap_5_the_teacher_moves_and_is_cast_along_with_its_student(both):
    student = both.student()
    before = dict(network_of(student).named_parameters())
    expected = {key: value.double() for key, value in before.items()}
    assert student.double() is student
    for key, value in network_of(student).named_parameters():
        assert value.dtype == torch.float64
        assert torch.equal(value, expected[key])
        assert not value.requires_grad
    student.to(torch.float32)
    assert {value.dtype for value in network_of(student).parameters()} == {torch.float32}
    student.to("meta")
    assert {value.device.type for value in network_of(student).parameters()} == {"meta"}
    assert {value.device.type for value in student.parameters()} == {"meta"}


def test_trap_7_nothing_that_the_student_does_to_its_objects_reaches_the_teacher(both):
    """Center heads with several parts write other labels into ``gt_boxes``, in place."""
    student, seen = both.student(), []
    encode = network_of(student).encode
    network_of(student).encode = lambda batch, roles: seen.append(batch) or encode(batch, roles)

    def overwrite(_, arguments):
        arguments[0]["gt_boxes"][..., 7] = 1

    student.dense_head.register_forward_hook(lambda module, arguments, _: overwrite(module, arguments))
    student(both.batch_dict())
    assert len(seen) == 1
    assert seen[0].gt_labels.tolist() == both.batch().gt_labels.tolist()


def test_trap_7_a_step_leaves_the_tensors_of_the_batch_as_they_were(both):
    batch_dict = both.batch_dict()
    given = {key: copy.deepcopy(value) for key, value in batch_dict.items()}
    both.student()(batch_dict)
    for key, value in given.items():
        same = torch.equal(batch_dict[key], value) if torch.is_tensor(value) else (batch_dict[key] == value)
        assert same if isinstance(same, bool) else same.all(), key


def test_trap_8_a_copy_of_the_detector_shares_data_set_and_teacher(both):
    student = both.student()
    student(both.batch_dict())[0]["loss"].backward()
    student.dense_head(student_input(student, both))  # leaves tensors with a graph behind
    duplicate = copy.deepcopy(student)
    assert duplicate.dataset is student.dataset
    assert teacher_of(duplicate) is teacher_of(student)
    assert type(duplicate) is type(student)
    assert not {id(p) for p in duplicate.parameters()} & {id(p) for p in student.parameters()}
    assert all(
        one is other
        for one, other in zip(duplicate.module_list[3:], (duplicate.backbone_2d, duplicate.dense_head), strict=True)
    )
    with torch.inference_mode():
        one, other = (model.eval().predict_dense(both.batch()) for model in (student, duplicate))
    assert torch.equal(one.cls_logits, other.cls_logits)
    assert PLAN_KEY in duplicate.state_dict()


def student_input(student, both):
    data = both.batch_dict()
    for module in student.module_list[:-1]:
        data = module(data)
    return data


def test_trap_9_the_teacher_sees_only_what_the_loader_gave(both):
    student, seen = both.student(), []
    encode = network_of(student).encode
    network_of(student).encode = lambda batch, roles: seen.append(set(to_batch_dict(batch))) or encode(batch, roles)
    student(both.batch_dict())
    assert seen == [set(both.batch_dict())]
    assert student._scene is None, "the batch is kept beyond its step"


def test_trap_9_the_teacher_leaves_nothing_in_the_students_batch(both):
    untaught = both.student_config()
    del untaught.MODEL["DISTILL"]
    plain, taught = both.theirs(untaught, training=True), both.student()
    keys = []
    for model in (plain, taught):
        batch_dict = both.batch_dict()
        model(batch_dict)
        keys.append(set(batch_dict))
        assert batch_dict["spatial_features_2d"].shape[1] == model.dense_head.conv_cls.in_channels < 32
    assert keys[0] == keys[1]
    assert not keys[1] & {"rois", "roi_labels", "batch_cls_preds"}


def test_trap_9_encoding_leaves_the_batch_and_refining_the_scene_as_they_were(both):
    teacher, _ = both.pair("voxel_rcnn")
    given = to_batch(both.batch_dict())
    keys = set(given.data)
    with torch.inference_mode():
        encoded = teacher.encode(given)
        assert set(given.data) == keys
        held = set(encoded.features)
        rois = encoded.predictions.boxes[:, :9].clone()
        logits = teacher.refine(encoded, rois)
        assert set(encoded.features) == held
        assert torch.equal(teacher.refine(encoded, rois), logits)


def test_trap_10_the_second_stage_judges_exactly_the_given_rois_in_their_order(both):
    teacher, _ = both.pair("voxel_rcnn")
    with torch.inference_mode():
        encoded = teacher.encode(both.batch())
        rois = encoded.predictions.boxes[:, ::37].contiguous()
        logits = teacher.refine(encoded, rois)
        order = torch.randperm(rois.shape[1], generator=torch.Generator().manual_seed(0))
        mixed, few = teacher.refine(encoded, rois[:, order]), teacher.refine(encoded, rois[:, :3])
        none = teacher.refine(encoded, rois[:, :0])
        strided = teacher.refine(encoded, encoded.predictions.boxes[:, ::37])
        padded = teacher.refine(encoded, torch.cat([rois[:, :2], torch.zeros(2, 1, 7)], dim=1))
    torch.testing.assert_close(mixed, logits[:, order])
    assert torch.equal(strided, logits)
    torch.testing.assert_close(few, logits[:, :3])
    torch.testing.assert_close(padded[:, :2], logits[:, :2])
    assert none.shape == (2, 0, 1)
    assert logits.shape == (2, rois.shape[1], 1)
    assert logits.std() > 1e-3
    with pytest.raises(RuntimeError, match="eval mode only"):
        teacher.train().refine(encoded, rois)


def test_a_batch_without_voxels_counts_or_names_is_refused_by_key(both):
    for key in ("voxel_coords", "voxel_num_points", "frame_id"):
        data = both.batch_dict()
        del data[key]
        with pytest.raises(ValueError, match=f"the batch has no {key}"):
            to_batch(data)


def test_a_batch_goes_to_its_keys_and_back(both):
    batch = replace(without_objects(both.batch(), 1), points=torch.rand(5, 5))
    again = to_batch(to_batch_dict(batch))
    for name in ("voxels", "voxel_coords", "voxel_num_points", "gt_boxes", "gt_labels", "points"):
        assert torch.equal(getattr(again, name), getattr(batch, name)), name
    assert again.frame_ids == batch.frame_ids
    assert again.to("cpu").frame_ids == batch.frame_ids
    wide = to_batch_dict(batch)
    boxes, labels = wide["gt_boxes"].split([7, 1], dim=2)
    wide["gt_boxes"] = torch.cat([boxes, torch.rand(*boxes.shape[:2], 2), labels], dim=2)
    assert torch.equal(to_batch(wide).gt_labels, batch.gt_labels)
