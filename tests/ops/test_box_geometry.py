"""Corners and angles of single boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from shapely_boxes import random_boxes

from cakdp_ext import ops


def test_corners_are_scipys_rotation_of_the_local_ones(device, dtype):
    boxes = random_boxes(20, seed=0).to(device, dtype)
    corners = ops.box_corners(boxes).double().cpu()
    for box, found in zip(boxes.double().cpu().numpy(), corners.numpy(), strict=True):
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        local = np.vstack([np.column_stack((signs, np.full(4, z))) for z in (-1, 1)]) * box[3:6] / 2
        wanted = Rotation.from_euler("z", box[6]).apply(local) + box[:3]
        np.testing.assert_allclose(found, wanted, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_corners_go_counter_clockwise_seen_from_above():
    face = ops.box_corners(random_boxes(10, seed=1))[:, :4, :2]
    ahead = face.roll(-1, dims=1)
    twice_area = (face[..., 0] * ahead[..., 1] - face[..., 1] * ahead[..., 0]).sum(1)
    assert (twice_area > 0).all()


def test_gradient_flows_through_corners():
    boxes = random_boxes(3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(ops.box_corners, boxes)


def test_no_boxes_have_no_corners():
    assert ops.box_corners(torch.zeros(0, 7)).shape == (0, 8, 3)


def test_corners_refuse_boxes_with_a_label():
    with pytest.raises(ValueError, match=r"boxes must have shape \(any, 7\), got \(2, 8\)"):
        ops.box_corners(torch.zeros(2, 8))


def test_corners_refuse_integer_boxes():
    with pytest.raises(ValueError, match="boxes must be float32 or float64, got torch.int64"):
        ops.box_corners(torch.zeros(2, 7, dtype=torch.int64))


@pytest.mark.parametrize(
    ("angle", "offset", "period", "wanted"),
    [
        (3.5, 0.5, 2 * math.pi, 3.5 - 2 * math.pi),
        (-3.5, 0.5, 2 * math.pi, 2 * math.pi - 3.5),
        (math.pi, 0.5, 2 * math.pi, -math.pi),
        (100.0, 0.5, 2 * math.pi, 100.0 - 32 * math.pi),
        (-0.25, 0.0, math.pi, math.pi - 0.25),
        (0.75 * math.pi, 0.5, math.pi, -0.25 * math.pi),
    ],
)
def test_angles_are_shifted_by_whole_periods(angle, offset, period, wanted):
    found = ops.limit_period(torch.tensor([angle], dtype=torch.float64), offset, period)
    assert found.item() == pytest.approx(wanted, abs=1e-12)
