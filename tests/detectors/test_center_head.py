from __future__ import annotations

import dataclasses
import math
from copy import deepcopy

import pytest
import torch

from cakdp_ext import refinement
from cakdp_ext.config import ConfigError
from cakdp_ext.detectors import PartMaps
from cakdp_ext.detectors.center_losses import heatmap_loss, regression_loss
from cakdp_ext.detectors.post_processing import CommonPostProcessing, detect_centers
from cakdp_ext.detectors.registry import DENSE_HEADS
from cakdp_ext.refinement import IoURefinement

CHANNELS, ROWS, COLUMNS = 5, 16, 20
CELLS = ROWS * COLUMNS
PARTS = {
    "one part": [["Car", "Pedestrian", "Cyclist"]],
    "one part, order turned": [["Cyclist", "Pedestrian", "Car"]],
    "two parts": [["Cyclist", "Car"], ["Pedestrian"]],
    "three parts, foreign classes too": [["Pedestrian", "Truck"], ["Cyclist"], ["Tram", "Car"]],
}


@pytest.fixture
def build(small_center_cfg, small_geometry, class_names):
    """``build(parts, has_branch, **section)`` -> a head of fresh weights."""

    def make(parts="two parts", has_branch=True, **section):
        node = small_center_cfg["DENSE_HEAD"]
        node.update(CLASS_NAMES_EACH_HEAD=PARTS[parts], **section)
        if not has_branch:
            node["NAME"] = "CenterHead"
            del node["IOU_HEAD"]
        torch.manual_seed(0)
        return DENSE_HEADS.build(small_center_cfg, CHANNELS, class_names, small_geometry)

    return make


@pytest.fixture(params=PARTS)
def head(build, request):
    return build(request.param)


@pytest.fixture
def bev() -> torch.Tensor:
    return torch.randn(2, CHANNELS, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))


def random_output(head, frames: int = 2) -> tuple[PartMaps, ...]:
    random = torch.Generator().manual_seed(2)

    def maps(channels, scale=1.0):
        return scale * torch.randn(frames, channels, ROWS, COLUMNS, generator=random)

    return tuple(
        PartMaps(maps(len(part)), maps(2), maps(1) - 1, maps(3, 0.5), maps(2), maps(len(part)) - 1)
        for part in head.labels_of_parts
    )


def slow_box(maps, frame, row, column) -> list[float]:
    """The box of a cell, of 0.8 m to either side, whose map begins at (0, -6.4) m."""
    values = {name: getattr(maps, name)[frame, :, row, column].double().tolist() for name in ("center", "dim", "rot")}
    x, y = ((cell + offset) * 0.8 for cell, offset in zip((column, row), values["center"], strict=True))
    sizes = [math.exp(value) for value in values["dim"]]
    cosine, sine = values["rot"]
    return [x, y - 6.4, maps.center_z[frame, 0, row, column].item(), *sizes, math.atan2(sine, cosine)]


# Maps


def test_every_branch_reads_the_shared_map(head, bev):
    head.eval()
    shared = head.shared_conv(bev)
    for number, (maps, labels) in enumerate(zip(head(bev), head.labels_of_parts, strict=True)):
        for name, width in {
            "hm": len(labels),
            "center": 2,
            "center_z": 1,
            "dim": 3,
            "rot": 2,
            "iou": len(labels),
        }.items():
            branch = head.heads_list[number][name]
            assert getattr(maps, name).shape == (2, width, ROWS, COLUMNS)
            torch.testing.assert_close(getattr(maps, name), branch(shared))
            assert [type(layer).__name__ for layer in branch[0]] == ["Conv2d", "BatchNorm2d", "ReLU"]


def test_a_fresh_head_says_ten_percent_of_centers_and_one_of_overlaps(head, bev):
    for maps, part in zip(head.eval()(torch.zeros_like(bev)), head.heads_list, strict=True):
        for name, prior in (("hm", 0.1), ("iou", 0.01)):
            assert part[name][-1].bias.sigmoid().tolist() == pytest.approx([prior] * len(part[name][-1].bias))
            assert getattr(maps, name).isfinite().all()
        assert not part["center"][-1].bias.any()


def test_convolutions_norms_and_biases_are_those_asked_for(build):
    section = {"BN_EPS": 0.25, "BN_MOM": 0.5, "USE_BIAS_BEFORE_NORM": False, "NUM_HM_CONV": 3}
    shapes = {"SEPARATE_HEAD_CFG": {"HEAD_DICT": {"dim": {"out_channels": 3, "num_conv": 1}}}}
    part = build(**section, **shapes).heads_list[0]
    assert [len(part[name]) for name in ("center", "center_z", "dim", "rot", "hm", "iou")] == [2, 2, 1, 2, 3, 2]
    conv, norm, _ = part["rot"][0]
    assert (conv.bias, norm.eps, norm.momentum) == (None, 0.25, 0.5)
    assert part["rot"][-1].bias is not None


def test_constants_follow_the_module_but_stay_out_of_its_checkpoint(head):
    assert {name.split(".")[0] for name in head.state_dict()} == {"shared_conv", "heads_list"}
    assert deepcopy(head).to("meta").sites.centers.device.type == "meta"


def test_a_map_of_another_size_is_refused(head):
    with pytest.raises(ValueError, match=r"cells need a map of \(16, 20\), got \(16, 21\)"):
        head(torch.zeros(1, CHANNELS, 16, 21))


# Predictions


def test_sites_are_the_cells_row_by_row_and_always_the_same_tensor(head):
    sites = head.sites
    assert (sites.anchors, sites.stride, sites.num_classes) == (None, 8, 3)
    assert sites.centers.shape == (CELLS, 2)
    assert sites.centers[[0, 1, COLUMNS, -1]].tolist() == [
        pytest.approx(center) for center in ([0.4, -6.0], [1.2, -6.0], [0.4, -5.2], [15.6, 6.0])
    ]
    assert head.sites.centers is sites.centers


def test_decoded_predictions_agree_with_a_loop(head, class_names):
    output = random_output(head)
    found = head.decode(output)
    for frame, row, column in ((0, 0, 0), (1, 3, 7), (0, 15, 19), (1, 9, 2)):
        site = row * COLUMNS + column
        own = {
            label: (maps.hm[frame, channel, row, column].item(), maps.iou[frame, channel, row, column].item(), maps)
            for maps, part in zip(output, head.labels_of_parts, strict=True)
            for channel, label in enumerate(part)
        }
        assert found.cls_logits[frame, site].tolist() == pytest.approx([own[label][0] for label in range(3)])
        assert found.iou_logits[frame, site].tolist() == pytest.approx([own[label][1] for label in range(3)])
        best = max(own.values())[2]
        assert found.boxes[frame, site].tolist() == pytest.approx(
            slow_box(best, frame, row, column), rel=1e-4, abs=1e-4
        )


def test_perfect_maps_decode_to_the_objects(head, make_batch, small_geometry):
    batch = make_batch(small_geometry, objects=8, seed=3)
    output = random_output(head)
    for maps, targets in zip(output, head.assign_targets(batch), strict=True):
        split = targets.codes.split([2, 1, 3, 2], dim=1)
        for name, values in zip(("center", "center_z", "dim", "rot"), split, strict=True):
            getattr(maps, name).flatten(2)[targets.frames, :, targets.cells] = values
        maps.hm.copy_(20 * targets.heatmap - 10)
    for frame, found in enumerate(head.detect(output, CommonPostProcessing(IoURefinement(mode="none")))):
        sure = found.scores > 0.99
        real = batch.gt_labels[frame] >= 0
        boxes, labels = batch.gt_boxes[frame][real], batch.gt_labels[frame][real]
        gaps = (found.boxes[sure][:, None, :6] - boxes[None, :, :6]).abs().amax(dim=2)
        nearest = gaps.min(dim=0)
        assert (nearest.values < 1e-3).all()
        assert torch.equal(found.labels[sure][nearest.indices], labels)
        turned = found.boxes[sure][nearest.indices, 6] - boxes[:, 6]
        torch.testing.assert_close(turned.cos(), torch.ones(len(boxes)))


def test_boxes_carry_no_gradient_but_logits_do(head, bev):
    predictions = head.train().decode(head(bev))
    assert not predictions.boxes.requires_grad
    assert predictions.cls_logits.requires_grad
    assert predictions.iou_logits.requires_grad


# Losses


def test_losses_are_those_of_each_part_weighted(build, make_batch, small_geometry):
    code_weights = [1.0, 0.5, 2.0, 1.5, 1.0, 0.2, 3.0, 0.7]
    weights = {"cls_weight": 1.5, "loc_weight": 3.0, "code_weights": code_weights}
    head = build(has_branch=False, LOSS_CONFIG={"LOSS_WEIGHTS": weights})
    batch = make_batch(small_geometry, objects=8, seed=3)
    output = random_output(head)
    found = head.losses(output, batch)
    assert list(found) == ["hm_loss_head_0", "loc_loss_head_0", "hm_loss_head_1", "loc_loss_head_1"]
    for number, (maps, targets) in enumerate(zip(output, head.assign_targets(batch), strict=True)):
        codes = torch.cat([maps.center, maps.center_z, maps.dim, maps.rot], dim=1)
        rows = [codes[b, :, c // COLUMNS, c % COLUMNS] for b, c in zip(targets.frames, targets.cells, strict=True)]
        loc_loss = regression_loss(torch.stack(rows), targets.codes, torch.tensor(code_weights))
        assert found[f"loc_loss_head_{number}"].item() == pytest.approx(3 * loc_loss.item(), rel=1e-5)
        hm_loss = heatmap_loss(maps.hm, targets.heatmap)
        assert found[f"hm_loss_head_{number}"].item() == pytest.approx(1.5 * hm_loss.item(), rel=1e-5)


@pytest.mark.parametrize("label", ["decoded_box", "center"])
def test_iou_loss_is_equation_6_on_the_labels_asked_for(build, make_batch, small_geometry, label):
    head = build("two parts", IOU_HEAD={"LABEL": label, "WEIGHT": 0.5})
    batch = make_batch(small_geometry, objects=8, seed=3)
    output = random_output(head)
    logits = head.decode(output).iou_logits
    part_of_class, expected = {0: 0, 1: 1, 2: 0}, 0.0
    for frame in range(2):
        boxes, labels = batch.gt_boxes[frame], batch.gt_labels[frame]
        target = refinement.center_cell_targets(head.sites.centers, (0.8, 0.8), boxes, labels, 3)
        if label == "decoded_box":
            for kind, part in part_of_class.items():
                cells = [slow_box(output[part], frame, *divmod(cell, COLUMNS)) for cell in range(CELLS)]
                of_all = refinement.decoded_iou_targets(torch.tensor(cells), boxes, labels, 3)
                target[:, kind] = of_all[:, kind]
        assert (target > 0).sum() > 5
        error = (logits[frame].sigmoid() - target).square().sum().item()
        expected += 0.5 * error / max(int((target > 0).sum()), 1) / 2
    assert head.losses(output, batch)["iou_loss"].item() == pytest.approx(expected, rel=1e-4)


def test_the_iou_loss_of_another_heads_output_is_refused(head, make_batch, small_geometry):
    output = tuple(dataclasses.replace(maps, iou=None) for maps in random_output(head))
    with pytest.raises(ValueError, match="every part needs its iou map"):
        head.losses(output, make_batch(small_geometry))


# Detections


@pytest.mark.parametrize(
    "settings",
    [
        IoURefinement(mode="none"),
        IoURefinement(delta=0.3),
        IoURefinement(delta=0.3, channel="best_class"),
        IoURefinement(mode="rescore", power=0.3),
    ],
    ids=str,
)
def test_parts_are_refined_and_detected_by_themselves(head, settings):
    output = random_output(head)
    for frame, found in enumerate(head.detect(output, CommonPostProcessing(settings))):
        expected = []
        for maps, labels in zip(output, head.labels_of_parts, strict=True):
            boxes = torch.tensor([slow_box(maps, frame, *divmod(cell, COLUMNS)) for cell in range(CELLS)])
            scores, iou = (m[frame].reshape(len(labels), -1).T.sigmoid() for m in (maps.hm, maps.iou))
            scores, keep = refinement.refine_scores(scores, iou, settings)
            part = detect_centers(boxes, scores, keep, head.config.post_processing)
            rows = zip(part.scores.tolist(), part.labels.tolist(), part.boxes.tolist(), strict=True)
            expected += [(score, labels[channel], box) for score, channel, box in rows]
        expected.sort(key=lambda row: -row[0])
        assert found.scores.tolist() == pytest.approx([score for score, *_ in expected], rel=1e-4)
        assert found.labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(found.boxes, torch.tensor([box for *_, box in expected]), rtol=1e-3, atol=1e-3)
        assert len(expected) > 10


def test_mask_is_what_a_branch_is_for_by_default(build):
    head, plain = build(), build(has_branch=False)
    output = random_output(head)
    without = tuple(dataclasses.replace(maps, iou=None) for maps in output)
    pairs = (
        (head.detect(output, CommonPostProcessing()), head.detect(output, CommonPostProcessing(IoURefinement()))),
        (
            plain.detect(without, CommonPostProcessing()),
            head.detect(output, CommonPostProcessing(IoURefinement(mode="none"))),
        ),
    )
    for found, expected in pairs:
        assert all(torch.equal(one.scores, other.scores) for one, other in zip(found, expected, strict=True))
    assert len(pairs[0][0][0].scores) < len(pairs[1][0][0].scores)


def test_cells_without_a_number_are_not_detected(head):
    output = random_output(head)
    for maps in output:
        for name in ("hm", "dim", "iou"):
            getattr(maps, name)[0, :, 2:9] = torch.nan
    found = head.detect(output, CommonPostProcessing())
    assert all(frame.boxes.isfinite().all() and frame.scores.isfinite().all() for frame in found)
    assert all(len(frame.scores) > 5 for frame in found)


# Configuration


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"SEPARATE_HEAD_CFG": {"HEAD_ORDER": ["center", "center_z", "dim", "rot", "vel"]}}, "vel in .*take it out"),
        ({"SEPARATE_HEAD_CFG": {"HEAD_DICT": {"vel": {"out_channels": 2, "num_conv": 2}}}}, "velocities are not pred"),
        (
            {"SEPARATE_HEAD_CFG": {"HEAD_DICT": {"iou": {"out_channels": 1}}}},
            "asked for by DENSE_HEAD.NAME: CenterHeadI",
        ),
        (
            {"SEPARATE_HEAD_CFG": {"HEAD_ORDER": ["center", "dim", "center_z", "rot"]}},
            "must be center, center_z, dim, rot",
        ),
        ({"SEPARATE_HEAD_CFG": {"HEAD_DICT": {"rot": {"out_channels": 1}}}}, "rot of HEAD_DICT needs out_channels 2"),
        ({"SEPARATE_HEAD_CFG": {"HEAD_DICT": {"rot": {"num_conv": 0}}}}, "num_conv of at least 1"),
        ({"CLASS_NAMES_EACH_HEAD": [["Car"], ["Cyclist"]]}, "must name each of Car, Pedestrian, Cyclist once"),
        (
            {"CLASS_NAMES_EACH_HEAD": [["Car", "Cyclist"], ["Pedestrian", "Car"]]},
            "once, and at least one of them in ev",
        ),
        ({"CLASS_NAMES_EACH_HEAD": [["Car", "Cyclist", "Pedestrian"], ["Bus"]]}, r"got \[\['Car', .*\], \['Bus'\]\]"),
        ({"CLASS_AGNOSTIC": True}, "set CLASS_AGNOSTIC: False"),
        ({"NUM_HM_CONV": 0}, "NUM_HM_CONV and SHARED_CONV_CHANNEL must be at least 1"),
        ({"LOSS_CONFIG": {"LOSS_WEIGHTS": {"code_weights": [1.0] * 10}}}, "code_weights needs 8 entries"),
        ({"IOU_HEAD": {"LABEL": "anchor"}}, "LABEL must be decoded_box or center, got 'anchor'"),
        (
            {"TARGET_ASSIGNER_CONFIG": {"FEATURE_MAP_STRIDE": 8, "OVERLAP": 1}},
            "unknown key OVERLAP in TARGET_ASSIGNER_C",
        ),
        ({"POST_PROCESSING": {"USE_IOU_TO_RECTIFY_SCORE": True}}, "unknown key USE_IOU_TO_RECTIFY_SCORE"),
        ({"POST_PROCESSING": {"NMS_CONFIG": {"NMS_TYPE": "circle_nms"}}}, "NMS_TYPE must be one of"),
    ],
)
def test_what_cannot_be_built_is_refused(small_center_cfg, small_geometry, class_names, section, message):
    small_center_cfg["DENSE_HEAD"].update(section)
    with pytest.raises(ConfigError, match=message):
        DENSE_HEADS.build(small_center_cfg, CHANNELS, class_names, small_geometry)
