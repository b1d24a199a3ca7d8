from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext import ops
from cakdp_ext.detectors.roi_heads.roi_frame import at_origin, from_roi_frame, roi_grid_points, to_roi_frame

QUARTER = math.pi / 2


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    centers = 40 * torch.rand(count, 3, generator=random, dtype=torch.float64) - 20
    sizes = 0.5 + 4 * torch.rand(count, 3, generator=random, dtype=torch.float64)
    headings = 14 * torch.rand(count, 1, generator=random, dtype=torch.float64) - 7
    return torch.cat([centers, sizes, headings], dim=1)


def test_the_corners_of_a_two_by_two_grid_are_a_quarter_from_each_face():
    roi = torch.tensor([[10.0, 20.0, 1.0, 4.0, 2.0, 8.0, 0.0]])
    expected = [[10 + x, 20 + y, 1 + z] for x in (-1, 1) for y in (-0.5, 0.5) for z in (-2, 2)]
    assert_close(roi_grid_points(roi, 2), torch.tensor([expected]))


def test_grid_points_turn_counter_clockwise_with_the_roi():
    """At 90 degrees the roi's +x is the world's +y, and its +y the world's -x."""
    roi = torch.tensor([[10.0, 20.0, 1.0, 4.0, 2.0, 8.0, QUARTER]])
    expected = [[10 - y, 20 + x, 1 + z] for x in (-1, 1) for y in (-0.5, 0.5) for z in (-2, 2)]
    assert_close(roi_grid_points(roi, 2), torch.tensor([expected]))


def test_grid_points_tile_the_roi():
    rois = random_boxes(20)
    points = roi_grid_points(rois, 3)
    assert points.shape == (20, 27, 3)
    assert_close(points.mean(dim=1), rois[:, :3])
    for own, roi in zip(points, rois, strict=True):
        assert (ops.points_in_boxes(own, roi[None]) == 0).all()


def test_a_roi_of_no_size_has_all_its_points_at_its_centre():
    assert_close(roi_grid_points(torch.zeros(2, 7), 6), torch.zeros(2, 216, 3))
    assert roi_grid_points(torch.zeros(0, 7), 6).shape == (0, 216, 3)


def test_a_box_ahead_of_a_roi_lies_on_its_x_axis():
    roi = torch.tensor([[5.0, 5.0, 0.0, 4.0, 2.0, 1.5, QUARTER]])
    box = torch.tensor([[5.0, 8.0, 0.5, 3.0, 1.0, 1.0, QUARTER + 0.2]])
    assert_close(to_roi_frame(box, roi), torch.tensor([[3.0, 0.0, 0.5, 3.0, 1.0, 1.0, 0.2]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("box_heading", "roi_heading", "expected"),
    [
        (0.3, 0.0, 0.3),
        (0.0, 0.3, -0.3),
        (math.pi + 0.3, 0.0, 0.3),
        (-math.pi - 0.3, 0.0, -0.3),
        (3.0, -3.0, 6.0 - 2 * math.pi),
        (5 * math.pi + 0.1, -4 * math.pi, 0.1),
        (1.5, 0.0, 1.5),
        (1.7, 0.0, 1.7 - math.pi),
    ],
)
def test_headings_are_differences_without_front_and_back(box_heading, roi_heading, expected):
    box, roi = torch.zeros(2, 1, 7, dtype=torch.float64)
    box[:, 6], roi[:, 6] = box_heading, roi_heading
    assert to_roi_frame(box, roi)[0, 6].item() == pytest.approx(expected, abs=1e-9)


def test_a_right_angle_is_plus_a_right_angle():
    box = torch.zeros(2, 7, dtype=torch.float64)
    box[:, 6] = torch.tensor([QUARTER, -QUARTER], dtype=torch.float64)
    assert_close(to_roi_frame(box, torch.zeros_like(box))[:, 6], torch.full((2,), QUARTER, dtype=torch.float64))


def test_there_and_back_again_is_the_same_place():
    boxes, rois = random_boxes(50), random_boxes(50, seed=1)
    back = from_roi_frame(to_roi_frame(boxes, rois), rois)
    assert_close(back[:, :6], boxes[:, :6])
    half_turns = (back[:, 6] - boxes[:, 6]) / math.pi
    assert_close(half_turns, half_turns.round())
    assert_close(ops.iou_3d_aligned(back, boxes), torch.ones(50, dtype=torch.float64))


def test_a_roi_at_its_own_origin_is_where_it_was():
    rois = random_boxes(10)
    assert_close(from_roi_frame(at_origin(rois), rois), rois)
