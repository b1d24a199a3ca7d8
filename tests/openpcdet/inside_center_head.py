"""CenterHeadIoU: its branch, its loss, and what it takes out before top-k and NMS; decoding against OpenPCDet's own."""

from __future__ import annotations

import math
import re

import pytest
import torch
from pcdet.models import dense_heads
from pcdet.ops.iou3d_nms import iou3d_nms_utils
from small_models import CLASSES, NUM_CELLS, RANGE, STRIDE, VOXEL, center_head, frame

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.dense import decode, has_iou_branch, is_center_head, raw_maps, sites_of
from cakdp_ext.refinement import IoURefinement
from cakdp_ext.types import LidarGeometry

PARTS = {
    "one part": [CLASSES],
    "two parts": [["Car"], ["Pedestrian", "Cyclist"]],
    "two parts, order turned": [["Cyclist", "Pedestrian"], ["Car"]],
    "three parts": [["Pedestrian"], ["Cyclist"], ["Car"]],
}
GRID = round(NUM_CELLS**0.5)
NO_NMS = {"POST_PROCESSING": {"NMS_CONFIG": {"NMS_TYPE": "keep_all"}}}


@pytest.fixture(autouse=True)
def _keep_all(monkeypatch):
    """Add a kind of NMS that suppresses nothing; OpenPCDet looks them up by name."""
    monkeypatch.setattr(
        iou3d_nms_utils, "keep_all", lambda boxes, scores, *_, **__: (scores.argsort(descending=True), None), False
    )


@pytest.fixture
def features():
    return torch.randn(2, 8, GRID, GRID, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def objects():
    """Two frames of objects, padded: boxes and the 1-based label."""
    rows = torch.zeros(2, 7, 8)
    for number, count in enumerate((6, 4)):
        some = frame(number, count)
        rows[number, :count, :7] = torch.from_numpy(some["gt_boxes"])
        rows[number, :count, 7] = torch.tensor([CLASSES.index(name) + 1.0 for name in some["gt_names"]])
    return rows


@pytest.fixture(params=PARTS)
def parts(request):
    return PARTS[request.param]


def data_of(features, objects=None):
    data = {"batch_size": len(features), "spatial_features_2d": features}
    return data if objects is None else {**data, "gt_boxes": objects}


def detect(head, features):
    with torch.no_grad():
        return head.eval()(data_of(features))["final_box_dicts"]


def trained(head, features, objects):
    """Run a training forward and give the loss and what is logged."""
    head.train()(data_of(features, objects))
    return head.get_loss()


def class_ids(names):
    return [CLASSES.index(name) for name in names]


# Decoding


def test_best_cells_are_those_that_openpcdet_finds(parts, features):
    head = center_head(parts, **NO_NMS).eval()
    maps = raw_maps(head, features)
    scores = decode(head, maps).cls_logits.detach().sigmoid()
    for number, found in enumerate(detect(head, features)):
        expected = [scores[number][:, class_ids(names)].flatten().topk(NUM_CELLS).values for names in parts]
        torch.testing.assert_close(found["pred_scores"].sort().values, torch.cat(expected).sort().values)
        counts = [sum((found["pred_labels"] == i + 1).sum().item() for i in class_ids(names)) for names in parts]
        assert counts == [NUM_CELLS] * len(parts)


def test_boxes_are_those_that_openpcdet_decodes(features):
    head = center_head(PARTS["three parts"], **NO_NMS).eval()
    predictions = decode(head, raw_maps(head, features))
    assert predictions.cls_logits.shape == (2, NUM_CELLS, 3)
    assert predictions.boxes.shape == (2, NUM_CELLS, 7)
    assert predictions.iou_logits is None
    for number, found in enumerate(detect(head, features)):
        best = predictions.cls_logits[number].max(dim=1)
        for box, logit, label in zip(predictions.boxes[number], best.values, best.indices, strict=True):
            same_class = found["pred_labels"] == label + 1
            row = (found["pred_scores"][same_class] - logit.sigmoid()).abs().argmin()
            torch.testing.assert_close(found["pred_boxes"][same_class][row], box, atol=1e-5, rtol=1e-5)
            assert found["pred_scores"][same_class][row].item() == pytest.approx(logit.sigmoid().item(), rel=1e-6)


def test_sites_are_the_cells_row_by_row(features):
    head = center_head()
    sites = sites_of(head, LidarGeometry(tuple(RANGE), tuple(VOXEL)))
    assert (sites.anchors, sites.stride, sites.num_classes) == (None, STRIDE, 3)
    maps = raw_maps(head, features)
    for part in maps["pred_dicts"]:
        part["center"] = torch.full_like(part["center"], 0.5)
    boxes = decode(head, maps).boxes
    torch.testing.assert_close(boxes[..., :2], sites.centers.expand(2, -1, -1), atol=1e-5, rtol=0)


def test_gradient_reaches_the_logits_and_no_box(parts, features):
    head = center_head(parts, name="CenterHeadIoU")
    predictions = decode(head, raw_maps(head, features))
    assert not predictions.boxes.requires_grad
    (predictions.cls_logits.sum() + predictions.iou_logits.sum()).backward()
    with_gradient = {
        re.sub(r"heads_list\.\d\.", "", name).split(".")[0] for name, p in head.named_parameters() if p.grad is not None
    }
    assert with_gradient == {"shared_conv", "hm", "iou"}


def test_a_map_of_another_stride_is_an_error(features):
    head = center_head(TARGET_ASSIGNER_CONFIG={"FEATURE_MAP_STRIDE": 4})
    with pytest.raises(ConfigError, match=r"CenterHead has 8 x 8 cells, but .* FEATURE_MAP_STRIDE 4 give 16 x 16"):
        decode(head, raw_maps(head, features))


# The branch


def test_branch_has_two_convolutions_and_one_map_a_class(parts, features):
    plain, head = center_head(parts), center_head(parts, name="CenterHeadIoU")
    assert has_iou_branch(head)
    assert is_center_head(head)
    assert not has_iou_branch(plain)
    further = set(head.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) < set(head.state_dict())
    for number, names in enumerate(parts):
        shapes = {name: tuple(value.shape) for name, value in head.state_dict().items() if f"{number}.iou" in name}
        assert shapes[f"heads_list.{number}.iou.0.0.weight"] == (16, 16, 3, 3)
        assert shapes[f"heads_list.{number}.iou.1.weight"] == (len(names), 16, 3, 3)
        assert shapes.keys() == {re.sub(r"\d\.hm", f"{number}.iou", name) for name in further_like(plain, number)}
    assert {name.split(".")[2] for name in further} == {"iou"}
    logits = decode(head, raw_maps(head, features)).iou_logits
    assert logits.shape == (2, NUM_CELLS, 3)
    for number, names in enumerate(parts):
        channels = raw_maps(head, features)["pred_dicts"][number]["iou"].flatten(2).transpose(1, 2)
        assert torch.equal(logits[:, :, class_ids(names)], channels)


def further_like(plain, number):
    return {name for name in plain.state_dict() if f"{number}.hm" in name}


def test_fresh_branch_expects_nothing():
    head = center_head(name="CenterHeadIoU")
    assert head.heads_list[0].iou[-1].bias.sigmoid().tolist() == pytest.approx([0.01] * 3)


def test_norms_and_biases_of_the_branch_are_those_of_the_others():
    head = center_head(name="CenterHeadIoU", USE_BIAS_BEFORE_NORM=False, BN_EPS=0.25, BN_MOM=0.5)
    (conv, norm, _), (other_conv, other, _) = head.heads_list[0].iou[0], head.heads_list[0].hm[0]
    assert conv.bias is other_conv.bias is None
    assert (norm.eps, norm.momentum) == (other.eps, other.momentum)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"SEPARATE_HEAD_CFG": {"HEAD_DICT": {"iou": {"out_channels": 1, "num_conv": 2}}}},
            "HEAD_DICT .* has iou as well",
        ),
        (
            {"POST_PROCESSING": {"USE_IOU_TO_RECTIFY_SCORE": True}},
            r"USE_IOU_TO_RECTIFY_SCORE of MODEL.DENSE_HEAD .*\.IOU_REFINEMENT: {MODE: rescore}",
        ),
        ({"IOU_HEAD": {"LABEL": "anchor"}}, "LABEL must be decoded_box or center, got 'anchor'"),
        ({"IOU_HEAD": {"BETA": 1}}, "unknown key BETA in MODEL.DENSE_HEAD.IOU_HEAD; valid keys: LABEL, WEIGHT"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_an_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        center_head(name="CenterHeadIoU", **changes)


def test_openpcdets_own_iou_branch_stays_its_own(features, objects):
    own = {"SEPARATE_HEAD_CFG": {"HEAD_DICT": {"iou": {"out_channels": 1, "num_conv": 2}}}}
    head = center_head(**own)
    assert not has_iou_branch(head)
    assert decode(head, raw_maps(head, features)).iou_logits is None
    assert "iou_loss" not in trained(head, features, objects)[1]


# The loss


def slow_iou_3d(box, other):
    """Give the IoU by OpenPCDet's own function, with its margin of a centimetre."""
    return iou3d_nms_utils.boxes_iou3d_gpu(box[None], other[None]).item()


def slow_targets(label, maps, parts, objects):
    """Give ``(B, A, C)`` labels, cell by cell."""
    targets = torch.zeros(2, NUM_CELLS, 3)
    for part, names in zip(maps, parts, strict=True):
        for number, row, column in [(b, y, x) for b in range(2) for y in range(GRID) for x in range(GRID)]:
            values = {
                name: part[name][number, :, row, column].detach() for name in ("center", "center_z", "dim", "rot")
            }
            size = VOXEL[0] * STRIDE
            x, y = ((column, row)[k] * size + values["center"][k] * size + RANGE[k] for k in range(2))
            angle = torch.atan2(values["rot"][1], values["rot"][0])
            box = torch.stack([x, y, values["center_z"][0], *values["dim"].exp(), angle])
            for item in objects[number]:
                kind = int(item[7]) - 1
                if kind < 0 or CLASSES[kind] not in names:
                    continue
                if label == "decoded_box":
                    value = slow_iou_3d(box, item[:7])
                else:
                    at = [math.floor((item[k].item() - RANGE[k]) / size) for k in range(2)]
                    value = float(at == [column, row])
                cell = targets[number, row * GRID + column]
                cell[kind] = max(cell[kind].item(), value)
    return targets


@pytest.mark.parametrize("label", ["decoded_box", "center"])
def test_loss_is_openpcdets_own_and_equation_six(label, parts, features, objects):
    head = center_head(parts, name="CenterHeadIoU", IOU_HEAD={"LABEL": label, "WEIGHT": 0.5})
    plain = center_head(parts)
    plain.load_state_dict(head.state_dict(), strict=False)
    before = objects.clone()
    for part in head.heads_list:
        part.dim[-1].bias.data += 0.7
    plain.load_state_dict(head.state_dict(), strict=False)
    loss, logged = trained(head, features, objects)
    assert torch.equal(objects, before)
    expected, expected_logged = own_loss(plain, parts, features, objects)
    maps = head.forward_ret_dict["pred_dicts"]
    targets = slow_targets(label, maps, parts, objects)
    assert (targets > 0).sum() >= (8 if label == "center" else 15)
    iou = decode(head, head.forward_ret_dict).iou_logits.detach().sigmoid()
    frames = [(iou[b] - targets[b]).square().sum() / max((targets[b] > 0).sum(), 1) for b in range(2)]
    iou_loss = 0.5 * sum(frames) / 2
    assert logged["iou_loss"] == pytest.approx(iou_loss.item(), rel=2e-3 if label == "decoded_box" else 1e-5)
    assert loss.item() == pytest.approx(expected + logged["iou_loss"], rel=1e-5)
    assert {name: value for name, value in logged.items() if name != "iou_loss"} == pytest.approx(
        expected_logged, rel=1e-5
    )


def own_loss(plain, parts, features, objects):
    """Give OpenPCDet's loss with each part's targets assigned for itself."""
    targets = {}
    for names in parts:
        plain.class_names_each_head = [names]
        for key, values in plain.assign_targets(objects.clone(), feature_map_size=[GRID, GRID]).items():
            targets.setdefault(key, []).extend(values)
    plain.class_names_each_head = parts
    plain.train()(data_of(features, objects.clone()))
    plain.forward_ret_dict["target_dicts"] = targets
    loss, logged = plain.get_loss()
    return loss.item(), logged


@pytest.mark.parametrize("name", ["one part", "two parts"])
def test_targets_are_openpcdets_where_parts_keep_the_order_of_the_classes(name, features, objects):
    head, plain = center_head(PARTS[name], name="CenterHeadIoU"), center_head(PARTS[name])
    ours = head.assign_targets(objects, feature_map_size=[GRID, GRID])
    theirs = plain.assign_targets(objects.clone(), feature_map_size=[GRID, GRID])
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        assert len(values) == len(ours[key])
        assert all(torch.equal(a, b) for a, b in zip(values, ours[key], strict=True)), key
    assert head.class_names_each_head == PARTS[name]


def test_a_pedestrian_is_no_car_where_parts_turn_the_order(features, objects):
    head = center_head(PARTS["two parts, order turned"], name="CenterHeadIoU")
    masks = head.assign_targets(objects, feature_map_size=[GRID, GRID])["masks"]
    cars = (objects[..., 7] == 1).sum(dim=1)
    assert masks[1].sum(dim=1).tolist() == cars.tolist()


def test_iou_loss_reaches_the_branch_alone_among_the_parts(parts, features, objects):
    head = center_head(parts, name="CenterHeadIoU")
    head.train()(data_of(features, objects))
    head._iou_loss(head.forward_ret_dict["pred_dicts"], objects).backward()
    reached = {
        name.split(".")[2] for name, p in head.named_parameters() if name.startswith("heads") and p.grad is not None
    }
    assert reached == {"iou"}


def test_frames_without_objects_are_background(parts, features):
    head = center_head(parts, name="CenterHeadIoU")
    loss, logged = trained(head, features, torch.zeros(2, 0, 8))
    assert math.isfinite(loss.item())
    assert 0 < logged["iou_loss"] < NUM_CELLS * 3


def test_boxes_with_a_velocity_have_their_label_last(features, objects):
    head = center_head(name="CenterHeadIoU", LOSS_CONFIG={"LOSS_WEIGHTS": {"code_weights": [1.0] * 8}})
    head.train()(data_of(features, objects))
    expected = head._iou_loss(head.forward_ret_dict["pred_dicts"], objects)
    moving = torch.cat([objects[..., :7], torch.full((2, 7, 2), 5.0), objects[..., 7:]], dim=2)
    assert torch.equal(head._iou_loss(head.forward_ret_dict["pred_dicts"], moving), expected)


def test_loss_under_autocast_is_that_of_float32(features, objects):
    head = center_head(name="CenterHeadIoU")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head.train()(data_of(features, objects))
        maps = head.forward_ret_dict["pred_dicts"]
        assert maps[0]["iou"].dtype is torch.bfloat16
        loss = head._iou_loss(maps, objects)
    assert loss.dtype is torch.float32
    plain = head._iou_loss([{name: value.float() for name, value in part.items()} for part in maps], objects)
    assert torch.equal(loss, plain)


# Evaluation


def candidates(head, features):
    """Give every score above zero as ``(frame, part, cell, class, score, iou)``, by our own reading of the maps."""
    with torch.no_grad():
        predictions = decode(head, raw_maps(head.eval(), features))
    return predictions.cls_logits.sigmoid(), predictions.iou_logits.sigmoid()


def refined(name="one part", k=NUM_CELLS, thresh=0.0, nms=None, **settings):
    nms = {"NMS_TYPE": "nms_gpu", "NMS_THRESH": nms} if nms else {"NMS_TYPE": "keep_all"}
    post = {"MAX_OBJ_PER_SAMPLE": k, "SCORE_THRESH": thresh, "NMS_CONFIG": nms}
    head = center_head(PARTS[name], name="CenterHeadIoU", POST_PROCESSING=post)
    for part in head.heads_list:
        torch.nn.init.kaiming_normal_(part.iou[-1].weight).data.mul_(2)
        part.iou[-1].bias.data = torch.linspace(-0.5, -2.5, len(part.iou[-1].bias))
    head.iou_refinement = IoURefinement(**settings)
    return head


def pairs(found):
    return sorted(zip(found["pred_labels"].tolist(), found["pred_scores"].tolist(), strict=True))


def best(rows, k=NUM_CELLS):
    return sorted(rows, key=lambda row: -row[1])[:k]


@pytest.mark.parametrize("channel", ["highest", "best_class"])
@pytest.mark.parametrize("name", PARTS)
def test_mask_takes_cells_out_of_each_part(name, channel, features):
    head = refined(name, mode="mask", delta=0.4, channel=channel)
    scores, iou = candidates(head, features)
    taken = 0
    for number, found in enumerate(detect(head, features)):
        expected = []
        for ids in map(class_ids, PARTS[name]):
            rows = []
            for cell in range(NUM_CELLS):
                own, ious = scores[number, cell, ids].tolist(), iou[number, cell, ids].tolist()
                judged = max(ious) if channel == "highest" else ious[own.index(max(own))]
                rows += [(kind + 1, score) for kind, score in zip(ids, own, strict=True)] if judged > 0.4 else []
            taken += NUM_CELLS * len(ids) - len(rows)
            expected += best(rows)
        assert [label for label, _ in pairs(found)] == [label for label, _ in sorted(expected)]
        assert [s for _, s in pairs(found)] == pytest.approx([s for _, s in sorted(expected)], rel=1e-5)
    assert 10 < taken < 2 * NUM_CELLS * 3 - 10


@pytest.mark.parametrize("name", PARTS)
def test_rescoring_mixes_score_and_iou(name, features):
    head = refined(name, mode="rescore", power=0.3)
    scores, iou = candidates(head, features)
    for number, found in enumerate(detect(head, features)):
        mixed = scores[number] ** 0.7 * iou[number] ** 0.3
        expected = []
        for ids in map(class_ids, PARTS[name]):
            expected += best([(kind + 1, value) for kind in ids for value in mixed[:, kind].tolist()])
        assert [s for _, s in pairs(found)] == pytest.approx([s for _, s in sorted(expected)], rel=1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_without_a_mode_the_branch_changes_nothing(name, features):
    head, plain = refined(name, mode="none"), center_head(PARTS[name], **NO_NMS)
    plain.load_state_dict(head.state_dict(), strict=False)
    fresh = center_head(PARTS[name], name="CenterHeadIoU", **NO_NMS)
    fresh.load_state_dict(head.state_dict())
    for other in (head, fresh):
        for found, expected in zip(detect(other, features), detect(plain, features), strict=True):
            assert all(torch.equal(found[key], expected[key]) for key in expected)
            assert found.keys() == expected.keys()


def test_mask_comes_before_top_k(features):
    head = refined(k=5, mode="mask", delta=0.4)
    scores, iou = candidates(head, features)
    for number, found in enumerate(detect(head, features)):
        keep = iou[number].amax(dim=1) > 0.4
        assert not keep[scores[number].amax(dim=1).topk(5).indices].all()
        expected = scores[number][keep].flatten().topk(5).values
        torch.testing.assert_close(found["pred_scores"], expected)


def test_mask_comes_before_nms(features):
    scores, iou = candidates(refined(mode="mask", delta=0.4), features)
    found = {mode: detect(refined(nms=0.01, mode=mode, delta=0.4), features) for mode in ("none", "mask")}
    for number, (before, after) in enumerate(zip(found["none"], found["mask"], strict=True)):
        kept = scores[number][iou[number].amax(dim=1) > 0.4].flatten()
        assert all((kept - score).abs().min() < 1e-6 for score in after["pred_scores"])
        assert not all((kept - score).abs().min() < 1e-6 for score in before["pred_scores"])
        assert any((before["pred_scores"] - score).abs().min() > 1e-6 for score in after["pred_scores"])


@pytest.mark.parametrize("thresh", [0.0, None, 0.05])
def test_nothing_is_found_where_every_cell_is_out(thresh, features):
    head = refined(thresh=thresh, mode="mask", delta=0.9999)
    for found in detect(head, features):
        assert found["pred_boxes"].shape == (0, 7)
        assert found["pred_scores"].shape == found["pred_labels"].shape == (0,)


def test_without_a_score_threshold_masked_cells_do_not_come_back(features):
    head = refined(thresh=None, mode="mask", delta=0.4)
    _, iou = candidates(head, features)
    for number, found in enumerate(detect(head, features)):
        keep = (iou[number].amax(dim=1) > 0.4).sum().item()
        assert len(found["pred_scores"]) == min(3 * keep, NUM_CELLS)
        assert (found["pred_scores"] > 0).all()


def test_the_head_is_registered():
    assert dense_heads.__all__["CenterHeadIoU"] is type(center_head(name="CenterHeadIoU"))
