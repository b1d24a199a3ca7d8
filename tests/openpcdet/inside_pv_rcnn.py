"""PV-RCNN and PV-RCNN++: both engines on the same weights, frames and rois."""

from __future__ import annotations

import pytest
import torch
from small_models import CLASSES, FOUR_FEATURES, batch, build, stock
from torch import nn

from cakdp_ext.config import merge
from cakdp_ext.detectors import build_detector
from cakdp_ext.detectors.roi_heads import RoiTargets
from cakdp_ext.openpcdet.batches import to_batch_dict
from cakdp_ext.openpcdet.faces import geometry_of
from cakdp_ext.types import Batch

MODELS = {
    "PV-RCNN": "kitti_models/pv_rcnn",
    "PV-RCNN, center head": "waymo_models/pv_rcnn_with_centerhead_rpn",
    "PV-RCNN++": "waymo_models/pv_rcnn_plusplus",
    "PV-RCNN++, residual backbone": "waymo_models/pv_rcnn_plusplus_resnet",
    "PV-RCNN++, mean of cells": "waymo_models/pv_rcnn_plusplus",
}
PLAIN = {"POST_PROCESSING": {"EVAL_METRIC": "kitti", "SCORE_THRESH": 0.0}}
MEAN = {"LOCAL_AGGREGATION_TYPE": "voxel_avg_pool", "GROUP_CFG_0": {"NEIGHBOR_NSAMPLE": 5}}
SAME = {"rtol": 1e-4, "atol": 1e-5}


ALL_CELLS = {"DENSE_HEAD": {"POST_PROCESSING": {"NMS_CONFIG": {"NMS_THRESH": 1.0}}}}
"""So many rois in every frame that there is no padding, which OpenPCDet would train on."""


def config_of(name, training=False):
    """Read one of OpenPCDet's YAMLs; the built-in engine evaluates KITTI only."""
    changes = merge(PLAIN, ALL_CELLS if training and name != "PV-RCNN" else {})
    if "++" in name:
        changes = merge(changes, FOUR_FEATURES)
    if "mean" in name:
        changes = merge(changes, {"ROI_HEAD": {"ROI_GRID_POOL": MEAN}})
    return stock(MODELS[name], changes)


def pair(name, training=False):
    """Build the detector in both engines, with the same weights and a second stage that tells rois apart."""
    config = config_of(name, training)
    theirs = build(config, training)
    torch.manual_seed(5)
    nn.init.normal_(theirs.roi_head.cls_layers[-1].weight, std=0.5)
    ours = build_detector(config, CLASSES, geometry_of(theirs.dataset))
    ours.load_state_dict(theirs.state_dict())
    for model in (theirs, ours):
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return theirs, ours


def frames(training=False) -> Batch:
    """A batch that both engines read from its own fields."""
    given = batch(1, 2, training=training)
    return Batch(**{name: getattr(given, name) for name in Batch.__dataclass_fields__})


class Watched:
    """What a forward of OpenPCDet's left in its batch behind the dense head, the keypoints and the RoI head."""

    def __init__(self, model, data):
        self.data = {}
        names = [name for name in ("dense_head", "pfe", "roi_head") if getattr(model, name, None) is not None]
        hooks = [getattr(model, name).register_forward_hook(self.keep) for name in names]
        self.answer = model(data)
        for hook in hooks:
            hook.remove()

    def keep(self, _, __, data):
        kept = ("rois", "roi_labels", "point_coords", "point_features", "point_features_before_fusion")
        self.data.update({k: data[k] for k in (*kept, "batch_cls_preds", "batch_box_preds") if k in data})


def look(model, given, rois):
    first = model.run_first_stage(given)
    return model.focus(model.look(first, given), rois)


@pytest.mark.parametrize("name", MODELS)
def test_tensors_have_the_same_names_in_the_same_order(name):
    theirs, ours = pair(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(dict(ours.named_parameters())) == list(dict(theirs.named_parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_keypoints_are_the_same_and_know_the_same(name):
    theirs, ours = pair(name)
    given = frames()
    with torch.no_grad():
        own = Watched(theirs, to_batch_dict(given)).data
        view = look(ours, given, own["rois"])
    assert torch.equal(view.points.frames, own["point_coords"][:, 0].long())
    assert torch.equal(view.points.xyz, own["point_coords"][:, 1:4])
    assert len(view.points.xyz) > 150
    torch.testing.assert_close(view.asked.features, own["point_features_before_fusion"], **SAME)
    torch.testing.assert_close(view.points.features, own["point_features"], **SAME)


@pytest.mark.parametrize("name", MODELS)
def test_the_second_stage_judges_alike(name):
    theirs, ours = pair(name)
    given = frames()
    with torch.no_grad():
        rois = Watched(theirs, to_batch_dict(given)).data["rois"]
        encoded = ours.encode(given)
        for some in (rois, rois[:, :7].flip(1).contiguous(), encoded.predictions.boxes[:, ::9].contiguous()):
            expected, found = theirs.refine(theirs.encode(given), some), ours.refine(encoded, some)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            assert found.std() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_detections(name):
    theirs, ours = pair(name)
    given = frames()
    with torch.no_grad():
        watched, found = Watched(theirs, to_batch_dict(given)), ours(given)
    assert int((watched.data["rois"].ne(0).any(dim=2)).sum()) > 30
    for expected, other in zip(watched.answer[0], found, strict=True):
        is_box = expected["pred_boxes"][:, 3:6].amin(dim=1) > 0  # OpenPCDet detects its own padding
        torch.testing.assert_close(other.scores, expected["pred_scores"][is_box], atol=1e-4, rtol=0)
        torch.testing.assert_close(other.boxes, expected["pred_boxes"][is_box], atol=1e-3, rtol=0)
        assert torch.equal(other.labels, expected["pred_labels"][is_box] - 1)
        assert len(other.scores) > 4


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_on_the_same_rois(name):
    theirs, ours = pair(name, training=True)
    # Else 2D convolutions round differently, and a ReLU that flips shows in the gradients.
    ours.map_to_bev_module.register_forward_hook(lambda module, given, bev: bev.contiguous())
    given = frames(training=True)
    torch.manual_seed(3)
    loss, logged, _ = theirs(to_batch_dict(given))
    drawn = theirs.roi_head.forward_ret_dict
    targets = RoiTargets(
        rois=drawn["rois"],
        labels=drawn["roi_labels"] - 1,
        ious=drawn["gt_iou_of_rois"],
        boxes=drawn["gt_of_rois"][..., :7],
        cls_targets=drawn["rcnn_cls_labels"].view(drawn["rois"].shape[:2]),
        is_foreground=drawn["reg_valid_mask"] > 0,
    )
    assert "++" not in name or drawn["rois"].ne(0).any(dim=2).all()
    ours.roi_head.sample = lambda *_: targets
    losses = ours(given).losses
    assert logged["rcnn_loss_cls"] == pytest.approx(losses["rcnn_cls_loss"].item(), rel=1e-4)
    assert logged["point_loss_cls"] == pytest.approx(losses["point_cls_loss"].item(), rel=1e-5)
    assert logged["point_pos_num"] > 3
    torch.testing.assert_close(sum(losses.values()), loss["loss"], rtol=1e-5, atol=0)
    loss["loss"].backward()
    sum(losses.values()).backward()
    expected = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        scale = expected[key.replace("bias", "weight")].abs().max()  # of a bias before a norm only noise is left
        assert (parameter.grad - expected[key]).abs().max() <= 1e-4 * scale + 1e-8, key
