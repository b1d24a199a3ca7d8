from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext.detectors.point_targets import BACKGROUND, IGNORE, assign_points, part_locations

WIDTH = (0.4, 0.2, 0.6)


def crowd(geometry, boxes, count=400):
    """Points in, just outside of and far from the first six objects of every frame, frame after frame."""
    frames = len(boxes)
    random = torch.Generator().manual_seed(1)
    low, high = torch.tensor(geometry.point_cloud_range[:3]), torch.tensor(geometry.point_cloud_range[3:])
    anywhere = low + torch.rand(frames, 50, 3, generator=random) * (high - low)
    chosen = torch.randint(0, 6, (frames, count), generator=random)
    of = boxes.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 7))
    local = (1.3 * torch.rand(frames, count, 3, generator=random) - 0.65) * of[..., 3:6]
    cos, sin = of[..., 6].cos(), of[..., 6].sin()
    turned = [local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos, local[..., 2]]
    near = torch.stack(turned, dim=-1) + of[..., :3]
    return torch.cat([near, anywhere], dim=1).flatten(0, 1), torch.full((frames,), count + 50)


def in_own_axes(point, box) -> list[float]:
    x, y, z = (a - b for a, b in zip(point, box, strict=False))
    cos, sin = math.cos(box[6]), math.sin(box[6])
    return [x * cos + y * sin, y * cos - x * sin, z]


def holds(point, box, extra=(0.0, 0.0, 0.0)) -> bool:
    axes = zip(in_own_axes(point, box), box[3:6], extra, strict=True)
    return all(abs(offset) <= (size + more) / 2 for offset, size, more in axes)


def plainly(xyz, counts, boxes, labels) -> list[tuple[int, list[float]]]:
    """Label and part location of every point, one by one in float64."""
    found = []
    frames = torch.arange(len(counts)).repeat_interleave(counts).tolist()
    for frame, point in zip(frames, xyz.double().tolist(), strict=True):
        pairs = zip(boxes[frame].double().tolist(), labels[frame].tolist(), strict=True)
        objects = [(box, label) for box, label in pairs if label >= 0]
        holders = [(box, label) for box, label in objects if holds(point, box)]
        if holders:
            box, label = holders[0]
            found.append((label, [a / size + 0.5 for a, size in zip(in_own_axes(point, box), box[3:6], strict=True)]))
        else:
            is_near = any(holds(point, box, WIDTH) for box, _ in objects)
            found.append((IGNORE if is_near else BACKGROUND, []))
    return found


def test_labels_and_part_locations_agree_with_plain_loops(make_batch, small_geometry, device):
    batch = make_batch(small_geometry, voxels=1, objects=8, seed=3)
    boxes, labels = batch.gt_boxes, batch.gt_labels
    xyz, counts = crowd(small_geometry, boxes)
    targets = assign_points(xyz.to(device), counts.to(device), boxes.to(device), labels.to(device), WIDTH)
    expected = plainly(xyz, counts, boxes, labels)
    assert targets.labels.tolist() == [label for label, _ in expected]
    assert set(targets.labels.tolist()) == {-2, -1, 0, 1, 2}
    inside = targets.is_foreground
    parts = part_locations(xyz.to(device)[inside], targets.boxes[inside])
    assert_close(parts.cpu(), torch.tensor([part for label, part in expected if label >= 0]), rtol=0, atol=1e-5)
    assert not targets.boxes[~inside].any()
    assert parts.min() < 0.1
    assert parts.max() > 0.9


def test_the_first_object_that_holds_a_point_has_it():
    boxes = torch.tensor([[[0.0, 0, 0, 2, 2, 2, 0], [0, 0, 0, 4, 4, 4, 0]]])
    points = torch.tensor([[0.5, 0.0, 0.0], [1.5, 0.0, 0.0]])
    targets = assign_points(points, torch.tensor([2]), boxes, torch.tensor([[2, 1]]), (0.2, 0.2, 0.2))
    assert targets.labels.tolist() == [2, 1]
    assert_close(targets.boxes, boxes[0])


def test_padding_has_no_margin_around_it():
    """Enlarged padding would be a real box at the origin."""
    boxes, labels = torch.zeros(1, 3, 7), torch.full((1, 3), -1)
    targets = assign_points(torch.zeros(1, 3), torch.tensor([1]), boxes, labels, (0.2, 0.2, 0.2))
    assert targets.labels.tolist() == [BACKGROUND]


@pytest.mark.parametrize("num_objects", [0, 2])
def test_a_frame_without_points_and_one_without_objects(num_objects):
    boxes = torch.tensor([[[0.0, 0, 0, 2, 2, 2, 0]] * 2] * 3)[:, :num_objects]
    labels = torch.tensor([[0, 1], [0, 1], [-1, -1]])[:, :num_objects]
    targets = assign_points(torch.zeros(4, 3), torch.tensor([0, 3, 1]), boxes, labels, (0.2, 0.2, 0.2))
    assert targets.labels.tolist() == ([0, 0, 0, BACKGROUND] if num_objects else [BACKGROUND] * 4)
    nothing = assign_points(torch.zeros(0, 3), torch.zeros(3).long(), boxes, labels, (0.2, 0.2, 0.2))
    assert nothing.labels.shape == (0,)
    assert nothing.boxes.shape == (0, 7)


def test_corners_and_centre_of_a_turned_box():
    box = torch.tensor([10.0, 5.0, -1.0, 4.0, 2.0, 1.5, math.pi / 2])
    points = torch.tensor([[10.0, 5.0, -1.0], [9.0, 7.0, -0.25], [11.0, 3.0, -1.75]])
    expected = torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert_close(part_locations(points, box.expand(3, 7)), expected, rtol=0, atol=1e-6)
