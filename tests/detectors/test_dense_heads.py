from __future__ import annotations

import dataclasses
import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from cakdp_ext import refinement
from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.dense_heads import AnchorHeadSingleIoU, HeadOutput
from cakdp_ext.detectors.registry import DENSE_HEADS

CHANNELS = 5


@pytest.fixture
def head(small_cfg, small_geometry, class_names) -> AnchorHeadSingleIoU:
    torch.manual_seed(0)
    return DENSE_HEADS.build(small_cfg, CHANNELS, class_names, small_geometry)


@pytest.fixture
def bev() -> torch.Tensor:
    return torch.randn(2, CHANNELS, 16, 20, generator=torch.Generator().manual_seed(1))


def random_output(head, frames: int = 2) -> HeadOutput:
    random = torch.Generator().manual_seed(2)
    sites = len(head.sites.anchors)
    widths = (head.num_classes, 7, head.config.num_dir_bins, head.num_classes)
    return HeadOutput(*(0.3 * torch.randn(frames, sites, width, generator=random) for width in widths))


def slow_losses(head, output: HeadOutput, targets, batch) -> dict[str, float]:
    """The three losses, one anchor after the other."""
    weights = head.config.loss_config.loss_weights
    total = {"cls_loss": 0.0, "loc_loss": 0.0, "dir_loss": 0.0}
    anchors = head.sites.anchors.double()
    for frame in range(batch.batch_size):
        labels = targets.labels[frame].tolist()
        share = 1 / max(sum(label >= 0 for label in labels), 1) / batch.batch_size
        for site, label in enumerate(labels):
            if label == -2:
                continue
            for c, logit in enumerate(output.cls_logits[frame, site].double()):
                p = torch.sigmoid(logit)
                loss = -0.25 * (1 - p) ** 2 * p.log() if c == label else -0.75 * p**2 * (1 - p).log()
                total["cls_loss"] += weights.cls_weight * share * loss.item()
            if label < 0:
                continue
            box = batch.gt_boxes[frame, targets.gt_indices[frame, site]].double()
            target = head.coder.encode(box, anchors[site])
            for code in range(7):
                difference = output.deltas[frame, site, code].double() - target[code]
                size = abs((torch.sin(difference) if code == 6 else difference).item() * weights.code_weights[code])
                loss = 4.5 * size**2 if size < 1 / 9 else size - 1 / 18
                total["loc_loss"] += weights.loc_weight * share * loss
            turned = (box[6].item() - head.config.dir_offset) % (2 * math.pi)
            log_shares = output.dir_logits[frame, site].double().log_softmax(0)
            total["dir_loss"] -= weights.dir_weight * share * log_shares[int(turned // math.pi)].item()
    return total


def test_losses_agree_with_a_loop_over_anchors(head, make_batch, small_geometry):
    batch = make_batch(small_geometry, objects=8, seed=3)
    output = random_output(head)
    targets = head.assign_targets(batch)
    assert (targets.labels >= 0).sum() > 8
    assert (targets.labels == -2).any()
    found = head.losses(output, batch)
    for name, value in slow_losses(head, output, targets, batch).items():
        assert found[name].item() == pytest.approx(value, rel=1e-4), name


def test_weights_and_code_weights_scale_the_losses(small_cfg, small_geometry, class_names, make_batch):
    batch = make_batch(small_geometry, objects=8, seed=3)
    weights = small_cfg["DENSE_HEAD"]["LOSS_CONFIG"]["LOSS_WEIGHTS"]
    found = []
    for change in ({}, {"cls_weight": 2.0, "dir_weight": 0.6, "code_weights": [0.0] * 6 + [1.0]}):
        weights.update(change)
        head = DENSE_HEADS.build(small_cfg, CHANNELS, class_names, small_geometry)
        found.append(head.losses(random_output(head), batch))
    before, after = found
    assert after["cls_loss"].item() == pytest.approx(2 * before["cls_loss"].item(), rel=1e-5)
    assert after["dir_loss"].item() == pytest.approx(3 * before["dir_loss"].item(), rel=1e-5)
    assert 0 < after["loc_loss"] < before["loc_loss"] / 2


def test_maps_are_read_cell_by_cell_and_anchor_by_anchor(head, bev):
    output = head(bev)
    per_cell = head.num_per_cell
    for frame, row, column, anchor in ((0, 0, 0, 0), (1, 3, 7, 5), (0, 15, 19, 2)):
        site = (row * 20 + column) * per_cell + anchor
        pixel = bev[frame, :, row, column]
        for name, conv, width in (("cls_logits", head.conv_cls, 3), ("deltas", head.conv_box, 7)):
            rows = slice(anchor * width, (anchor + 1) * width)
            expected = conv.weight[rows, :, 0, 0] @ pixel + conv.bias[rows]
            torch.testing.assert_close(getattr(output, name)[frame, site], expected)


def test_decoded_boxes_agree_with_a_loop(head):
    output = random_output(head)
    boxes = head.decode(output).boxes
    anchors, config = head.sites.anchors, head.config
    for frame, site in ((0, 0), (1, 17), (0, 1919), (1, 1000)):
        x, y, z, dx, dy, dz, heading = anchors[site].double().tolist()
        delta = output.deltas[frame, site].double().tolist()
        diagonal = math.hypot(dx, dy)
        turned = (heading + delta[6] - config.dir_offset) % math.pi + config.dir_offset
        turned += math.pi * int(output.dir_logits[frame, site].argmax())
        sizes = [size * math.exp(d) for size, d in zip((dx, dy, dz), delta[3:6], strict=True)]
        expected = [x + delta[0] * diagonal, y + delta[1] * diagonal, z + delta[2] * dz, *sizes, turned]
        assert boxes[frame, site].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_perfect_residuals_and_directions_decode_to_the_objects(head, make_batch, small_geometry):
    batch = make_batch(small_geometry, objects=8, seed=3)
    targets = head.assign_targets(batch)
    frames, sites = targets.positives
    objects = batch.gt_boxes[frames, targets.gt_indices[frames, sites]]
    output = random_output(head)
    output.deltas[frames, sites] = head.coder.encode(objects, head.sites.anchors[sites])
    turned = (objects[:, 6] - head.config.dir_offset) % (2 * math.pi)
    output.dir_logits[frames, sites] = 9.0 * F.one_hot((turned // math.pi).long(), 2)
    decoded = head.decode(output).boxes[frames, sites]
    torch.testing.assert_close(decoded[:, :6], objects[:, :6], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cos(decoded[:, 6] - objects[:, 6]), torch.ones(len(objects)))


def test_boxes_carry_no_gradient_but_logits_do(head, bev):
    predictions = head.train().decode(head(bev))
    assert not predictions.boxes.requires_grad
    assert predictions.cls_logits.requires_grad
    assert predictions.iou_logits.requires_grad


def test_without_a_direction_classifier_headings_are_decoded_as_they_are(small_cfg, small_geometry, class_names, bev):
    del small_cfg["DENSE_HEAD"]["USE_DIRECTION_CLASSIFIER"]
    head = DENSE_HEADS.build(small_cfg, CHANNELS, class_names, small_geometry)
    output = head(bev)
    assert output.dir_logits is None
    assert not any("dir" in name for name in head.state_dict())
    expected = head.sites.anchors[:, 6] + output.deltas[..., 6]
    torch.testing.assert_close(head.decode(output).boxes[..., 6], expected)


def test_a_fresh_head_says_one_percent_everywhere(head, bev):
    output = head(torch.zeros_like(bev))
    for logits in (output.cls_logits, output.iou_logits):
        torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01))
    assert head.conv_box.weight.std().item() == pytest.approx(0.001, rel=0.2)


def test_constants_follow_the_module_but_stay_out_of_its_checkpoint(head):
    assert {name.split(".")[0] for name in head.state_dict()} == {"conv_cls", "conv_box", "conv_dir_cls", "conv_iou"}
    moved = deepcopy(head).to("meta")
    assert moved.sites.anchors.device.type == moved.sites.centers.device.type == "meta"


def test_sites_say_where_each_prediction_sits(head):
    sites = head.sites
    assert (len(sites.centers), sites.stride, sites.num_classes) == (16 * 20 * 6, 8, 3)
    assert sites.centers[0].tolist() == pytest.approx([0.4, -6.0])
    assert sites.centers[-1].tolist() == pytest.approx([15.6, 6.0])
    assert (sites.anchors[:, :2] - sites.centers).abs().max() < 0.41


def test_a_class_agnostic_head_calls_every_object_the_same(second_cfg, small_geometry, class_names, make_batch):
    second_cfg["DENSE_HEAD"]["CLASS_AGNOSTIC"] = True
    head = DENSE_HEADS.build(second_cfg, CHANNELS, class_names, small_geometry)
    targets = head.assign_targets(make_batch(small_geometry, objects=8, seed=3))
    assert head.conv_cls.out_channels == 6
    assert head.sites.num_classes == 1
    assert set(targets.labels.unique().tolist()) == {-2, -1, 0}


def test_a_map_of_another_size_is_refused(head):
    with pytest.raises(ValueError, match=r"anchors need a map of \(16, 20\), got \(16, 21\)"):
        head(torch.zeros(1, CHANNELS, 16, 21))


@pytest.mark.parametrize("label", ["anchor", "decoded_box"])
def test_iou_loss_is_equation_6_on_the_labels_asked_for(small_cfg, small_geometry, class_names, make_batch, label):
    small_cfg["DENSE_HEAD"]["IOU_HEAD"] = {"LABEL": label, "WEIGHT": 0.5}
    head = DENSE_HEADS.build(small_cfg, CHANNELS, class_names, small_geometry)
    batch = make_batch(small_geometry, objects=8, seed=3)
    output = random_output(head)
    expected = 0.0
    for frame in range(2):
        boxes, labels = batch.gt_boxes[frame], batch.gt_labels[frame]
        if label == "anchor":
            target = refinement.anchor_iou_targets(head.sites.anchors, boxes, labels, 3)
        else:
            target = refinement.decoded_iou_targets(head.decode(output).boxes[frame], boxes, labels, 3)
        error = (output.iou_logits[frame].sigmoid() - target).square().sum().item()
        expected += 0.5 * error / max(int((target > 0).sum()), 1) / 2
    assert head.losses(output, batch)["iou_loss"].item() == pytest.approx(expected, rel=1e-4)


def test_the_iou_loss_of_another_heads_output_is_refused(head, make_batch, small_geometry):
    output = dataclasses.replace(random_output(head), iou_logits=None)
    with pytest.raises(ValueError, match="needs iou_logits"):
        head.losses(output, make_batch(small_geometry))


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("USE_DIRECTION_CLASSIFIER", False, "leave the key out for none"),
        ("ANCHOR_GENERATOR_CONFIG", [], "needs an entry for each class"),
        ("IOU_HEAD", {"LABEL": "gt"}, "LABEL must be anchor or decoded_box, got 'gt'"),
        (
            "IOU_HEAD",
            {"LABLE": "anchor"},
            "unknown key LABLE in IOU_HEAD of MODEL.DENSE_HEAD; valid keys: LABEL, WEIGHT",
        ),
        ("LOSS_CONFIG", {"LOSS_WEIGHTS": {"code_weights": [1.0]}}, "code_weights needs 7 entries"),
        ("CLASS_AGNOSTIC", True, "set CLASS_AGNOSTIC: False"),
        (
            "NAME",
            "AnchorHeadMulti",
            "unknown DENSE_HEAD NAME 'AnchorHeadMulti'; known names: .*AnchorHeadSingleIoU, CenterHead",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(small_cfg, small_geometry, class_names, section, value, message):
    small_cfg["DENSE_HEAD"][section] = value
    with pytest.raises(ConfigError, match=message):
        DENSE_HEADS.build(small_cfg, CHANNELS, class_names, small_geometry)
