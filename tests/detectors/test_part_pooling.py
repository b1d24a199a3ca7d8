from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.roi_heads.part_pooling import FilledCells, RoiAwarePoolConfig, pool_parts
from cakdp_ext.detectors.row_layers import RowConv1d, branch_layers, shared_layers

SIZE = 3


def scene(counts=(80, 0, 150), seed=0):
    """Points of three frames, one of them without any, and rois that overlap each other."""
    random = torch.Generator().manual_seed(seed)
    frames = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    xyz = 3 * torch.rand(len(frames), 3, generator=random)
    points = PointFeatures(xyz, frames, torch.randn(len(frames), 5, generator=random))
    rois = torch.rand(len(counts), 4, 7, generator=random) * torch.tensor([3, 3, 3, 2, 2, 2, 6.0])
    rois[..., 3:6] += 0.5
    rois[:, 3] = 0.0
    return points, torch.rand(len(frames), 4, generator=random), rois


def cell_of(point, roi) -> tuple[int, ...] | None:
    """Which cell of a roi a point lies in, by plain arithmetic in float64."""
    x, y, z = (a - b for a, b in zip(point, roi, strict=False))
    cos, sin = math.cos(roi[6]), math.sin(roi[6])
    offsets = [a / size + 0.5 for a, size in zip((x * cos + y * sin, y * cos - x * sin, z), roi[3:6], strict=True)]
    if min(offsets) < 0 or max(offsets) > 1:
        return None
    return tuple(min(int(offset * SIZE), SIZE - 1) for offset in offsets)


def members_of(points, rois) -> dict[tuple[int, ...], list[int]]:
    """Which points every cell holds, one point after the other."""
    members: dict[tuple[int, ...], list[int]] = {}
    for frame, some in enumerate(rois.double().tolist()):
        for number, roi in enumerate(some):
            for row, point in enumerate(points.xyz.double().tolist()):
                is_here = points.frames[row] == frame and min(roi[3:6]) > 0
                cell = cell_of(point, roi) if is_here else None
                if cell is not None:
                    members.setdefault((frame * len(some) + number, *cell), []).append(row)
    return members


def plainly(points, parts, rois, most) -> dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]]:
    """Mean part and largest features of the first points of every cell that holds one."""
    kept = {cell: rows[:most] for cell, rows in members_of(points, rois).items()}
    return {cell: (parts[rows].mean(dim=0), points.features[rows].amax(dim=0)) for cell, rows in kept.items()}


@pytest.mark.parametrize("slots", [128, 3])
def test_cells_agree_with_plain_loops(device, slots):
    points, parts, rois = scene()
    here = PointFeatures(*(getattr(points, name).to(device) for name in ("xyz", "frames", "features")))
    config = RoiAwarePoolConfig(pool_size=SIZE, num_features=2, max_points_per_voxel=slots)
    found = pool_parts(here, parts.to(device), rois.to(device), config)
    expected = plainly(points, parts, rois, slots - 1)
    assert [tuple(cell) for cell in found.coords.tolist()] == sorted(expected)
    assert len(expected) > 40
    assert max(map(len, members_of(points, rois).values())) > 3
    for row, cell in enumerate(sorted(expected)):
        assert_close(found.parts[row].cpu(), expected[cell][0])
        assert_close(found.features[row].cpu(), expected[cell][1])


def test_gradients_reach_parts_and_features():
    points, parts, rois = scene()
    parts.requires_grad_()
    points.features.requires_grad_()
    cells = pool_parts(points, parts, rois, RoiAwarePoolConfig(SIZE, 2))
    (cells.parts.sum() + cells.features.sum()).backward()
    assert parts.grad.any()
    assert_close(points.features.grad.sum(), torch.tensor(float(cells.features.numel())))


def test_padding_and_rois_in_the_air_hold_nothing():
    points, parts, _ = scene()
    rois = torch.zeros(3, 2, 7)
    rois[:, 1] = torch.tensor([50.0, 0, 0, 2, 2, 2, 1])
    cells = pool_parts(points, parts, rois, RoiAwarePoolConfig(SIZE, 2))
    assert cells.coords.shape == (0, 4)
    assert cells.scatter(torch.zeros(0, 6), 6, SIZE).shape == (6, 6 * SIZE**3)
    nothing = PointFeatures(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0, 5))
    assert len(pool_parts(nothing, torch.zeros(0, 4), rois, RoiAwarePoolConfig(SIZE, 2)).coords) == 0


def test_values_are_laid_out_channel_by_channel():
    coords = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]])
    dense = FilledCells(coords, coords, coords).scatter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2, SIZE)
    expected = torch.zeros(2, 2, SIZE, SIZE, SIZE)
    expected[0, :, 0, 1, 2] = torch.tensor([1.0, 2.0])
    expected[1, :, 2, 0, 0] = torch.tensor([3.0, 4.0])
    assert_close(dense, expected.flatten(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 2), "POOL_SIZE must be at least 1, got 0"),
        ((3, 7), "NUM_FEATURES must be even and at least 2, got 7"),
        ((3, 8, 1), "MAX_POINTS_PER_VOXEL must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_pooled_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RoiAwarePoolConfig(*settings)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_row_convolution_is_a_convolution_over_one_column(has_bias):
    rows, layer = torch.randn(5, 7), RowConv1d(7, 3, bias=has_bias)
    expected = torch.nn.functional.conv1d(rows.unsqueeze(-1), layer.weight, layer.bias).squeeze(-1)
    assert_close(layer(rows), expected)


def test_dropout_stands_where_openpcdet_has_it():
    def kinds(layers):
        return "".join(type(layer).__name__[0] for layer in layers)

    assert kinds(shared_layers(4, (3, 3, 3), 0.3)) == "RBRDRBRDRBR"
    assert kinds(shared_layers(4, (3, 3), 0.0)) == "RBRRBR"
    assert kinds(branch_layers(4, (3, 3, 3), 1, 0.3, 0.1)) == "RBRDRBRRBRR"
    assert kinds(branch_layers(4, (3, 3), 1, 0.0, 0.1)) == "RBRDRBRR"
