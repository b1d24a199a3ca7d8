from __future__ import annotations

import math

import pytest
import torch

from cakdp_ext.detectors.center_targets import CenterTargetConfig, HeadGrid, assign_centers, draw_peaks, gaussian_radius
from cakdp_ext.types import LidarGeometry

GEOMETRY = LidarGeometry((0.0, -6.4, -3.0, 16.0, 6.4, 1.0), (0.1, 0.2, 0.1), 4)
STRIDE = 8
ROWS, COLUMNS = 8, 20
SIZES = torch.tensor([[3.9, 1.6, 1.56], [0.8, 0.6, 1.73], [11.0, 2.6, 3.2]])
PARTS = [[(0, 1, 2)], [(2, 0), (1,)], [(1,), (2,), (0,)]]


def config(**settings) -> CenterTargetConfig:
    return CenterTargetConfig(**{"feature_map_stride": STRIDE, **settings})


def published_radius(length: float, width: float, overlap: float) -> float:
    """The smallest of the three roots as CornerNet's code takes them."""
    total, area = length + width, length * width
    quadratics = [
        (1, -total, area * (1 - overlap) / (1 + overlap)),
        (4, -2 * total, (1 - overlap) * area),
        (4 * overlap, 2 * overlap * total, (overlap - 1) * area),
    ]
    return min((-b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in quadratics)


def slow_assign(boxes, labels, part, settings):
    """Heat maps ``[label][row][column]`` of one frame, and ``(row, column, code)`` of each object."""
    heatmap = torch.zeros(len(part), ROWS, COLUMNS, dtype=torch.float64)
    objects = []
    for (x, y, z, dx, dy, dz, heading), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        is_object = label in part and min(dx, dy, dz) > 0 and all(map(math.isfinite, (x, y, z, heading)))
        if not is_object or len(objects) == settings.num_max_objs:
            continue
        column, row = (x - 0.0) / 0.8, (y + 6.4) / 1.6
        column, row = min(max(column, 0), COLUMNS - 0.5), min(max(row, 0), ROWS - 0.5)
        radius = max(math.floor(published_radius(dx / 0.8, dy / 1.6, settings.gaussian_overlap)), settings.min_radius)
        deviation = (2 * radius + 1) / 6
        for r in range(max(int(row) - radius, 0), min(int(row) + radius, ROWS - 1) + 1):
            for c in range(max(int(column) - radius, 0), min(int(column) + radius, COLUMNS - 1) + 1):
                value = math.exp(-((r - int(row)) ** 2 + (c - int(column)) ** 2) / (2 * deviation**2))
                heatmap[part.index(label), r, c] = max(heatmap[part.index(label), r, c], value)
        offsets = [column - int(column), row - int(row)]
        sizes = [math.log(size) for size in (dx, dy, dz)]
        objects.append((int(row), int(column), [*offsets, z, *sizes, math.cos(heading), math.sin(heading)]))
    return heatmap, objects


def random_objects(frames=2, count=60, seed=0):
    """Objects everywhere and beyond every border; two share a cell, some have no size, the last are padding."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (frames, count), generator=random)
    low, span = torch.tensor([-2.0, -8.0, -2.0]), torch.tensor([20.0, 16.0, 2.0])
    centers = low + torch.rand(frames, count, 3, generator=random) * span
    sizes = SIZES[labels] * (0.8 + 0.4 * torch.rand(frames, count, 3, generator=random))
    boxes = torch.cat([centers, sizes, 8 * torch.rand(frames, count, 1, generator=random) - 4], dim=2)
    boxes[:, 1, :2], labels[:, 1] = boxes[:, 0, :2] + 0.01, labels[:, 0]
    boxes[:, 2, 3] = boxes[:, 3, 4] = boxes[:, 4, 5] = 0
    boxes[:, -3:], labels[:, -3:] = 0, -1
    return boxes, labels


@pytest.mark.parametrize("overlap", [0.05, 0.1, 0.3, 0.5, 0.7, 0.95])
def test_radius_is_that_of_the_published_code(overlap):
    sizes = torch.rand(200, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 30 + 0.05
    sizes[::3, 1] = sizes[::3, 0]
    sizes[1::3, 1] = 0.01 * sizes[1::3, 0]
    expected = [published_radius(length, width, overlap) for length, width in sizes.tolist()]
    torch.testing.assert_close(gaussian_radius(sizes, overlap), torch.tensor(expected, dtype=torch.float64))


def test_radius_is_a_multiple_of_what_the_corners_may_move_outwards():
    length, width, overlap = 9.0, 4.0, 0.3
    moved = gaussian_radius(torch.tensor([[length, width]], dtype=torch.float64), overlap).item() / (4 * overlap)
    assert length * width / ((length + 2 * moved) * (width + 2 * moved)) == pytest.approx(overlap)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("settings", [{}, {"gaussian_overlap": 0.5, "min_radius": 0}, {"num_max_objs": 4}])
def test_targets_agree_with_a_loop_over_objects_and_cells(parts, settings, device):
    boxes, labels = random_objects()
    for part in parts:
        grid = HeadGrid(GEOMETRY, STRIDE)
        found = assign_centers(grid, config(**settings), boxes.to(device), labels.to(device), part)
        assert found.heatmap.dtype == found.codes.dtype == torch.float32
        assert found.heatmap.device.type == device
        for frame in range(2):
            heatmap, objects = slow_assign(boxes[frame], labels[frame], part, config(**settings))
            torch.testing.assert_close(found.heatmap[frame].cpu().double(), heatmap, rtol=1e-5, atol=1e-7)
            own = found.frames.cpu() == frame
            assert found.cells.cpu()[own].tolist() == [row * COLUMNS + column for row, column, _ in objects]
            codes = torch.tensor([code for *_, code in objects])
            torch.testing.assert_close(found.codes.cpu()[own], codes, rtol=1e-4, atol=1e-4)
            assert len(objects) >= 4


def test_objects_taught_are_the_first_ones_of_a_parts_classes():
    boxes, labels = random_objects(count=20)
    found = assign_centers(HeadGrid(GEOMETRY, STRIDE), config(num_max_objs=2), boxes, labels, (0,))
    for frame in range(2):
        real = [i for i in range(20) if labels[frame, i] == 0 and boxes[frame, i, 3:6].min() > 0]
        heights = found.codes[found.frames == frame][:, 2]
        assert heights.tolist() == boxes[frame, real[:2], 2].tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_boxes_that_are_not_finite_are_no_objects(bad):
    boxes, labels = random_objects(frames=1)
    clean = assign_centers(HeadGrid(GEOMETRY, STRIDE), config(), boxes, labels, (0, 1, 2))
    for column in range(7):
        extra = boxes[:, :1].clone()
        extra[..., column] = bad
        with_bad = torch.cat([boxes, extra], dim=1), torch.cat([labels, labels[:, :1]], dim=1)
        found = assign_centers(HeadGrid(GEOMETRY, STRIDE), config(), *with_bad, (0, 1, 2))
        assert torch.equal(found.heatmap, clean.heatmap)
        assert torch.equal(found.codes, clean.codes)


@pytest.mark.parametrize("rows", [0, 5])
def test_frames_without_objects_are_empty_maps(rows):
    boxes, labels = torch.zeros(3, rows, 7), torch.full((3, rows), -1)
    found = assign_centers(HeadGrid(GEOMETRY, STRIDE), config(), boxes, labels, (0, 1))
    assert found.heatmap.shape == (3, 2, ROWS, COLUMNS)
    assert not found.heatmap.any()
    assert (found.frames.shape, found.cells.shape, found.codes.shape) == ((0,), (0,), (0, 8))


def test_of_two_peaks_the_higher_one_stays():
    planes = torch.zeros(2, 5, 9)
    draw_peaks(planes, torch.tensor([1, 1]), torch.tensor([[2, 2], [5, 2]]), torch.tensor([2, 2]))
    assert not planes[0].any()
    assert planes[1, 2, 2] == planes[1, 2, 5] == 1
    assert torch.equal(planes[1], planes[1].flip(1).roll(-1, dims=1))
    assert planes[1, 2, 3].item() == pytest.approx(math.exp(-1 / (2 * (5 / 6) ** 2)))
    assert planes[1, 2, 8] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_map_stride": 0}, "FEATURE_MAP_STRIDE must be at least 1"),
        ({"gaussian_overlap": 1.0}, "GAUSSIAN_OVERLAP must lie between 0 and 1"),
        ({"num_max_objs": 0}, "NUM_MAX_OBJS must be at least 1"),
        ({"min_radius": -1}, "MIN_RADIUS at least 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)
