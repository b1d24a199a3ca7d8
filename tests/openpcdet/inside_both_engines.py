"""CenterPoint of both engines on the same weights and frames: predictions, targets, losses, gradients, detections."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from small_models import CLASSES, NUM_CELLS, batch, build, center_head, dataset, shake, stock

from cakdp_ext.checkpoint import load_weights, read_checkpoint, write_checkpoint
from cakdp_ext.detectors import CenterPoint, build_detector
from cakdp_ext.detectors.registry import DENSE_HEADS
from cakdp_ext.openpcdet.batches import to_batch_dict
from cakdp_ext.openpcdet.faces import geometry_of
from cakdp_ext.types import Batch

PARTS = {
    "one part": [CLASSES],
    "two parts, order turned": [["Cyclist", "Pedestrian"], ["Car"]],
    "three parts": [["Pedestrian"], ["Cyclist"], ["Car"]],
}
BACKBONES = {"plain": "waymo_models/centerpoint_without_resnet", "residual": "waymo_models/centerpoint"}
EXACT = {"rtol": 1e-6, "atol": 1e-6}
SAME_BOXES = {"rtol": 1e-5, "atol": 1e-5}


def model_config(kind="plain", parts="one part", head="CenterHeadIoU", thresh=0.1, **refinement):
    config = stock(BACKBONES[kind], {"DENSE_HEAD": {"CLASS_NAMES_EACH_HEAD": PARTS[parts]}})
    config.NAME, config.DENSE_HEAD.NAME = "CenterPointCaKDP", head
    config.DENSE_HEAD.POST_PROCESSING.SCORE_THRESH = thresh
    config.DENSE_HEAD.POST_PROCESSING.POST_CENTER_LIMIT_RANGE = [0, -6, -1.5, 12, 6, 1]
    config.POST_PROCESSING.EVAL_METRIC = "kitti"
    if refinement:
        config.POST_PROCESSING.IOU_REFINEMENT = refinement
    return config


def pair(config, training=True):
    """Build the detector in both engines, with the same weights."""
    theirs = build(config, training)
    shake_outputs(theirs)
    ours = build_detector(config, CLASSES, geometry_of(theirs.dataset))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def shake_outputs(model):
    """Let heat maps and IoUs differ from cell to cell."""
    torch.manual_seed(11)
    for part in model.dense_head.heads_list:
        for name in ("hm", "iou"):
            if hasattr(part, name):
                getattr(part, name)[-1].weight.data.normal_(0, 0.4)
                getattr(part, name)[-1].bias.data.uniform_(-1.5, 0.5)


def without_objects(frames: Batch, *rows: int) -> Batch:
    boxes, labels = frames.gt_boxes.clone(), frames.gt_labels.clone()
    for row in rows:
        boxes[row], labels[row] = 0, -1
    return plain(frames, gt_boxes=boxes, gt_labels=labels)


def without_voxels(frames: Batch, row: int) -> Batch:
    keep = frames.voxel_coords[:, 0] != row
    return plain(frames, **{name: getattr(frames, name)[keep] for name in VOXELS})


VOXELS = ("voxels", "voxel_coords", "voxel_num_points")


def plain(frames: Batch, **changes) -> Batch:
    """Give a batch that both engines read from its own fields."""
    fields = {name: getattr(frames, name) for name in Batch.__dataclass_fields__}
    return Batch(**{**fields, **changes})


def crowded(seed=0) -> Batch:
    """Objects everywhere, on and beyond the border too; some share a cell, some have no size, rows are padded."""
    frames = batch(1, 2)
    random = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([[3.9, 1.6, 1.56], [0.8, 0.6, 1.73], [11.0, 2.6, 3.2]])
    labels = torch.randint(0, 3, (2, 40), generator=random)
    spread = torch.rand(2, 40, 3, generator=random) * torch.tensor([16.0, 16.0, 2.0]) - torch.tensor([1.6, 8.0, 2.0])
    boxes = torch.cat([spread, sizes[labels], 8 * torch.rand(2, 40, 1, generator=random) - 4], dim=2)
    boxes[0, 5, :2] = boxes[0, 4, :2] + 0.01
    boxes[0, 6, :2] = torch.tensor([12.8, 6.4])
    boxes[1, 7, 3] = boxes[1, 8, 4] = 0
    boxes[:, 30:], labels[:, 30:] = 0, -1
    return plain(frames, gt_boxes=boxes, gt_labels=labels)


CASES = {
    "objects": lambda: plain(batch(1, 2)),
    "crowded": crowded,
    "a frame without objects": lambda: without_objects(batch(1, 2), 1),
    "no object at all": lambda: without_objects(batch(1, 2), 0, 1),
    "a frame without voxels": lambda: without_voxels(without_objects(batch(1, 2), 0), 0),
}


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("case", ["objects", "a frame without voxels"])
def test_dense_predictions(kind, parts, case):
    theirs, ours = pair(model_config(kind, parts))
    assert isinstance(ours, CenterPoint)
    frames = CASES[case]()
    with torch.no_grad():
        expected, found = (model.eval().predict_dense(frames) for model in (theirs, ours))
    torch.testing.assert_close(found.cls_logits, expected.cls_logits, **EXACT)
    torch.testing.assert_close(found.iou_logits, expected.iou_logits, **EXACT)
    torch.testing.assert_close(found.boxes, expected.boxes, **SAME_BOXES)
    assert found.cls_logits.shape == (2, NUM_CELLS, 3)
    assert found.cls_logits.std() > 0.1
    torch.testing.assert_close(ours.sites.centers, theirs.sites.centers)
    assert (ours.sites.stride, ours.sites.num_classes) == (theirs.sites.stride, theirs.sites.num_classes)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("overlap", [0.1, 0.4])
def test_targets(parts, overlap):
    changes = {"TARGET_ASSIGNER_CONFIG": {"GAUSSIAN_OVERLAP": overlap, "MIN_RADIUS": 0}}
    head = center_head(PARTS[parts], name="CenterHeadIoU", **changes)
    ours = DENSE_HEADS.build({"DENSE_HEAD": {**deepcopy(head.model_cfg)}}, 8, CLASSES, geometry_of(dataset()))
    frames = crowded()
    objects = to_batch_dict(frames)["gt_boxes"]
    expected = head.assign_targets(objects, feature_map_size=[8, 8], feature_map_stride=8)
    for number, found in enumerate(ours.assign_targets(frames)):
        torch.testing.assert_close(found.heatmap, expected["heatmaps"][number], rtol=1e-6, atol=1e-7)
        mask = expected["masks"][number].bool()
        assert torch.equal(found.frames, mask.nonzero()[:, 0])
        assert torch.equal(found.cells, expected["inds"][number][mask])
        torch.testing.assert_close(found.codes, expected["target_boxes"][number][mask], rtol=1e-6, atol=1e-6)
    assert len(found.cells) > 5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("kind", "parts", "head"),
    [
        ("plain", "one part", "CenterHead"),
        ("plain", "two parts, order turned", "CenterHeadIoU"),
        ("residual", "three parts", "CenterHeadIoU"),
        ("residual", "one part", "CenterHead"),
    ],
)
def test_losses_and_gradients(kind, parts, head, case):
    config = model_config(kind, parts, head)
    weights = config.DENSE_HEAD.LOSS_CONFIG.LOSS_WEIGHTS
    weights.code_weights, weights.cls_weight = [1.0, 0.5, 2.0, 1.5, 1.0, 0.2, 3.0, 0.7], 1.3
    theirs, ours = pair(config)
    # Else 2D convolutions round differently, and a ReLU that flips shows in the gradients.
    ours.map_to_bev_module.register_forward_hook(lambda module, given, bev: bev.contiguous())
    frames = CASES[case]()
    loss, logged, _ = theirs.train()(to_batch_dict(frames))
    losses = ours.train()(frames).losses
    for name, value in losses.items():
        assert value.item() == pytest.approx(logged[name], rel=1e-5, abs=1e-7), name
    total = sum(losses.values())
    assert total.item() == pytest.approx(loss["loss"].item(), rel=1e-5)
    loss["loss"].backward()
    total.backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = expected[name.replace("bias", "weight")].abs().max()  # of a bias before a norm only noise is left
        assert (parameter.grad - expected[name]).abs().max() <= 1e-5 * scale, name


def in_order(detections):
    order = detections.scores.argsort(descending=True, stable=True)
    return replace(
        detections, boxes=detections.boxes[order], scores=detections.scores[order], labels=detections.labels[order]
    )


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    ("head", "refinement"),
    [
        ("CenterHead", {}),
        ("CenterHeadIoU", {}),
        ("CenterHeadIoU", {"MODE": "mask", "DELTA": 0.4}),
        ("CenterHeadIoU", {"MODE": "mask", "DELTA": 0.4, "CHANNEL": "best_class"}),
        ("CenterHeadIoU", {"MODE": "rescore", "POWER": 0.3}),
        ("CenterHeadIoU", {"MODE": "none"}),
    ],
)
@pytest.mark.parametrize("case", ["objects", "a frame without voxels"])
def test_detections(kind, parts, head, refinement, case):
    theirs, ours = pair(model_config(kind, parts, head, **refinement), training=False)
    frames = CASES[case]()
    with torch.no_grad():
        expected, found = (model.eval()(frames) for model in (theirs, ours))
    for one, other in zip(map(in_order, expected), found, strict=True):
        assert len(one.scores) == len(other.scores)
        torch.testing.assert_close(other.scores, one.scores, **EXACT)
        assert torch.equal(other.labels, one.labels)
        torch.testing.assert_close(other.boxes, one.boxes, **SAME_BOXES)
    assert sum(len(other.scores) for other in found) > 8


@pytest.mark.parametrize("thresh", [None, 0.0, 0.3, 0.9999])
@pytest.mark.parametrize("most", [5, NUM_CELLS])
def test_detections_by_threshold_and_number(thresh, most):
    config = model_config("plain", "two parts, order turned", thresh=thresh, MODE="mask", DELTA=0.4)
    config.DENSE_HEAD.POST_PROCESSING.MAX_OBJ_PER_SAMPLE = most
    theirs, ours = pair(config, training=False)
    frames = CASES["objects"]()
    with torch.no_grad():
        expected, found = (model.eval()(frames) for model in (theirs, ours))
    for one, other in zip(map(in_order, expected), found, strict=True):
        torch.testing.assert_close(other.scores, one.scores, **EXACT)
        torch.testing.assert_close(other.boxes, one.boxes, **SAME_BOXES)
        assert torch.equal(other.labels, one.labels)


@pytest.mark.parametrize("kind", BACKBONES)
def test_checkpoints_move_both_ways(kind, tmp_path):
    theirs, ours = pair(model_config(kind))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    shake(ours)
    write_checkpoint(tmp_path / "ours.pth", ours, {"epoch": 1})
    theirs.load_params_from_file(str(tmp_path / "ours.pth"), logger=Silent(), to_cpu=True)
    torch.save({"model_state": theirs.state_dict(), "epoch": 1}, tmp_path / "theirs.pth")
    again = build_detector(model_config(kind), CLASSES, geometry_of(theirs.dataset))
    load_weights(again, read_checkpoint(tmp_path / "theirs.pth")["model_state"], tmp_path / "theirs.pth")
    frames = CASES["objects"]()
    with torch.no_grad():
        expected = ours.eval().predict_dense(frames)
        for model in (theirs, again):
            torch.testing.assert_close(model.eval().predict_dense(frames).cls_logits, expected.cls_logits, **EXACT)


class Silent:
    """A log that nobody reads."""

    def info(self, *_):
        """Say nothing."""
