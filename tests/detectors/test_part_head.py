from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.part_head import PartPredictions, PointIntraPartOffsetHead
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.registry import POINT_HEADS
from cakdp_ext.types import Batch


def section(**changes) -> dict:
    return {
        "NAME": "PointIntraPartOffsetHead",
        "CLS_FC": [],
        "PART_FC": [],
        "CLASS_AGNOSTIC": True,
        "TARGET_CONFIG": {"GT_EXTRA_WIDTH": [0.2, 0.2, 0.2]},
        "LOSS_CONFIG": {
            "LOSS_REG": "smooth-l1",
            "LOSS_WEIGHTS": {"point_cls_weight": 1.0, "point_part_weight": 1.0},
        },
        **changes,
    }


def build(**changes) -> PointIntraPartOffsetHead:
    torch.manual_seed(0)
    return POINT_HEADS.build({"POINT_HEAD": section(**changes)}, 16, ("Car", "Pedestrian", "Cyclist"))


def scene() -> tuple[PointFeatures, Batch]:
    """Five points a frame: two in a car, one in a pedestrian, one just outside of it, one far away."""
    boxes = torch.tensor([[[0.0, 0, 0, 4, 2, 2, 0], [10, 0, 0, 1, 1, 2, 1.0], [0] * 7]] * 2)
    labels = torch.tensor([[0, 1, -1]] * 2)
    xyz = torch.tensor([[1.0, 0.5, 0.0], [-1, 0, 0.5], [10, 0.2, 0], [10, 0, 1.05], [30, 0, 0]]).repeat(2, 1)
    frames = torch.arange(2).repeat_interleave(5)
    features = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(0, 5, 4), torch.zeros(0, 4).int(), torch.zeros(0).int()
    return PointFeatures(xyz, frames, features), Batch(2, *nothing, boxes, labels, ("0", "1"))


def focal(logit: float, is_target: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if is_target else -0.75 * p**2 * math.log(1 - p)


@pytest.mark.parametrize("is_agnostic", [True, False])
def test_losses_agree_with_plain_loops(is_agnostic):
    head, (points, batch) = build(CLASS_AGNOSTIC=is_agnostic), scene()
    output = head(points)
    assert output.cls_logits.shape == (10, 1 if is_agnostic else 3)
    losses = head.losses(output, points, batch)
    labels = [0, 0, 1, None, -1] * 2
    located = {0: (0.75, 0.75, 0.5), 1: (0.25, 0.5, 0.75)}
    cls_loss, part_loss = 0.0, 0.0
    for row, label in enumerate(labels):
        if label is None:
            continue
        for channel, logit in enumerate(output.cls_logits[row].tolist()):
            cls_loss += focal(logit, label >= 0 if is_agnostic else label == channel) / 6
        if label >= 0:
            turned = (0.5 + 0.2 * math.sin(1.0), 0.5 + 0.2 * math.cos(1.0), 0.5)
            wanted = located.get(row % 5, turned)
            for logit, part in zip(output.part_logits[row].tolist(), wanted, strict=True):
                p = 1 / (1 + math.exp(-logit))
                part_loss -= (part * math.log(p) + (1 - part) * math.log(1 - p)) / 18
    assert losses["point_cls_loss"].item() == pytest.approx(cls_loss, rel=1e-5)
    assert losses["point_part_loss"].item() == pytest.approx(part_loss, rel=1e-5)


def test_weights_scale_their_losses():
    points, batch = scene()
    plain, weighted = build(), build(LOSS_CONFIG={"LOSS_WEIGHTS": {"point_cls_weight": 3.0, "point_part_weight": 5.0}})
    once, more = (head.losses(head(points), points, batch) for head in (plain, weighted))
    assert_close(more["point_cls_loss"], 3 * once["point_cls_loss"])
    assert_close(more["point_part_loss"], 5 * once["point_part_loss"])


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_point_trains_hidden_layers_too(count):
    head, (points, batch) = build(CLS_FC=[8], PART_FC=[8, 4]).train(), scene()
    few = PointFeatures(points.xyz[4:][:count], points.frames[4:][:count], points.features[4:][:count])
    losses = head.losses(head(few), few, batch)
    sum(losses.values()).backward()
    assert losses["point_part_loss"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert (losses["point_cls_loss"] > 0) == (count > 0)


def test_hidden_layers_have_the_names_of_openpcdet():
    names = [name for name, _ in build(CLS_FC=[8], PART_FC=[]).named_parameters()]
    layers = ["0.weight", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert names == [*(f"cls_layers.{name}" for name in layers), "part_reg_layers.0.weight", "part_reg_layers.0.bias"]


def test_scores_and_parts_are_read_off_the_logits():
    found = PartPredictions(torch.tensor([[-1.0, 2.0]]), torch.tensor([[0.0, 100.0, -100.0]]))
    assert found.scores.item() == pytest.approx(1 / (1 + math.exp(-2)))
    assert_close(found.parts, torch.tensor([[0.5, 1.0, 0.0]]))


def test_losses_stay_in_float32_under_autocast():
    head, (points, batch) = build(), scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head.losses(head(points), replace(points), batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"REG_FC": [8]}, "unknown key REG_FC in MODEL.POINT_HEAD; valid keys: CLS_FC"),
        ({"TARGET_CONFIG": {"GT_EXTRA_WIDTH": [0.2, -0.2, 0.2]}}, "GT_EXTRA_WIDTH must be three widths of at least 0"),
        ({"TARGET_CONFIG": {"GT_EXTRA_WIDTH": [0.2]}}, "GT_EXTRA_WIDTH must be three widths of at least 0"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)
