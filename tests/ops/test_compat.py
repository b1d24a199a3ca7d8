"""OpenPCDet's rule with its margin of 1 cm: how far it is off, by its published magnitudes and by a slow search."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from shapely_boxes import jittered, random_boxes

from cakdp_ext import ops

pytestmark = pytest.mark.usefixtures("implementation")
CAR, CYCLIST, PEDESTRIAN, SMALL = (3.9, 1.6), (1.76, 0.6), (0.8, 0.6), (0.3, 0.3)


def pairs_of(size, amount, count=4000, dtype=torch.float32):
    """Boxes of a size, and the same a little moved and turned."""
    boxes = random_boxes(count, 0, spread=50)
    boxes[:, 3:6] = torch.tensor([*size, 1.5])
    moved = jittered(boxes, 1, amount)
    moved[:, 3:6] = boxes[:, 3:6]
    return boxes.to(dtype), moved.to(dtype)


def slow_overlap(box1, box2):
    """The rule as it reads, for one pair."""
    shapes, vertices = [], []
    for x, y, _, dx, dy, _, heading in (box1, box2):
        signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
        shapes.append([complex(x, y) + complex(i * dx, j * dy) / 2 * cmath.exp(1j * heading) for i, j in signs])
    for corners, other in ((shapes[0], box2), (shapes[1], box1)):
        for corner in corners:
            local = (corner - complex(*other[:2])) * cmath.exp(-1j * other[6])
            if abs(local.real) <= other[3] / 2 + 0.01 and abs(local.imag) <= other[4] / 2 + 0.01:
                vertices.append(corner)
    for a, b in zip(shapes[0], shapes[0][1:] + shapes[0][:1], strict=True):
        for c, d in zip(shapes[1], shapes[1][1:] + shapes[1][:1], strict=True):
            across = ((b - a).conjugate() * (d - c)).imag
            if across == 0:
                continue
            s, t = ((c - a).conjugate() * (d - c)).imag / across, ((c - a).conjugate() * (b - a)).imag / across
            if 0 < s < 1 and 0 < t < 1:
                vertices.append(a + s * (b - a))
    if len(vertices) < 3:
        return 0.0
    middle = sum(vertices) / len(vertices)
    vertices.sort(key=lambda vertex: cmath.phase(vertex - middle))
    first = vertices[0]
    fan = zip(vertices[1:], vertices[2:], strict=False)
    return abs(sum(((b - first).conjugate() * (c - first)).imag for b, c in fan)) / 2


@pytest.mark.parametrize("size", [CAR, PEDESTRIAN, SMALL])
@pytest.mark.parametrize("amount", [0.02, 0.3, 0.8])
def test_overlap_is_that_of_a_slow_search(device, dtype, size, amount):
    boxes1, boxes2 = pairs_of(size, amount, 150, dtype)
    wanted = [slow_overlap(*pair) for pair in zip(boxes1.tolist(), boxes2.tolist(), strict=True)]
    found = ops.boxes_overlap_bev_aligned(boxes1.to(device), boxes2.to(device), compat=True).double().cpu()
    tolerance = {"atol": 1e-5 if dtype == torch.float32 else 1e-12, "rtol": 1e-5 if dtype == torch.float32 else 1e-12}
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), **tolerance)
    assert (found > 0).double().mean() > 0.5


@pytest.mark.parametrize(
    ("size", "least", "most"), [(CAR, 4e-3, 1.2e-2), (CYCLIST, 1e-2, 4e-2), (PEDESTRIAN, 2e-2, 6e-2)]
)
def test_error_has_the_published_magnitude(device, size, least, most):
    """Up to 5e-3 for a car, 2.5e-2 for a cyclist, 3.6e-2 for a pedestrian, and only ever upwards."""
    boxes1, boxes2 = (boxes.to(device) for boxes in pairs_of(size, 0.3))
    error = ops.iou_bev_aligned(boxes1, boxes2, compat=True) - ops.iou_bev_aligned(boxes1, boxes2)
    assert least < error.max() < most
    assert error.min() > -1e-6


def test_pedestrians_5_mm_apart_overlap(device):
    boxes = torch.tensor([[0, 0, 0, 0.8, 0.6, 1.7, 0], [0.805, 0, 0, 0.8, 0.6, 1.7, 0]], device=device)
    assert ops.iou_bev(boxes[:1], boxes[1:], compat=True).item() == pytest.approx(0.003, abs=3e-4)
    assert ops.iou_3d(boxes[:1], boxes[1:], compat=True).item() == pytest.approx(0.003, abs=3e-4)
    assert ops.iou_bev(boxes[:1], boxes[1:]).item() == 0


def test_iou_of_small_boxes_exceeds_one(device):
    boxes1, boxes2 = (boxes.to(device) for boxes in pairs_of(SMALL, 0.05))
    assert ops.iou_bev_aligned(boxes1, boxes2, compat=True).max() > 1.05
    assert ops.iou_3d_aligned(boxes1, boxes2, compat=True).max() > 1
    assert ops.iou_3d_aligned(boxes1, boxes2).max() <= 1


@pytest.mark.parametrize("op", [ops.boxes_overlap_bev, ops.iou_bev, ops.iou_3d])
def test_pairwise_is_aligned_for_each_pair(device, op):
    boxes1, boxes2 = random_boxes(40, 4).to(device), random_boxes(50, 5).to(device)
    aligned = {ops.boxes_overlap_bev: ops.boxes_overlap_bev_aligned, ops.iou_bev: ops.iou_bev_aligned}
    each = aligned.get(op, ops.iou_3d_aligned)(boxes1.repeat_interleave(50, 0), boxes2.repeat(40, 1), compat=True)
    torch.testing.assert_close(op(boxes1, boxes2, compat=True), each.view(40, 50), atol=0, rtol=0)


def test_overlap_is_symmetric(device, dtype):
    boxes1, boxes2 = (boxes.to(device) for boxes in pairs_of(PEDESTRIAN, 0.1, dtype=dtype))
    forth = ops.boxes_overlap_bev_aligned(boxes1, boxes2, compat=True)
    torch.testing.assert_close(ops.boxes_overlap_bev_aligned(boxes2, boxes1, compat=True), forth, atol=0, rtol=0)


@pytest.mark.parametrize("column", [0, 1, 3, 4, 6])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_box_without_proper_numbers_overlaps_nothing(device, column, value):
    good = random_boxes(1, 6).to(device)
    bad = good.clone()
    bad[0, column] = value if value > 0 or column in (3, 4) else math.nan
    for op in (ops.boxes_overlap_bev, ops.iou_bev, ops.iou_3d, ops.iou_3d_aligned):
        assert op(good, bad, compat=True).item() == 0
        assert op(bad, good, compat=True).item() == 0


def test_nms_by_the_rule_removes_what_the_rule_calls_overlapping(device):
    boxes = torch.tensor([[0, 0, 0, 0.8, 0.6, 1.7, 0], [0.805, 0, 0, 0.8, 0.6, 1.7, 0]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 0.001).tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.001, compat=True).tolist() == [0]
    assert ops.nms(boxes, scores, 0.001, compat=True, axis_aligned=True).tolist() == [0, 1]
