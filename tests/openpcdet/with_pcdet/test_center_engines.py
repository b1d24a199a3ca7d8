"""A student of centers gives the same in both engines: channels, filter scores, a distilled compact step, the mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from both_engines import assert_same_detections, assert_same_gradients, dither, tensors_of
from random_cut import random_plan

from cakdp_ext.checkpoint import write_checkpoint
from cakdp_ext.detectors import build_detector
from cakdp_ext.engine.build import build_full, build_student, build_teacher, distill_config
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.openpcdet.build import build_detector as build_theirs
from cakdp_ext.pruning import channel_graph, class_logits, load_plan, save_plan, score_filters

pytestmark = pytest.mark.usefixtures("openpcdet")  # the stand-in has no center head
LOSSES = ("hm_loss_head_0", "loc_loss_head_0", "hm_loss_head_1", "loc_loss_head_1", "iou_loss", "distill_loss")


def outspoken(model):
    """Let heat maps and IoUs differ from cell to cell, as training would."""
    torch.manual_seed(1)
    for part in model.dense_head.heads_list:
        for name, branch in part.named_children():
            if name in ("hm", "iou"):
                torch.nn.init.normal_(branch[-1].weight, std=0.3)
                torch.nn.init.constant_(branch[-1].bias, -1.0)
    return model


def alike(model):
    """Lay maps out as OpenPCDet does: else 2D convolutions round differently."""
    model.map_to_bev_module.register_forward_hook(lambda module, given, bev: bev.contiguous())
    return model


@pytest.fixture(scope="module")
def full(both):
    """The built-in student of centers as if trained, and a checkpoint of it."""
    torch.manual_seed(0)
    model = outspoken(build_full(both.config("centerpoint"), both.geometry))
    torch.optim.swa_utils.update_bn([both.batch()], model)
    write_checkpoint(both.world.run("centerpoint").ckpt / "checkpoint_epoch_1.pth", model, {"epoch": 1})
    return model.eval()


@pytest.fixture(scope="module")
def plan_file(both, full):
    """Half of it."""
    path = both.world.root / "plan_of_centers.json"
    save_plan(path, random_plan(channel_graph(full, both.geometry), 0.5))
    return path


@pytest.fixture
def compact(both, plan_file):
    """``compact(training, *overrides)`` -> OpenPCDet's compact student, the built-in one with its weights, the YAML."""

    def make(training, *overrides):
        config = both.config("centerpoint_cakdp", "MODEL.PRUNING.PLAN", str(plan_file), *overrides)
        torch.manual_seed(1)
        theirs = outspoken(both.theirs(config, training))
        ours = build_student(config, both.geometry, load_plan(plan_file)).model.train(training)
        ours.load_state_dict(tensors_of(theirs))
        return dither(theirs), alike(dither(ours)), config

    return make


def test_channels_and_their_scores_are_the_same(both, full):
    theirs = build_theirs(both.config("centerpoint").MODEL, both.config("centerpoint").CLASS_NAMES, both.geometry)
    theirs.load_state_dict(full.state_dict())
    graphs = [channel_graph(model, both.geometry) for model in (theirs.eval(), full)]
    assert [layer.name for layer in graphs[0].prunable] == [layer.name for layer in graphs[1].prunable]
    assert graphs[0].groups == graphs[1].groups
    layers = {"backbone_3d.conv3.1.0", "backbone_2d.blocks.1.1", "backbone_2d.deblocks.0.0"}
    few = replace(
        graphs[0],
        prunable=tuple(layer for layer in graphs[0].prunable if layer.name in layers),
        groups=tuple(group for group in graphs[0].groups if group[0].layer in layers),
    )
    scores = [score_filters(model, [both.batch()], class_logits, few).values for model in (theirs, full)]
    for name in layers:
        torch.testing.assert_close(*(torch.from_numpy(each[name]) for each in scores), rtol=1e-4, atol=1e-8)
        assert scores[0][name].max() > 1e-4


@pytest.mark.parametrize("label", ["decoded_box", "center"])
def test_a_distilled_step_of_the_compact_student_is_the_same(both, compact, label):
    theirs, ours, config = compact(True, "MODEL.DENSE_HEAD.IOU_HEAD.LABEL", label)
    teacher = build_teacher(config, both.geometry, torch.device("cpu"))
    losses, logged, _ = theirs(both.batch_dict())
    wanted = TrainingStep(ours, teacher, distill_config(config))(both.batch())
    assert set(wanted) == set(LOSSES)
    for name in LOSSES:
        assert logged[name] == pytest.approx(wanted[name].item(), rel=1e-5), name
        assert logged[name] > 1e-4
    assert logged["num_representatives"] > 10
    torch.testing.assert_close(losses["loss"], sum(wanted.values()), rtol=1e-5, atol=0)
    losses["loss"].backward()
    sum(wanted.values()).backward()
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("method", ["TKD", "TSKD"])
def test_the_teachers_own_rois_teach_a_student_of_centers_alike(both, compact, openpcdet, method):
    theirs, ours, config = compact(True, "MODEL.DISTILL.METHOD", method)
    teacher = build_teacher(config, both.geometry, torch.device("cpu"))
    losses, logged, _ = theirs(both.batch_dict())
    wanted = TrainingStep(ours, teacher, distill_config(config))(both.batch())
    assert logged["distill_loss"] == pytest.approx(wanted["distill_loss"].item(), rel=1e-4)
    assert logged["distill_loss"] > 1e-4
    assert logged["num_representatives"] > 10
    losses["loss"].backward()
    sum(wanted.values()).backward()
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("box_weight", [0.0, 0.5])
def test_a_center_teacher_of_one_stage_teaches_by_soft_targets_alike(both, compact, openpcdet, box_weight):
    changes = ("MODEL.DISTILL", f"{{METHOD: [{{NAME: VanillaKD, BOX_WEIGHT: {box_weight}}}]}}")
    source = ("MODEL.DISTILL.TEACHER.CFG", both.world.cfg("centerpoint"))
    run = ("MODEL.DISTILL.TEACHER.CKPT", both.world.run("centerpoint").path)
    theirs, ours, config = compact(True, *changes, *source, *run)
    teacher = build_teacher(config, both.geometry, torch.device("cpu"))
    losses, logged, _ = theirs(both.batch_dict())
    wanted = TrainingStep(ours, teacher, distill_config(config))(both.batch())
    assert logged["distill_loss"] == pytest.approx(wanted["distill_loss"].item(), rel=1e-4)
    assert logged["distill_loss"] > 1e-4
    losses["loss"].backward()
    sum(wanted.values()).backward()
    assert_same_gradients(theirs, ours)


def test_graphs_of_voxels_teach_a_student_of_centers_alike(both, compact):
    theirs, ours, config = compact(True, "MODEL.DISTILL.METHOD", "PointDistiller")
    teacher = build_teacher(config, both.geometry, torch.device("cpu"))
    step = TrainingStep(ours, teacher, distill_config(config))
    step.distiller.load_state_dict(theirs.projectors.module.state_dict())
    losses, logged, _ = theirs(both.batch_dict())
    wanted = step(both.batch())
    assert logged["distill_loss"] == pytest.approx(wanted["distill_loss"].item(), rel=1e-4)
    assert logged["distill_loss"] > 1e-2
    losses["loss"].backward()
    sum(wanted.values()).backward()
    del theirs.projectors
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("delta", [0.0, 0.3, 0.999])
def test_the_mask_leaves_the_same_detections(both, compact, delta):
    theirs, ours, _ = compact(False, "MODEL.POST_PROCESSING.IOU_REFINEMENT.DELTA", delta)
    with torch.inference_mode():
        got, want = theirs.predict_dense(both.batch()), ours.predict_dense(both.batch())
        found, detections = theirs(both.batch_dict())[0], ours(both.batch())
    torch.testing.assert_close(got.cls_logits, want.cls_logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.iou_logits, want.iou_logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.boxes, want.boxes, rtol=1e-5, atol=1e-5)
    assert_same_detections(found, detections, least=0 if delta == 0.999 else 1)
    assert delta != 0.999 or not sum(len(each.boxes) for each in detections)


@pytest.mark.parametrize(("backbone", "params"), [("VoxelBackBone8x", 5_775_371), ("VoxelResBackBone8x", 7_758_811)])
def test_the_full_size_network_has_the_same_tensors(both, backbone, params):
    from tiny_world import PROJECT

    from cakdp_ext.config import load_config
    from cakdp_ext.types import LidarGeometry

    config = load_config(PROJECT / "cfgs/kitti/centerpoint.yaml")
    config.MODEL.BACKBONE_3D.NAME = backbone
    ranges = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)
    geometry = LidarGeometry(ranges, (0.05, 0.05, 0.1), 4 if backbone == "VoxelBackBone8x" else 5)
    ours, theirs = (build(config.MODEL, config.CLASS_NAMES, geometry) for build in (build_detector, build_theirs))
    shapes = [[(key, value.shape) for key, value in model.state_dict().items()] for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(parameter.numel() for parameter in theirs.parameters()) == params


def test_iou_branches_start_from_weights_of_the_same_size(both):
    config = both.config("centerpoint_cakdp", "MODEL.PRUNING", "null", "MODEL.DISTILL", "null")
    torch.manual_seed(0)
    ours, theirs = build_full(config, both.geometry), both.theirs(config, True)
    for one, other in zip(ours.dense_head.heads_list, theirs.dense_head.heads_list, strict=True):
        weights, same = ([p for p in branch.iou.parameters() if p.dim() == 4] for branch in (one, other))
        assert [p.std().item() for p in same] == pytest.approx([p.std().item() for p in weights], rel=0.1)
        torch.testing.assert_close(other.iou[-1].bias, one.iou[-1].bias)
