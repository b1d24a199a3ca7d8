"""Voxel R-CNN behind a center head in both engines: proposals, logits, losses, gradients and boxes."""

from __future__ import annotations

import pytest
import small_models
import torch
from inside_both_engines import plain, shake_outputs, without_objects, without_voxels
from small_models import CLASSES, batch, build, stock
from torch import nn

from cakdp_ext.detectors import VoxelRCNN, build_detector
from cakdp_ext.detectors.roi_heads import RoiTargets
from cakdp_ext.openpcdet.batches import to_batch_dict
from cakdp_ext.openpcdet.faces import geometry_of

CASES = {
    "objects": lambda: plain(batch(1, 2)),
    "a frame without objects": lambda: without_objects(batch(1, 2), 1),
    "no object at all": lambda: without_objects(batch(1, 2), 0, 1),
    "a frame without voxels": lambda: without_voxels(without_objects(batch(1, 2), 0), 0),
}
PARTS = {"one part": [CLASSES], "two parts": [CLASSES[:2], CLASSES[2:]], "order turned": [CLASSES[:0:-1], CLASSES[:1]]}
TRAINABLE = ("one part", "two parts")
"""OpenPCDet writes each part's own labels over those of the objects, which later parts then misread."""
BACKBONES = ("VoxelBackBone8x", "VoxelResBackBone8x")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True, scope="module")
def _scatter():
    small_models.provide_scatter()


def model_config(parts="one part", backbone="VoxelBackBone8x", **post_processing):
    config = stock("waymo_models/voxel_rcnn_with_centerhead_dyn_voxel")
    config.VFE.NAME = "MeanVFE"
    config.BACKBONE_3D.NAME = backbone
    config.DENSE_HEAD.CLASS_NAMES_EACH_HEAD = PARTS[parts]
    config.DENSE_HEAD.POST_PROCESSING.update(
        SCORE_THRESH=0.1, MAX_OBJ_PER_SAMPLE=30, POST_CENTER_LIMIT_RANGE=[0, -6, -1.5, 12, 6, 1]
    )
    config.POST_PROCESSING.EVAL_METRIC = "kitti"
    config.POST_PROCESSING.update(post_processing)
    return config


def pair(config, training=True):
    """Build the detector in both engines, with the same weights that tell cells and rois apart, without dropout."""
    theirs = build(config, training)
    shake_outputs(theirs)
    nn.init.normal_(theirs.roi_head.cls_pred_layer.weight, std=0.5 if training else 3.0)
    nn.init.normal_(theirs.roi_head.reg_pred_layer.weight, std=0.05)
    ours = build_detector(config, CLASSES, geometry_of(theirs.dataset))
    ours.load_state_dict(theirs.state_dict())
    for model in (theirs, ours):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return theirs, ours


def by_score(rows, scores):
    return rows[scores.argsort(descending=True, stable=True)]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("case", ["objects", "a frame without voxels"])
def test_proposals_and_what_is_said_of_them(case, backbone, parts):
    theirs, ours = pair(model_config(parts, backbone), training=False)
    assert isinstance(ours, VoxelRCNN)
    frames, data = CASES[case](), to_batch_dict(CASES[case]())
    with torch.no_grad():
        for module in theirs.eval().module_list:
            data = module(data)
        first = ours.eval().run_first_stage(frames)
        proposals = ours.choose_rois(first)
        logits = ours.refine(ours.encode(frames), data["rois"])
        by_theirs = theirs.refine(theirs.encode(frames), data["rois"])
    torch.testing.assert_close(logits, data["batch_cls_preds"], **CLOSE)
    torch.testing.assert_close(logits, by_theirs, **CLOSE)
    assert logits.std() > 0.05
    assert proposals.is_valid.sum() > 10
    for frame, is_valid in enumerate(proposals.is_valid):
        count = int(is_valid.sum())
        scores = data["roi_scores"][frame, :count]
        torch.testing.assert_close(proposals.scores[frame, is_valid], by_score(scores, scores), rtol=1e-5, atol=1e-6)
        rois = by_score(data["rois"][frame, :count], scores)
        torch.testing.assert_close(proposals.rois[frame, is_valid], rois, rtol=1e-5, atol=1e-5)
        labels = by_score(data["roi_labels"][frame, :count], scores) - 1
        assert torch.equal(proposals.labels[frame, is_valid], labels)
        assert not data["rois"][frame, count:].any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("parts", "backbone"), list(zip(TRAINABLE, BACKBONES, strict=True)))
def test_losses_and_gradients(case, parts, backbone):
    theirs, ours = pair(model_config(parts, backbone))
    # Else 2D convolutions round differently, and a ReLU that flips shows in the gradients.
    ours.map_to_bev_module.register_forward_hook(lambda module, given, bev: bev.contiguous())
    frames = CASES[case]()
    loss, logged, _ = theirs.train()(to_batch_dict(frames))
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
    losses = ours.train()(frames).losses
    assert losses["rcnn_cls_loss"].item() == pytest.approx(logged["rcnn_loss_cls"], rel=1e-4, abs=1e-7)
    for number in range(len(PARTS[parts])):
        for name in (f"hm_loss_head_{number}", f"loc_loss_head_{number}"):
            assert losses[name].item() == pytest.approx(logged[name], rel=1e-5, abs=1e-7), name
    total = sum(losses.values())
    torch.testing.assert_close(total, loss["loss"], rtol=1e-5, atol=0)
    loss["loss"].backward()
    total.backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        both = expected[name], expected[name.replace("bias", "weight")]  # of a bias before a norm only noise is left
        scale = max(grad.abs().max() for grad in both)
        assert (parameter.grad - expected[name]).abs().max() <= 1e-4 * scale + 1e-9, name


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("case", ["objects", "a frame without objects"])
def test_detections(parts, case):
    nms = {**model_config().POST_PROCESSING.NMS_CONFIG, "NMS_THRESH": 1.0}
    theirs, ours = pair(model_config(parts, SCORE_THRESH=0.0, NMS_CONFIG=nms), training=False)
    frames = CASES[case]()
    with torch.no_grad():
        expected, found = (model.eval()(frames) for model in (theirs, ours))
    for one, other in zip(expected, found, strict=True):
        rows = [torch.cat([d.boxes, d.scores[:, None], d.labels[:, None]], dim=1) for d in (one, other)]
        rows = [row[row[:, 3:6].amin(dim=1) > 0] for row in rows]  # OpenPCDet detects its padding, too
        rows = [row[row[:, 0].argsort()] for row in rows]
        assert len(rows[0]) > 5
        torch.testing.assert_close(rows[1], rows[0], rtol=1e-4, atol=1e-4)
