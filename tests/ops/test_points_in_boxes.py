"""Which box holds a point: against shapely's point-in-polygon, faces, order, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from shapely_boxes import polygons, random_boxes

from cakdp_ext import ops
from cakdp_ext.ops.reference import points as reference

pytestmark = pytest.mark.usefixtures("implementation")


def random_points(count, seed, spread=12.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-spread / 2, spread / 2, (count, 3)) * (1, 1, 0.3))


def far_from_faces(points, boxes):
    """The points no nearer than 0.1 mm to the height or the outline of any box."""
    gaps = shapely.distance(shapely.points(points[:, :2].numpy())[:, None], shapely.boundary(polygons(boxes))[None])
    heights = (points[:, 2, None] - boxes[:, 2]).abs() - boxes[:, 5] / 2
    return points[(torch.from_numpy(gaps) > 1e-4).all(1) & (heights.abs() > 1e-4).all(1)]


def shapely_holder(points, boxes):
    inside = torch.from_numpy(shapely.contains_xy(polygons(boxes)[None], *points[:, :2].numpy().T[..., None]))
    inside &= (points[:, 2, None] - boxes[:, 2]).abs() <= boxes[:, 5] / 2
    return torch.where(inside.any(1), inside.int().argmax(1), -1)


def test_holder_is_shapelys(device, dtype):
    boxes = random_boxes(12, 0).to(dtype).double()
    points = far_from_faces(random_points(3000, 1).to(dtype).double(), boxes)
    wanted = shapely_holder(points, boxes)
    found = ops.points_in_boxes(points.to(device, dtype), boxes.to(device, dtype))
    assert found.tolist() == wanted.tolist()
    assert found.dtype == torch.int64
    assert len(set(wanted.tolist())) > 8


def test_blocks_of_the_reference_leave_no_seam(monkeypatch):
    monkeypatch.setattr(reference, "DENSE_LIMIT", 64)
    boxes = random_boxes(12, 2)
    points = far_from_faces(random_points(500, 3), boxes)
    assert reference.points_in_boxes(points[None], boxes[None])[0].tolist() == shapely_holder(points, boxes).tolist()


def test_first_of_nested_boxes_wins(device, dtype):
    boxes = torch.tensor([[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 4, 4, 4, 0.5]], device=device, dtype=dtype)
    points = torch.tensor([[0, 0, 0], [1, 0, 0], [9, 0, 0]], device=device, dtype=dtype)
    assert ops.points_in_boxes(points, boxes).tolist() == [0, 1, -1]
    assert ops.points_in_boxes(points, boxes.flip(0)).tolist() == [0, 0, -1]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [-1, 1])
def test_faces_belong_to_their_box(device, dtype, axis, side):
    box = torch.tensor([[8, -4, 2, 4, 2, 1, 0]], device=device, dtype=dtype)
    point = box[:, :3].clone()
    point[0, axis] += side * box[0, 3 + axis] / 2
    assert ops.points_in_boxes(point, box).tolist() == [0]
    point[0, axis] += side * 1e-3
    assert ops.points_in_boxes(point, box).tolist() == [-1]


def test_far_from_origin(device, dtype):
    boxes = random_boxes(5, 4)
    boxes[:, :3] = (boxes[:, :3] * 16).round() / 16
    points = (random_points(500, 5) * 16).round() / 16
    shift = torch.tensor([48000.0, -48000.0, 0])
    near = ops.points_in_boxes(points.to(device, dtype), boxes.to(device, dtype))
    boxes[:, :3] += shift
    far = ops.points_in_boxes((points + shift).to(device, dtype), boxes.to(device, dtype))
    assert far.tolist() == near.tolist()
    assert (near >= 0).any()


@pytest.mark.parametrize("column", range(7))
def test_a_nan_holds_nothing(device, dtype, column):
    box = torch.tensor([[0, 0, 0, 4, 2, 1, 0.2]], device=device, dtype=dtype)
    box[0, column] = math.nan
    assert ops.points_in_boxes(torch.zeros(1, 3, device=device, dtype=dtype), box).tolist() == [-1]
    point = torch.zeros(1, 3, device=device, dtype=dtype)
    point[0, column % 3] = math.nan
    assert ops.points_in_boxes(point, box.nan_to_num(1)).tolist() == [-1]


@pytest.mark.parametrize("size", [0.0, -1.0])
@pytest.mark.parametrize("column", [3, 4, 5])
def test_a_box_without_volume_holds_nothing(device, dtype, column, size):
    box = torch.tensor([[0, 0, 0, 4, 2, 1, 0.2]], device=device, dtype=dtype)
    box[0, column] = size
    assert ops.points_in_boxes(torch.zeros(1, 3, device=device, dtype=dtype), box).tolist() == [-1]


@pytest.mark.parametrize(("points", "boxes"), [(0, 0), (0, 3), (4, 0), (1, 1)])
def test_few_points_and_boxes(device, dtype, points, boxes):
    found = ops.points_in_boxes(
        random_points(points, 6).to(device, dtype) + 99, random_boxes(boxes, 7).to(device, dtype)
    )
    assert found.tolist() == [-1] * points
    assert found.dtype == torch.int64


def test_points_may_be_columns_of_a_wider_cloud(device):
    cloud = torch.cat((random_points(50, 8), torch.rand(50, 2)), dim=1).to(device)
    boxes = random_boxes(5, 9).to(device)
    assert (
        ops.points_in_boxes(cloud[:, :3], boxes).tolist() == ops.points_in_boxes(cloud[:, :3].clone(), boxes).tolist()
    )


def test_wrong_arguments_are_named(device):
    points, boxes = random_points(3, 10).to(device), random_boxes(2, 11).to(device)
    with pytest.raises(ValueError, match=r"points must have shape \(any, 3\), got \(3, 4\)"):
        ops.points_in_boxes(torch.zeros(3, 4, device=device), boxes)
    with pytest.raises(ValueError, match=r"boxes must have shape \(any, 7\), got \(2, 6\)"):
        ops.points_in_boxes(points, boxes[:, :6])
    with pytest.raises(ValueError, match="points and boxes must share a dtype, got torch.float64 and torch.float32"):
        ops.points_in_boxes(points, boxes.float())
    with pytest.raises(ValueError, match=f"must be on one device, got {boxes.device} and meta"):
        ops.points_in_boxes(points, boxes.to("meta"))


def test_frames_do_not_see_each_other(device, dtype):
    boxes = random_boxes(10, 12).to(device, dtype).reshape(2, 5, 7)
    points = random_points(600, 13).to(device, dtype).reshape(2, 300, 3)
    found = ops.points_in_boxes(points, boxes)
    assert found.tolist() == [
        ops.points_in_boxes(cloud, own).tolist() for cloud, own in zip(points, boxes, strict=True)
    ]
    assert found.shape == (2, 300)
    assert (found >= 0).any(1).all()


@pytest.mark.parametrize(("frames", "points", "boxes"), [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_empty_frames(device, frames, points, boxes):
    found = ops.points_in_boxes(
        torch.zeros(frames, points, 3, device=device), torch.ones(frames, boxes, 7, device=device)
    )
    assert found.tolist() == [[-1] * points] * frames
