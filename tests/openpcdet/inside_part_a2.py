"""Part-A2 of both engines on the same weights, frames and rois: features, parts, logits, losses, gradients, boxes."""

from __future__ import annotations

import pytest
import torch
from inside_both_engines import without_objects, without_voxels
from small_models import CLASSES, batch, build, stock
from torch import nn

from cakdp_ext.checkpoint import load_weights, read_checkpoint, write_checkpoint
from cakdp_ext.detectors import PartA2Net, build_detector
from cakdp_ext.detectors.point_targets import part_locations
from cakdp_ext.detectors.roi_heads import RoiTargets
from cakdp_ext.openpcdet.batches import to_batch_dict
from cakdp_ext.openpcdet.faces import geometry_of

CASES = {
    "objects": lambda: batch(1, 2),
    "a frame without objects": lambda: without_objects(batch(1, 2), 1),
    "no object at all": lambda: without_objects(batch(1, 2), 0, 1),
    "a frame without voxels": lambda: without_voxels(without_objects(batch(1, 2), 0), 0),
}
EXACT = {"rtol": 1e-6, "atol": 1e-6}
THRESH = 0.59
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def model_config(is_agnostic=True, **post_processing):
    config = stock("kitti_models/PartA2")
    config.POINT_HEAD.CLASS_AGNOSTIC = is_agnostic
    config.ROI_HEAD.SEG_MASK_SCORE_THRESH = THRESH
    config.POST_PROCESSING.update(post_processing)
    return config


def pair(config, training=True, loudness=1.0):
    """Build the detector in both engines, without dropout, with the same weights, which tell points and rois apart.

    Norms of a batch make everything louder: OpenPCDet's losses take the logarithm of sigmoids, which then are 1.
    """
    theirs = build(config, training)
    torch.manual_seed(11)
    for name in ("cls_layers", "part_reg_layers"):
        nn.init.normal_(getattr(theirs.point_head, name)[-1].weight, std=3.0 * loudness)
    for name, spread in (("cls_layers", 10.0), ("reg_layers", 0.3)):
        nn.init.normal_(getattr(theirs.roi_head, name)[-1].weight, std=spread * loudness)
    nn.init.normal_(theirs.dense_head.conv_cls.weight, std=0.3)
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ours = build_detector(config, CLASSES, geometry_of(theirs.dataset))
    ours.load_state_dict(theirs.state_dict())
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return theirs, ours


def rois_about(frames):
    """Boxes about objects and voxels of every frame, some of them nowhere."""
    random = torch.Generator().manual_seed(3)
    near = torch.zeros(2, 20, 7)
    near[..., :3] = torch.tensor([1.0, -5, -2]) + torch.rand(2, 20, 3, generator=random) * torch.tensor([10.0, 10, 2])
    near[..., 3:6] = 1 + 3 * torch.rand(2, 20, 3, generator=random)
    near[..., 6] = 6 * torch.rand(2, 20, generator=random) - 3
    jittered = frames.gt_boxes + 0.1 * torch.randn(frames.gt_boxes.shape, generator=random)
    jittered[..., 3:6] = jittered[..., 3:6].abs() + 0.3
    return torch.cat([jittered, near, torch.zeros(2, 2, 7)], dim=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_agnostic", [True, False])
def test_features_points_and_parts(case, is_agnostic):
    theirs, ours = pair(model_config(is_agnostic))
    assert isinstance(ours, PartA2Net)
    frames = CASES[case]()
    data = to_batch_dict(frames)
    with torch.no_grad():
        for module in theirs.eval().module_list[:-1]:
            data = module(data)
        first = ours.eval().run_first_stage(frames)
        view = ours.look(first, frames)
    torch.testing.assert_close(first.backbone.encoded.features, data["encoded_spconv_tensor"].features, **EXACT)
    torch.testing.assert_close(view.points.features, data["point_features"], **EXACT)
    found = torch.cat([view.points.frames[:, None], view.points.xyz], dim=1)
    torch.testing.assert_close(found, data["point_coords"], **EXACT)
    torch.testing.assert_close(view.said.scores, data["point_cls_scores"], **EXACT)
    torch.testing.assert_close(view.said.parts, data["point_part_offset"], **EXACT)
    assert view.said.scores.std() > 0.02
    assert 0.05 < (view.said.scores < THRESH).float().mean() < 0.95


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_agnostic", [True, False])
def test_point_targets(case, is_agnostic):
    theirs, ours = pair(model_config(is_agnostic))
    frames = CASES[case]()
    with torch.no_grad():
        points = ours.eval().run_first_stage(frames).backbone.points
    data = {**to_batch_dict(frames), "point_coords": torch.cat([points.frames[:, None], points.xyz], dim=1)}
    expected = theirs.point_head.assign_targets(data)
    found = ours.point_head.assign_targets(points, frames)
    labels = torch.where(found.labels >= 0, 1 if is_agnostic else found.labels + 1, -1 - found.labels.clamp(max=-1))
    assert torch.equal(torch.where(found.labels == -2, -1, labels), expected["point_cls_labels"])
    inside = found.is_foreground
    parts = part_locations(points.xyz[inside], found.boxes[inside])
    torch.testing.assert_close(parts, expected["point_part_labels"][inside], rtol=0, atol=1e-5)
    assert inside.any() == (case != "no object at all")


@pytest.mark.parametrize("case", CASES)
def test_the_second_stage_judges_the_same_rois_alike(case):
    theirs, ours = pair(model_config(), training=False)
    frames = CASES[case]()
    rois = rois_about(frames)
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        expected, found = (model.refine(model.encode(frames), rois) for model in (theirs, ours))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert expected.std() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case):
    config = model_config()
    config.POINT_HEAD.LOSS_CONFIG.LOSS_WEIGHTS.update(point_cls_weight=1.7, point_part_weight=0.6)
    theirs, ours = pair(config, loudness=0.03)
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
    names = {"point_cls_loss": "point_loss_cls", "point_part_loss": "point_loss_part", "rcnn_cls_loss": "rcnn_loss_cls"}
    for name, theirs_name in names.items():
        assert losses[name].item() == pytest.approx(logged[theirs_name], rel=1e-4, abs=1e-7), name
    assert (losses["point_part_loss"] > 0) == (case != "no object at all")
    total = sum(losses.values())
    torch.testing.assert_close(total, loss["loss"], rtol=1e-5, atol=0)
    loss["loss"].backward()
    total.backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = expected[name.replace("bias", "weight")].abs().max()  # of a bias before a norm only noise is left
        assert (parameter.grad - expected[name]).abs().max() <= 1e-4 * scale + 1e-9, name


@pytest.mark.parametrize("case", ["objects", "a frame without objects"])
def test_detections(case):
    """Without a last NMS: rois without points score alike, and which of them goes first is left to rounding."""
    theirs, ours = pair(model_config(SCORE_THRESH=0.0, NMS_CONFIG={**nms(), "NMS_THRESH": 1.0}), training=False)
    frames = CASES[case]()
    with torch.no_grad():
        expected, found = (model.eval()(frames) for model in (theirs, ours))
    for one, other in zip(expected, found, strict=True):
        assert len(one.scores) == len(other.scores) > 3
        rows = [torch.cat([d.boxes, d.scores[:, None], d.labels[:, None]], dim=1) for d in (one, other)]
        rows = [row[row[:, 0].argsort()] for row in rows]
        torch.testing.assert_close(rows[1], rows[0], rtol=1e-4, atol=1e-4)


def nms():
    return stock("kitti_models/PartA2").POST_PROCESSING.NMS_CONFIG


def test_checkpoints_move_both_ways(tmp_path):
    theirs, ours = pair(model_config())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    write_checkpoint(tmp_path / "ours.pth", ours, {"epoch": 1})
    torch.save({"model_state": theirs.state_dict(), "epoch": 1}, tmp_path / "theirs.pth")
    again = build_detector(model_config(), CLASSES, geometry_of(theirs.dataset))
    load_weights(again, read_checkpoint(tmp_path / "theirs.pth")["model_state"], tmp_path / "theirs.pth")
    torch.testing.assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)
    theirs.load_state_dict(read_checkpoint(tmp_path / "ours.pth")["model_state"])
