"""Overlaps and IoUs against shapely, hand-computed pairs, laws, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from shapely_boxes import (
    jittered,
    random_boxes,
    shapely_distance,
    shapely_iou_3d,
    shapely_iou_bev,
    shapely_overlap,
)

from cakdp_ext import ops
from cakdp_ext.ops.reference import iou as reference_iou
from cakdp_ext.ops.reference import overlap as reference

pytestmark = pytest.mark.usefixtures("implementation")
PAIRWISE = [ops.boxes_overlap_bev, ops.iou_bev, ops.iou_3d, ops.nearest_bev_iou]
ALIGNED = [ops.boxes_overlap_bev_aligned, ops.iou_bev_aligned, ops.iou_3d_aligned]
QUARTER = math.pi / 2
HAND_MADE = {
    "identical": ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3), 8),
    "identical and turned by half a circle": ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3 + math.pi), 8),
    "crossing at right angles": ((0, 0, 4, 2, 0), (0, 0, 4, 2, QUARTER), 4),
    "the same rectangle written with a heading of 90 degrees": ((0, 0, 4, 2, 0.1), (0, 0, 2, 4, 0.1 + QUARTER), 8),
    "nested": ((0, 0, 10, 10, 0.2), (0.5, -0.5, 1, 2, 1.2), 2),
    "unit square turned by 45 degrees": ((0, 0, 1, 1, 0), (0, 0, 1, 1, math.pi / 4), 2 * (math.sqrt(2) - 1)),
    "corner cut off": ((0, 0, 2, 2, 0), (1, 1, 1, 1, math.pi / 4), 0.25),
    "touching edges": ((0, 0, 2, 2, 0), (2, 0.5, 2, 2, 0), 0),
    "touching corners": ((0, 0, 2, 2, 0), (1 + math.sqrt(0.5), 0, 1, 1, math.pi / 4), 0),
    "circles meet but rectangles do not": ((0, 0, 10, 0.5, 0), (0, 2, 10, 0.5, 0), 0),
    "apart along the other one's axis only": ((0, 0, 2, 2, 0), (2, 2, 2, 2, math.pi / 4), 0),
    "half overlapping": ((0, 0, 2, 1, 0), (1, 0, 2, 1, 0), 1),
    "0.1 m": ((0, 0, 0.1, 0.1, 0.4), (0.05 * math.cos(0.4), 0.05 * math.sin(0.4), 0.1, 0.1, 0.4), 0.005),
    "50 km from the origin": ((50000, -50000, 4, 2, 0), (50001, -50000.5, 4, 2, 0), 4.5),
    "needle through a square": ((0, 0, 2, 2, 0), (0, 0, 100, 0.001, 0.1), 0.002 / math.cos(0.1)),
}


def as_box(plane):
    x, y, dx, dy, heading = plane
    return torch.tensor([[x, y, 0, dx, dy, 1, heading]], dtype=torch.float64)


def relative_tolerance(dtype):
    return 3e-6 if dtype == torch.float32 else 1e-13


def smaller_area(boxes1, boxes2):
    area1, area2 = (boxes.double().cpu()[:, 3:5].prod(1) for boxes in (boxes1, boxes2))
    return torch.minimum(area1[:, None], area2)


@pytest.mark.parametrize("size", [(0.3, 5.0), (0.05, 0.2), (0.1, 20.0)], ids=["cars", "tiny", "tiny among huge"])
def test_overlap_is_shapelys(device, dtype, size):
    boxes1 = random_boxes(60, 0, 12 * size[1] / 5, *size).to(device, dtype)
    boxes2 = random_boxes(80, 1, 12 * size[1] / 5, *size).to(device, dtype)
    wanted = shapely_overlap(boxes1, boxes2)
    error = (ops.boxes_overlap_bev(boxes1, boxes2).double().cpu() - wanted).abs() / smaller_area(boxes1, boxes2)
    assert (wanted > 0).float().mean() > 0.05
    assert error.max() < relative_tolerance(dtype)


@pytest.mark.parametrize("amount", [0.2, 1e-3, 1e-7, 1e-12])
def test_nearly_equal_boxes_overlap_as_in_shapely(device, dtype, amount):
    boxes = random_boxes(40, 2)
    boxes1, boxes2 = boxes.to(device, dtype), jittered(boxes, 3, amount).to(device, dtype)
    wanted = shapely_overlap(boxes1, boxes2).diagonal()
    found = ops.boxes_overlap_bev_aligned(boxes1, boxes2).double().cpu()
    assert ((found - wanted).abs() / boxes[:, 3:5].prod(1)).max() < relative_tolerance(dtype)


@pytest.mark.parametrize(("plane1", "plane2", "wanted"), HAND_MADE.values(), ids=HAND_MADE.keys())
def test_overlap_of_hand_made_pairs(device, dtype, plane1, plane2, wanted):
    box1, box2 = as_box(plane1).to(device, dtype), as_box(plane2).to(device, dtype)
    tolerance = (2e-6 if dtype == torch.float32 else 1e-12) * smaller_area(box1, box2).item()
    for found in (ops.boxes_overlap_bev(box1, box2), ops.boxes_overlap_bev(box2, box1)):
        assert found.item() == pytest.approx(wanted, abs=tolerance)


def test_iou_bev_and_3d_are_shapelys(device, dtype):
    boxes1, boxes2 = random_boxes(40, 4).to(device, dtype), random_boxes(50, 5).to(device, dtype)
    tolerance = {"atol": 1e-5 if dtype == torch.float32 else 1e-12, "rtol": 0}
    torch.testing.assert_close(ops.iou_bev(boxes1, boxes2).double().cpu(), shapely_iou_bev(boxes1, boxes2), **tolerance)
    torch.testing.assert_close(ops.iou_3d(boxes1, boxes2).double().cpu(), shapely_iou_3d(boxes1, boxes2), **tolerance)


def test_aligned_iou_is_shapelys(device, dtype):
    boxes = random_boxes(50, 6)
    boxes1, boxes2 = boxes.to(device, dtype), jittered(boxes, 7).to(device, dtype)
    for op, oracle in ((ops.iou_bev_aligned, shapely_iou_bev), (ops.iou_3d_aligned, shapely_iou_3d)):
        wanted = oracle(boxes1, boxes2).diagonal()
        found = op(boxes1, boxes2).double().cpu()
        torch.testing.assert_close(found, wanted, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)
        assert (wanted > 0.1).double().mean() > 0.5


def test_nearest_bev_iou_is_shapelys_of_boxes_on_the_nearest_axis(device, dtype):
    boxes1, boxes2 = random_boxes(40, 8).to(device, dtype), random_boxes(50, 9).to(device, dtype)
    on_axis = [boxes.clone() for boxes in (boxes1, boxes2)]
    for boxes in on_axis:
        boxes[:, 6] = torch.round(boxes[:, 6] / QUARTER) * QUARTER
    found = ops.nearest_bev_iou(boxes1, boxes2).double().cpu()
    torch.testing.assert_close(found, shapely_iou_bev(*on_axis), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("degrees", "wanted"), [(0, 1), (44, 1), (46, 1 / 3), (90, 1 / 3), (-134, 1 / 3), (180, 1)])
def test_nearest_bev_iou_swaps_length_and_width_beyond_45_degrees(device, degrees, wanted):
    box = as_box((3, 4, 4, 2, 0)).to(device)
    turned = as_box((3, 4, 4, 2, math.radians(degrees))).to(device)
    assert ops.nearest_bev_iou(box, turned).item() == pytest.approx(wanted, abs=1e-12)


def test_iou_far_from_origin(device, dtype):
    boxes = random_boxes(30, 10)
    boxes[:, :3] = (boxes[:, :3] * 16).round() / 16
    boxes = boxes.to(device, dtype)
    shift = torch.tensor([48000.0, -48000.0, 0, 0, 0, 0, 0], dtype=dtype, device=device)
    near, far = ops.iou_3d(boxes, boxes), ops.iou_3d(boxes + shift, boxes + shift)
    torch.testing.assert_close(far, near, atol=0, rtol=0)


def test_overlap_is_symmetric(device, dtype):
    boxes1, boxes2 = random_boxes(40, 11).to(device, dtype), random_boxes(50, 12).to(device, dtype)
    for op in PAIRWISE:
        torch.testing.assert_close(op(boxes1, boxes2), op(boxes2, boxes1).T, atol=0, rtol=0)


def test_iou_with_itself_is_one(device, dtype):
    boxes = random_boxes(200, 13, smallest=0.05).to(device, dtype)
    ones = torch.ones(200, dtype=dtype, device=device)
    for found in (
        ops.iou_bev(boxes, boxes).diagonal(),
        ops.iou_bev_aligned(boxes, boxes),
        ops.iou_3d(boxes, boxes).diagonal(),
        ops.iou_3d_aligned(boxes, boxes),
    ):
        torch.testing.assert_close(found, ones, atol=relative_tolerance(dtype), rtol=0)
        assert found.max() <= 1


def test_disjoint_boxes_overlap_exactly_zero(device, dtype):
    boxes1, boxes2 = (
        random_boxes(80, 14, spread=25).to(device, dtype),
        random_boxes(80, 15, spread=25).to(device, dtype),
    )
    apart = shapely_distance(boxes1, boxes2) > 1e-3
    assert apart.any()
    assert (ops.boxes_overlap_bev(boxes1, boxes2).cpu()[apart] == 0).all()


def test_overlap_survives_a_rigid_motion(device):
    boxes1, boxes2 = random_boxes(40, 16).to(device), random_boxes(40, 17).to(device)
    before = ops.boxes_overlap_bev(boxes1, boxes2)
    turn = 2.1
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], device=device)
    moved = []
    for boxes in (boxes1, boxes2):
        boxes = boxes.clone()
        boxes[:, :2] = boxes[:, :2] @ rotation.double().T + torch.tensor([30.0, -70.0], device=device)
        boxes[:, 6] += turn
        moved.append(boxes)
    torch.testing.assert_close(ops.boxes_overlap_bev(*moved), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("column", [3, 4])
def test_a_box_without_a_proper_size_overlaps_nothing(device, dtype, column, value):
    good = as_box((0, 0, 4, 2, 0.3)).to(device, dtype)
    bad = good.clone()
    bad[0, column] = value
    for op in PAIRWISE[:3]:
        assert op(good, bad).item() == 0
        assert op(bad, good).item() == 0
        assert op(bad, bad).item() == 0
    assert ops.iou_3d_aligned(good, bad).item() == 0


@pytest.mark.parametrize(("column", "value"), [(2, math.nan), (2, math.inf), (5, -1.0), (5, math.nan), (5, math.inf)])
def test_a_box_without_proper_height_has_no_volume_iou(device, dtype, column, value):
    good = as_box((0, 0, 4, 2, 0.3)).to(device, dtype)
    bad = good.clone()
    bad[0, column] = value
    for op in (ops.iou_3d, ops.iou_3d_aligned):
        assert [op(*pair).item() for pair in ((good, bad), (bad, good), (bad, bad))] == [0, 0, 0]
    assert ops.iou_bev(good, bad).item() == pytest.approx(1)


@pytest.mark.parametrize("column", [0, 1, 6])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_box_at_no_proper_place_overlaps_nothing(device, dtype, column, value):
    good = as_box((0, 0, 4, 2, 0.3)).to(device, dtype)
    bad = good.clone()
    bad[0, column] = value
    assert ops.boxes_overlap_bev(torch.cat((good, bad)), torch.cat((bad, good)))[:, 0].tolist() == [0, 0]
    assert ops.iou_3d(good, bad).item() == 0


@pytest.mark.parametrize(("column", "value"), [(3, 0.0), (4, -1.0), (3, math.nan), (0, math.nan), (6, math.inf)])
def test_nearest_bev_iou_of_a_box_without_proper_size_or_place_is_zero(device, column, value):
    good = as_box((0, 0, 4, 2, 0)).to(device)
    bad = good.clone()
    bad[0, column] = value
    assert ops.nearest_bev_iou(good, bad).item() == 0
    assert ops.nearest_bev_iou(bad, good).item() == 0


def test_blocks_of_nearest_bev_iou_leave_no_seam(monkeypatch):
    boxes1, boxes2 = random_boxes(31, 29), random_boxes(30, 30)
    whole = reference_iou.nearest_bev_iou(boxes1, boxes2)
    monkeypatch.setattr(reference_iou, "UPRIGHT_LIMIT", 100)
    torch.testing.assert_close(reference_iou.nearest_bev_iou(boxes1, boxes2), whole, atol=0, rtol=0)


def test_a_flat_box_has_a_plane_overlap_but_no_volume_iou(device):
    flat = as_box((0, 0, 4, 2, 0.3)).to(device)
    flat[0, 5] = 0
    assert ops.iou_bev(flat, flat).item() == pytest.approx(1)
    assert ops.iou_3d(flat, flat).item() == 0


@pytest.mark.parametrize("op", PAIRWISE)
@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_pairwise_shapes_for_few_boxes(device, dtype, op, rows, columns):
    found = op(random_boxes(rows, 18).to(device, dtype), random_boxes(columns, 19).to(device, dtype))
    assert found.shape == (rows, columns)
    assert found.dtype == dtype


@pytest.mark.parametrize("op", ALIGNED)
@pytest.mark.parametrize("count", [0, 1])
def test_aligned_shapes_for_few_boxes(device, dtype, op, count):
    boxes = random_boxes(count, 20).to(device, dtype)
    assert op(boxes, boxes).shape == (count,)


def test_blocks_of_the_reference_leave_no_seam(monkeypatch):
    monkeypatch.setattr(reference, "DENSE_LIMIT", 100)
    monkeypatch.setattr(reference, "PAIR_LIMIT", 7)
    boxes1, boxes2 = random_boxes(31, 21), random_boxes(30, 22)
    found = reference.boxes_overlap_bev(boxes1, boxes2)
    torch.testing.assert_close(found, shapely_overlap(boxes1, boxes2), atol=1e-12, rtol=0)


def test_a_view_gives_what_its_copy_gives(device):
    wide = torch.cat((random_boxes(10, 23), torch.ones(10, 2, dtype=torch.float64)), dim=1).to(device)[::2]
    torch.testing.assert_close(
        ops.iou_3d(wide[:, :7], wide[:, :7]), ops.iou_3d(wide[:, :7].clone(), wide[:, :7].clone())
    )


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_boxes_are_computed_in_float32(device, half):
    boxes = random_boxes(5, 24).to(device, half)
    found = ops.iou_3d(boxes, boxes.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ops.iou_3d(boxes.float(), boxes.float()))


@pytest.mark.parametrize("op", [*PAIRWISE, *ALIGNED])
def test_no_gradient_flows_and_none_is_asked_for(device, op):
    boxes = random_boxes(5, 25).to(device).requires_grad_()
    assert not op(boxes, boxes).requires_grad


@pytest.mark.parametrize("op", [*PAIRWISE, *ALIGNED])
def test_wrong_arguments_are_named(device, op):
    boxes = random_boxes(3, 26).to(device)
    with pytest.raises(ValueError, match=r"boxes2 must have shape \(any, 7\), got \(3, 8\)"):
        op(boxes, torch.zeros(3, 8, device=device))
    with pytest.raises(ValueError, match=r"boxes1 must have shape \(any, 7\), got \(7,\)"):
        op(boxes[0], boxes)
    with pytest.raises(ValueError, match="must share a dtype, got torch.float64 and torch.float32"):
        op(boxes, boxes.float())
    with pytest.raises(ValueError, match=f"must be on one device, got {boxes.device} and meta"):
        op(boxes, boxes.to("meta"))
    with pytest.raises(ValueError, match="boxes1 must be float32 or float64, got torch.int64"):
        op(boxes.long(), boxes)


@pytest.mark.parametrize("op", ALIGNED)
def test_aligned_boxes_of_different_number_are_refused(device, op):
    with pytest.raises(ValueError, match="aligned boxes come in pairs, got 3 and 2"):
        op(random_boxes(3, 27).to(device), random_boxes(2, 28).to(device))
