"""The same YAML, weights and batch give the same in both engines, to float error."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from both_engines import SCORE, UNTIED, assert_same_detections, assert_same_gradients
from torch import nn

from cakdp_ext.contract import TrainingOutput
from cakdp_ext.detectors.roi_heads import RoiTargets
from cakdp_ext.openpcdet.batches import to_batch_dict
from cakdp_ext.pruning import PLAIN_SCORING, FrameGaps, channel_graph, class_logits
from cakdp_ext.types import Detections

DENSE = 1e-4


@pytest.mark.parametrize("name", ["second", "voxel_rcnn"])
def test_dense_predictions_and_their_sites_are_the_same(both, name):
    theirs, ours = both.pair(name)
    with torch.inference_mode():
        got, want = theirs.predict_dense(both.batch()), ours.predict_dense(both.batch())
    torch.testing.assert_close(got.cls_logits, want.cls_logits, atol=DENSE, rtol=0)
    torch.testing.assert_close(got.boxes, want.boxes, atol=DENSE, rtol=0)
    assert got.iou_logits is want.iou_logits is None
    assert want.cls_logits.std() > 0.1
    assert theirs.sites.class_names == ours.sites.class_names == ("Car", "Pedestrian", "Cyclist")
    for item in ("centers", "anchors", "stride", "num_classes"):
        torch.testing.assert_close(getattr(theirs.sites, item), getattr(ours.sites, item))
    assert theirs.sites is theirs.sites
    assert theirs.geometry == ours.geometry


@pytest.mark.parametrize("name", ["second", "voxel_rcnn"])
def test_detections_are_the_same(both, name):
    theirs, ours = both.pair(name, "MODEL.POST_PROCESSING.SCORE_THRESH", SCORE)
    with torch.inference_mode():
        want = ours(both.batch())
        found, recall = theirs(both.batch_dict())
        typed = theirs(both.batch())
    assert_same_detections(found, want, least=1)
    assert recall["gt"] == int((both.batch().gt_labels >= 0).sum())
    assert all(isinstance(each, Detections) for each in typed)
    for one, other in zip(typed, want, strict=True):
        assert one.labels.tolist() == other.labels.tolist()


def test_second_stage_judges_given_boxes_alike(both):
    theirs, ours = both.pair("voxel_rcnn")
    batch = both.batch()
    with torch.inference_mode():
        encoded = ours.encode(batch)
        rois = encoded.predictions.boxes[:, ::97][:, :50].contiguous()
        got, want = theirs.refine(theirs.encode(batch), rois), ours.refine(encoded, rois)
    assert got.shape == want.shape == (2, rois.shape[1], 1)
    torch.testing.assert_close(got, want, atol=DENSE, rtol=0)
    assert want.std() > 0


def test_channels_are_traced_alike(both):
    theirs, ours = both.pair("second")
    found, wanted = channel_graph(theirs, both.geometry), channel_graph(ours, both.geometry)
    assert [layer.name for layer in found.prunable] == [layer.name for layer in wanted.prunable]
    assert found.groups == wanted.groups
    assert not theirs.training


def test_filters_are_scored_alike_and_the_fast_way(both):
    theirs, ours = both.pair("second")
    batch, graph = both.batch(2), channel_graph(ours, both.geometry)
    some = range(0, len(graph.groups), 23)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="filters are scored by repeating")
        rows = [FrameGaps(model, class_logits, graph).measure(batch, some)[0] for model in (theirs, ours)]
    plain = FrameGaps(theirs, class_logits, graph, method=PLAIN_SCORING).measure(batch, some)[0]
    for row in rows:
        np.testing.assert_allclose(row, plain, rtol=1e-3, atol=1e-7)
    assert np.nanmax(plain) > 1e-4


def test_second_trains_alike(both):
    theirs, ours = both.pair("second")
    theirs.train()
    ours.train()
    losses, logged, _ = theirs(both.batch_dict(*UNTIED))
    wanted = sum(ours(both.batch(*UNTIED)).losses.values())
    torch.testing.assert_close(losses["loss"], wanted, rtol=1e-5, atol=0)
    losses["loss"].backward()
    wanted.backward()
    assert_same_gradients(theirs, ours)
    assert isinstance(theirs(both.batch()), TrainingOutput)
    assert logged["loss_rpn"] == pytest.approx(float(wanted.detach()), rel=1e-5)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def test_voxel_rcnn_trains_alike_on_the_same_rois(both, openpcdet):
    theirs, ours = map(without_dropout, both.pair("voxel_rcnn"))
    torch.manual_seed(3)
    losses, logged, _ = theirs(both.batch_dict(*UNTIED))
    drawn = theirs.roi_head.forward_ret_dict
    targets = RoiTargets(
        rois=drawn["rois"],
        labels=drawn["roi_labels"] - 1,
        ious=drawn["gt_iou_of_rois"],
        boxes=drawn["gt_of_rois"][..., :7],
        cls_targets=drawn["rcnn_cls_labels"].view(drawn["rois"].shape[:2]),
        is_foreground=drawn["reg_valid_mask"] > 0,
    )
    ours.roi_head.sample = lambda *_: targets
    wanted = ours(both.batch(*UNTIED)).losses
    assert logged["rcnn_loss_cls"] == pytest.approx(wanted["rcnn_cls_loss"].item(), rel=1e-4)
    torch.testing.assert_close(losses["loss"], sum(wanted.values()), rtol=1e-5, atol=0)
    losses["loss"].backward()
    sum(wanted.values()).backward()
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("space", ["logits", "probability"])
@pytest.mark.parametrize("label", ["anchor", "decoded_box"])
def test_a_distilled_step_has_the_same_equations_1_and_6_and_gradients(both, label, space):
    changes = ("MODEL.DENSE_HEAD.IOU_HEAD.LABEL", label, "MODEL.DISTILL.SPACE", space)
    theirs = both.student(*changes)
    step, ours = both.step(theirs, *changes)
    losses, logged, _ = theirs(both.batch_dict(*UNTIED))
    wanted = step(both.batch(*UNTIED))
    assert logged["distill_loss"] == pytest.approx(wanted["distill_loss"].item(), rel=1e-4)
    assert logged["iou_loss"] == pytest.approx(wanted["iou_loss"].item(), rel=1e-4)
    assert logged["num_representatives"] > 10
    assert min(logged["distill_loss"], logged["iou_loss"]) > 1e-4
    torch.testing.assert_close(losses["loss"], sum(wanted.values()), rtol=1e-5, atol=0)
    losses["loss"].backward()
    sum(wanted.values()).backward()
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("method", ["TKD", "TSKD"])
def test_the_teachers_own_rois_teach_alike(both, method, openpcdet):
    changes = ("MODEL.DISTILL.METHOD", method)
    theirs = both.student(*changes)
    step, ours = both.step(theirs, *changes)
    losses, logged, _ = theirs(both.batch_dict(*UNTIED))
    wanted = step(both.batch(*UNTIED))
    assert logged["distill_loss"] == pytest.approx(wanted["distill_loss"].item(), rel=1e-4)
    assert logged["distill_loss"] > 1e-4
    assert logged["num_representatives"] > 10
    losses["loss"].backward()
    sum(wanted.values()).backward()
    assert_same_gradients(theirs, ours)


def test_a_step_on_our_batch_is_a_step_on_its_batch_dict(both):
    losses, *_ = both.student()(both.batch_dict())
    typed = both.student()(both.batch())
    torch.testing.assert_close(typed.losses["loss"], losses["loss"])


REFINEMENTS = {
    "none": {"MODE": "none"},
    "mask": {"MODE": "mask", "DELTA": 0.5},
    "mask of the best class": {"MODE": "mask", "DELTA": 0.5, "CHANNEL": "best_class"},
    "mask of everything": {"MODE": "mask", "DELTA": 0.999},
    "rescore": {"MODE": "rescore", "POWER": 0.3},
    "by default": None,
}


@pytest.mark.parametrize("mode", REFINEMENTS)
def test_iou_refinement_leaves_the_same_detections(both, mode):
    from cakdp_ext.engine.build import build_student

    config = both.student_config()
    config.MODEL.POST_PROCESSING.IOU_REFINEMENT = REFINEMENTS[mode]
    if REFINEMENTS[mode] is None:
        del config.MODEL.POST_PROCESSING["IOU_REFINEMENT"]
    torch.manual_seed(1)
    ours = build_student(config, both.geometry, both.plan).model.eval()
    nn.init.normal_(ours.dense_head.conv_iou.weight, std=0.5)
    nn.init.zeros_(ours.dense_head.conv_iou.bias)
    theirs = both.theirs(config)
    theirs.load_state_dict({**ours.state_dict(), "pruning_plan": theirs.state_dict()["pruning_plan"]})
    with torch.inference_mode():
        want = ours(both.batch())
        found, _ = theirs(both.batch_dict())
        dense = theirs.predict_dense(both.batch())
    torch.testing.assert_close(dense.iou_logits, ours.predict_dense(both.batch()).iou_logits, atol=DENSE, rtol=0)
    assert_same_detections(found, want, least=0 if mode == "mask of everything" else 1)
    if mode == "mask of everything":
        assert [len(each.boxes) for each in want] == [0, 0]


def test_its_own_data_set_gives_the_same_batch(both, openpcdet):
    from pcdet.datasets import build_dataloader

    config = both.config("second")
    dataset, loader, _ = build_dataloader(
        config.DATA_CONFIG, list(config.CLASS_NAMES), batch_size=2, dist=False, workers=0, training=False
    )
    batch_dict, batch = next(iter(loader)), both.batch(0, 1)
    from cakdp_ext.openpcdet.batches import to_batch
    from cakdp_ext.openpcdet.faces import geometry_of

    got = to_batch(batch_dict)
    assert geometry_of(dataset) == both.geometry
    assert got.frame_ids == batch.frame_ids
    torch.testing.assert_close(got.gt_boxes[..., :6], batch.gt_boxes[..., :6], atol=1e-4, rtol=0)
    turns = (got.gt_boxes - batch.gt_boxes)[..., 6] / (2 * torch.pi)
    torch.testing.assert_close(turns, turns.round(), atol=1e-4, rtol=0)
    assert got.gt_labels.tolist() == batch.gt_labels.tolist()
    for one, other in ((got, batch), (to_batch(to_batch_dict(batch)), batch)):
        assert {tuple(row) for row in one.voxel_coords.tolist()} == {tuple(row) for row in other.voxel_coords.tolist()}
        assert one.voxel_coords.dtype == other.voxel_coords.dtype
        assert int(one.voxel_num_points.sum()) == int(other.voxel_num_points.sum())
    model, _ = both.pair("second")
    with torch.inference_mode():
        found, wanted = model(got), model(batch)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=0)


def test_full_size_second_has_the_same_tensors(both, openpcdet):
    from tiny_world import PROJECT

    from cakdp_ext.config import load_config
    from cakdp_ext.detectors import build_detector
    from cakdp_ext.openpcdet.build import build_detector as build_theirs
    from cakdp_ext.types import LidarGeometry

    config = load_config(PROJECT / "cfgs/kitti/second.yaml")
    geometry = LidarGeometry((0.0, -40.0, -3.0, 70.4, 40.0, 1.0), (0.05, 0.05, 0.1), 4)
    ours, theirs = (build(config.MODEL, config.CLASS_NAMES, geometry) for build in (build_detector, build_theirs))
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 5_325_576
