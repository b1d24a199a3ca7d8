"""CenterPointCaKDP: taught by anchors and by centers, pruned when it is built, masked when it is tested."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import small_models
import torch
from pcdet.models import detectors, model_fn_decorator
from small_models import CLASSES, NUM_CELLS, batch, build, dataset, shake, stock

from cakdp_ext.checkpoint import PLAN_KEY, CheckpointError, write_checkpoint
from cakdp_ext.config import ConfigError, dump_config
from cakdp_ext.contract import OneStageStudent
from cakdp_ext.distillation import cells, matching, select_representatives
from cakdp_ext.openpcdet.batches import to_batch, to_batch_dict
from cakdp_ext.openpcdet.faces import geometry_of
from cakdp_ext.pruning import apply_plan, channel_graph, class_logits, masked, plan_to_dict, save_plan, score_filters

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))
from random_cut import random_plan

STUDENTS = {"plain": "waymo_models/centerpoint_without_resnet", "residual": "waymo_models/centerpoint"}
TEACHERS = {
    "anchors": "kitti_models/voxel_rcnn_car",
    "centers, dynamic voxels": "waymo_models/voxel_rcnn_with_centerhead_dyn_voxel",
    "PV-RCNN++": "kitti_models/pv_rcnn_plusplus_reproduced_by_community",
}
TWO_PARTS = {"DENSE_HEAD": {"CLASS_NAMES_EACH_HEAD": [["Cyclist", "Pedestrian"], ["Car"]]}}


@pytest.fixture(autouse=True, scope="module")
def _scatter():
    small_models.provide_scatter()


@pytest.fixture
def frames():
    return batch(1, 2)


def student_config(kind="plain", head="CenterHeadIoU", changes=None):
    config = stock(STUDENTS[kind], changes)
    config.NAME, config.DENSE_HEAD.NAME = "CenterPointCaKDP", head
    return config


def write_model(folder, name, config, model=None):
    """Write a YAML and a checkpoint, random where no model is given, and give what names both."""
    data = {"POINT_CLOUD_RANGE": small_models.RANGE, "DATA_PROCESSOR": small_models.DATA["DATA_PROCESSOR"]}
    file = folder / f"{name}.yaml"
    file.write_text(dump_config({"CLASS_NAMES": CLASSES, "DATA_CONFIG": data, "MODEL": config}))
    write_checkpoint(folder / f"{name}.pth", model or build(config, seed=5), {"epoch": 1})
    return {"CFG": str(file), "CKPT": str(folder / f"{name}.pth")}


@pytest.fixture
def taught(tmp_path):
    """``taught(teacher, changes, **DISTILL)`` -> a student under a teacher."""

    def make(name="anchors", changes=None, **distill):
        config = student_config(changes=changes)
        source = write_model(tmp_path, "teacher", stock(TEACHERS[name]))
        config.DISTILL = {"TEACHER": source, "SCORE_THRESH": 0.1, "NMS_THRESH": 0.3, "NMS_POST_MAXSIZE": 12, **distill}
        model = build(config)
        shake(model)
        return model

    return make


class Lesson:
    """One training forward of a student, with what student and teacher said to each other."""

    def __init__(self, model, frames):
        taught, model._distillation = model._distillation, None
        torch.manual_seed(0)
        self.task_loss = model.train()(to_batch_dict(frames))[0]["loss"].item()
        model._distillation = taught
        distiller, self.teacher = taught.distiller, taught.teacher
        (self.method,) = distiller.each.values()
        distiller.teacher, compare = self, distiller.compare
        distiller.compare = lambda lesson: compare(self.watch(lesson))
        torch.manual_seed(0)
        self.answer, self.logged, _ = model(to_batch_dict(frames))
        distiller.teacher, distiller.compare = self.teacher, compare

    def watch(self, lesson):
        self.predictions, self.student_sites = lesson.student.dense, lesson.student.sites
        return lesson

    sites = property(lambda self: self.teacher.sites)

    def encode(self, scene, roles):
        self.encoded = self.teacher.encode(scene, roles)
        return self.encoded

    def propose(self, encoded):
        self.found = self.teacher.propose(encoded)
        return self.found

    def refine(self, encoded, rois):
        self.rois, self.logits = rois, self.teacher.refine(encoded, rois)
        return self.logits


# Distillation


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("changes", [None, TWO_PARTS], ids=["one part", "two parts"])
def test_loss_pulls_the_representatives_to_the_second_stage(name, changes, taught, frames):
    model = taught(name, changes, ALPHA=3.0)
    lesson = Lesson(model, frames)
    first, anchors_per_cell = lesson.encoded.predictions, 6 if name == "anchors" else 1
    chosen = select_representatives(lesson.predictions, lesson.method.config)
    per_frame = []
    for frame in range(2):
        gaps = []
        for number, (cell, label) in enumerate(zip(chosen.indices[frame], chosen.labels[frame], strict=True)):
            if not chosen.valid[frame, number]:
                continue
            rows = range(int(cell) * anchors_per_cell, (int(cell) + 1) * anchors_per_cell)
            best = max(rows, key=lambda row, frame=frame: first.cls_logits[frame, row].max().item())
            assert torch.equal(lesson.rois[frame, number], first.boxes[frame, best])
            said = lesson.predictions.cls_logits[frame, cell, label]
            assert said == lesson.predictions.cls_logits[frame, cell].max()
            gaps.append((said - lesson.logits[frame, number, 0]).item() ** 2)
        assert len(gaps) > 3
        per_frame.append(sum(gaps) / len(gaps))
    assert lesson.logged["distill_loss"] == pytest.approx(3.0 * sum(per_frame) / 2, rel=1e-5)
    assert lesson.answer["loss"].item() == pytest.approx(lesson.task_loss + lesson.logged["distill_loss"], rel=1e-5)
    assert {"hm_loss_head_0", "loc_loss_head_0", "iou_loss", "num_representatives", "rpn_loss"} <= set(lesson.logged)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teachers_own_rois_pull_the_cells_that_they_lie_in(name, taught, frames):
    model = taught(name, ALPHA=3.0, METHOD="TKD")
    lesson = Lesson(model, frames)
    centers, losses = lesson.student_sites.centers, []
    assert torch.equal(lesson.rois, lesson.found.rois)
    for frame in range(2):
        gaps = []
        for number in range(lesson.rois.shape[1]):
            offset = (centers - lesson.rois[frame, number, :2]).abs()
            held = (offset <= small_models.VOXEL[0] * lesson.student_sites.stride / 2).all(dim=1)
            if lesson.found.is_valid[frame, number] and held.any():
                said = lesson.predictions.cls_logits[frame, held, lesson.found.labels[frame, number]]
                assert len(said) == 1
                gaps.append((said - lesson.logits[frame, number]).item() ** 2)
        assert len(gaps) > 3
        losses.append(sum(gaps) / len(gaps))
    assert lesson.logged["distill_loss"] == pytest.approx(3.0 * sum(losses) / 2, rel=1e-4)
    assert lesson.answer["loss"].item() == pytest.approx(lesson.task_loss + lesson.logged["distill_loss"], rel=1e-5)


def test_every_parameter_learns_and_the_teacher_does_not(taught, frames):
    model = taught()
    teacher = model._distillation.teacher._module
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss, logged, _ = model_fn_decorator()(model.train(), to_batch_dict(frames))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert logged["num_representatives"] > 3
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not any("roi_head" in name for name in (*model.state_dict(), *dict(model.named_modules())))
    assert model.global_step.item() == 1


@pytest.mark.parametrize("name", TEACHERS)
def test_positions_are_matched_once(name, taught, frames, monkeypatch):
    calls = []
    monkeypatch.setattr(matching, "sites_in_cells", lambda *sites: calls.append(1) or cells.sites_in_cells(*sites))
    matching._match_positions.cache_clear()
    model = taught(name).train()
    for _ in range(3):
        model(to_batch_dict(frames))
    assert len(calls) == 1
    assert model.sites is model.sites
    teacher = model._distillation.teacher
    assert teacher.sites is teacher.sites


def test_objects_of_a_batch_stay_as_they_are(taught, frames):
    model = taught(changes=TWO_PARTS).train()
    before = frames.data["gt_boxes"].clone()
    first, second = (model(frames).losses["loss"].item() for _ in range(2))
    assert torch.equal(frames.data["gt_boxes"], before)
    assert first == pytest.approx(second, rel=1e-6)


def test_a_batch_of_ours_gives_the_loss_of_openpcdets(taught, frames):
    model = taught().train()
    assert isinstance(model, OneStageStudent)
    assert model(frames).losses["loss"].item() == pytest.approx(
        model(to_batch_dict(frames))[0]["loss"].item(), rel=1e-6
    )


# Testing


@pytest.mark.parametrize("mode", ["mask", "rescore", "none"])
def test_settings_reach_the_head_and_detections_come_in_both_forms(mode, frames):
    config = student_config()
    with torch.no_grad():
        iou = build(config, training=False).eval().predict_dense(frames).iou_logits.sigmoid().amax(dim=2)
    delta = iou.median().item()
    config.POST_PROCESSING.IOU_REFINEMENT = {"MODE": mode, "DELTA": delta}
    model = build(config, training=False).eval()
    plain = build(student_config(head="CenterHead"), training=False).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        found, recall = model(to_batch_dict(frames))
        ours = model(frames)
        without = plain(to_batch_dict(frames))[0]
    assert (model.dense_head.iou_refinement.mode, model.dense_head.iou_refinement.delta) == (mode, delta)
    assert recall["gt"] == 10
    for theirs, detections, unrefined in zip(found, ours, without, strict=True):
        assert torch.equal(theirs["pred_boxes"], detections.boxes)
        assert torch.equal(theirs["pred_labels"] - 1, detections.labels)
        is_same = len(detections.scores) == len(unrefined["pred_scores"]) and torch.equal(
            detections.scores, unrefined["pred_scores"]
        )
        assert is_same == (mode == "none")
        assert len(detections.scores) > 0


def test_mask_is_what_a_branch_is_for_by_default():
    assert build(student_config(), training=False).dense_head.iou_refinement.mode == "mask"


def test_a_head_without_branch_cannot_mask():
    own = {"SEPARATE_HEAD_CFG": {"HEAD_DICT": {"iou": {"out_channels": 1, "num_conv": 2}}}}
    for changes in (None, {"DENSE_HEAD": own}):
        config = student_config(head="CenterHead", changes=changes)
        config.POST_PROCESSING.IOU_REFINEMENT = {"MODE": "mask"}
        with pytest.raises(ConfigError, match="asks for 'mask', but CenterHead predicts no IoU; use .*CenterHeadIoU"):
            build(config, training=False)
        config.POST_PROCESSING.IOU_REFINEMENT = {"MODE": "none"}
        assert build(config, training=False).predict_dense(batch()).iou_logits is None


@pytest.mark.parametrize(
    ("yaml", "name", "cure"),
    [
        (STUDENTS["plain"], "SECONDNetCaKDP", "use AnchorHeadSingle or AnchorHeadSingleIoU, .* CenterPointCaKDP"),
        ("kitti_models/second", "CenterPointCaKDP", "use CenterHead or CenterHeadIoU, .* SECONDNetCaKDP"),
    ],
)
def test_a_head_of_the_other_kind_is_refused_before_it_trains(yaml, name, cure):
    with pytest.raises(ConfigError, match=f"{name} cannot read (CenterHead|AnchorHeadSingle); {cure}"):
        build(stock(yaml, {"NAME": name}))


def test_a_copy_assigns_targets_with_its_own_parts(frames):
    model = build(student_config(head="CenterHead", changes=TWO_PARTS))
    duplicate = deepcopy(model)
    model.dense_head.class_names_each_head = None
    assert duplicate.train()(to_batch_dict(frames))[0]["loss"] > 0


# Pruning


@pytest.mark.parametrize("kind", STUDENTS)
def test_backbones_shrink_and_the_head_keeps_its_outputs(kind):
    model = build(student_config(kind), training=False).eval()
    graph = channel_graph(model, geometry_of(model.dataset))
    assert {layer.name.split(".")[0] for layer in graph.prunable} == {"backbone_3d", "backbone_2d"}
    assert len([layer for layer in graph.prunable if layer.name.startswith("backbone_2d")]) == 2 + 2 + 2
    pinned = [name for name in graph.layers if name.startswith("dense_head")]
    assert set(pinned) <= set(graph.pinned)
    assert len([name for name in pinned if ".iou." in name]) == 2


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("changes", [None, TWO_PARTS], ids=["one part", "two parts"])
def test_masked_full_network_is_the_compact_one(kind, changes, frames):
    model = build(student_config(kind, changes=changes), training=False).eval()
    graph = channel_graph(model, geometry_of(model.dataset))
    plan = random_plan(graph, 0.5)
    compact = apply_plan(model, plan, graph)
    assert sum(p.numel() for p in compact.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        with masked(model, plan, graph):
            expected = model.predict_dense(frames)
        found, full = compact.predict_dense(frames), model.predict_dense(frames)
    for name in ("cls_logits", "boxes", "iou_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-4)
    assert (full.cls_logits - expected.cls_logits).abs().max() > 1e-3
    assert found.iou_logits.shape == (2, NUM_CELLS, 3)


def test_a_student_that_sorts_the_points_itself_shrinks_alike(frames):
    voxels = build(student_config(), training=False).eval()
    points = build(student_config(changes={"VFE": {"NAME": "DynMeanVFE"}}), training=False).eval()
    points.load_state_dict(voxels.state_dict())
    geometry = geometry_of(points.dataset)
    assert channel_graph(points, geometry) == channel_graph(voxels, geometry)
    only_points = to_batch({name: value for name, value in frames.data.items() if "voxel" not in name})
    loss = points.train()(to_batch_dict(only_points))[0]["loss"]
    assert loss.isfinite()


@pytest.fixture
def pruned(tmp_path):
    """A configuration whose student is trained without IoU branch, and the plan that cuts it."""
    plain = build(student_config(head="CenterHead"), seed=7)
    student = deepcopy(student_config(head="CenterHead"))
    student.NAME = "CenterPoint"
    source = write_model(tmp_path, "student", student, plain)
    plan = random_plan(channel_graph(build(student_config(), training=False), geometry_of(dataset())), 0.5)
    save_plan(tmp_path / "plan.json", plan)
    config = student_config()
    config.PRUNING = {"KEEP_RATIO": 0.5, "STUDENT": source, "PLAN": str(tmp_path / "plan.json")}
    return config, plan, plain


def test_plan_cuts_what_was_inherited_when_the_detector_is_built(pruned, frames):
    config, plan, plain = pruned
    torch.manual_seed(0)
    model = detectors.__all__["CenterPointCaKDP"](model_cfg=config, num_class=3, dataset=dataset()).eval()
    cut = apply_plan(plain.eval(), plan, channel_graph(plain, geometry_of(dataset())))
    with torch.no_grad():
        found, expected = model.predict_dense(frames), cut.predict_dense(frames)
    assert torch.equal(found.cls_logits, expected.cls_logits)
    assert torch.equal(found.boxes, expected.boxes)
    assert found.iou_logits.shape == found.cls_logits.shape
    loss = model.train()(to_batch_dict(frames))[0]["loss"]
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_checkpoint_carries_the_plan_to_a_detector_that_is_tested(pruned, frames, tmp_path):
    config, plan, _ = pruned
    model = build(config)
    shake(model)
    torch.save({"model_state": model.state_dict(), "epoch": 1, "it": 3}, tmp_path / "trained.pth")
    assert PLAN_KEY in model.state_dict()
    config = deepcopy(config)
    del config.PRUNING["PLAN"]
    tested = build(config, training=False)
    tested.load_params_from_file(str(tmp_path / "trained.pth"), logger=Silent(), to_cpu=True)
    assert plan_to_dict(tested._plan) == plan_to_dict(plan)
    with torch.no_grad():
        pair = zip(model.eval()(frames), tested.eval()(frames), strict=True)
        assert all(torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) for a, b in pair)
    whole = deepcopy(config)
    del whole["PRUNING"]
    with pytest.raises(CheckpointError, match="pruned"):
        build(whole, training=False).load_params_from_file(str(tmp_path / "trained.pth"), logger=Silent(), to_cpu=True)


class Silent:
    """A log that nobody reads."""

    def info(self, *_):
        """Say nothing."""


def test_a_student_may_lack_the_branch_and_nothing_else(pruned, tmp_path):
    config, _, plain = pruned
    state = {name: value for name, value in plain.state_dict().items() if "heads_list.0.dim.1.bias" not in name}
    torch.save({"model_state": state}, tmp_path / "student.pth")
    with pytest.raises(CheckpointError, match=r"lacks tensor dense_head\.heads_list\.0\.dim\.1\.bias"):
        build(config)


def test_filters_are_scored_by_the_heat_maps(frames):
    small = {"BACKBONE_2D": {"NUM_FILTERS": [4, 4], "NUM_UPSAMPLE_FILTERS": [4, 4]}}
    model = build(student_config(changes=small), training=False).eval()
    geometry = geometry_of(model.dataset)
    full = channel_graph(model, geometry)
    last = full.prunable[-2:]
    graph = replace(full, prunable=last, groups=[g for g in full.groups if g[0].layer in {p.name for p in last}])
    scores = score_filters(model, [frames], class_logits, graph)
    expected = model_without(model, full, graph.prunable[0].name, 1, frames)
    assert scores.values[graph.prunable[0].name][1] == pytest.approx(expected, rel=1e-4)


def model_without(model, graph, layer, channel, frames):
    """Give Eq. 4 of one filter: the mean change of the scores, summed over classes."""
    plan = random_plan(graph, 1.0)
    keep = {**plan.keep_indices, layer: tuple(i for i in plan.keep_indices[layer] if i != channel)}
    with torch.no_grad():
        whole = class_logits(model, frames).sigmoid()
        with masked(model, replace(plan, keep_indices=keep), graph):
            without = class_logits(model, frames).sigmoid()
    return (whole - without).abs().sum(dim=2).mean().item()


# Size


def test_full_size_network_has_the_papers_parameters():
    """CenterPoint on KITTI: 5.8 M; its IoU branch adds 1.4e9 multiply-accumulates, 38,592 for each of 35,200 cells."""
    tools = small_models.CHECKOUT / "tools"
    config = small_models.load_config(tools / "cfgs/waymo_models/centerpoint_without_resnet.yaml", search=[tools]).MODEL
    config.DENSE_HEAD.CLASS_NAMES_EACH_HEAD = [CLASSES]
    count = {}
    for head in ("CenterHead", "CenterHeadIoU"):
        config.NAME, config.DENSE_HEAD.NAME = "CenterPointCaKDP", head
        model = detectors.__all__[config.NAME](model_cfg=deepcopy(config), num_class=3, dataset=dataset(training=False))
        count[head] = sum(p.numel() for p in model.parameters())
    assert count["CenterHead"] == 5_775_371
    assert count["CenterHeadIoU"] - count["CenterHead"] == 64 * 64 * 9 + 64 + 2 * 64 + 64 * 3 * 9 + 3
