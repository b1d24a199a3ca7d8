"""RoI-aware pooling against numpy's loops; rigid motion, frames, limits, gradients, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cell_oracle import far_from_faces, members_of, pooled, rounded
from shapely_boxes import random_boxes

from cakdp_ext import ops

pytestmark = pytest.mark.usefixtures("implementation")
SIZE = (4, 3, 2)


def scene(dtype, seed=0, num_points=800, num_rois=10, size=SIZE):
    """RoIs that overlap, points away from their faces, and features, in float64 numpy but of the dtype's precision."""
    rng = np.random.default_rng(seed)
    rois = rounded(random_boxes(num_rois, seed, spread=6.0, smallest=1.0).numpy(), dtype)
    points = rounded(rng.uniform(-4, 4, (num_points, 3)) * (1, 1, 0.4), dtype)
    points = far_from_faces(points, rois, size)
    return rois, points, rounded(rng.normal(size=(len(points), 6)), dtype)


def to(device, dtype, *arrays):
    return tuple(torch.from_numpy(array).to(device, dtype) for array in arrays)


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("max_points", [1, 3, 128])
def test_pooled_features_are_those_of_loops(device, dtype, mode, max_points):
    rois, points, features = scene(dtype)
    found = ops.roiaware_pool(*to(device, dtype, rois, points, features), SIZE, max_points, mode)
    wanted, _ = pooled(features, members_of(points, rois, SIZE, max_points), SIZE, mode)
    torch.testing.assert_close(found.double().cpu(), wanted, atol=1e-6, rtol=1e-5)
    assert found.dtype == dtype
    assert (wanted != 0).any(-1).sum() > 20


def test_cells_give_winners_and_points(device, dtype):
    rois, points, features = scene(dtype, seed=1)
    cells = ops.roiaware_cells(*to(device, dtype, rois, points), SIZE, 2)
    members = members_of(points, rois, SIZE, 2)
    _, winner = ops.pool_cells(*to(device, dtype, features), cells, "max")
    assert torch.equal(winner.cpu(), pooled(features, members, SIZE, "max")[1])
    table = cells.table(2).cpu()
    assert table.shape == (len(rois), *SIZE, 3)
    for roi, own in enumerate(members):
        assert int(table[roi, ..., 0].sum()) == sum(map(len, own.values()))
        for cell, rows in own.items():
            assert table[(roi, *cell)].tolist() == [len(rows), *rows, *[0] * (2 - len(rows))]


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_one_sub_voxel_pools_the_whole_roi(device, dtype, mode):
    rois, points, features = to(device, dtype, *scene(dtype, seed=2, size=(1, 1, 1)))
    found = ops.roiaware_pool(rois, points, features, 1, 10**6, mode).view(len(rois), -1)
    for roi, values in zip(rois, found, strict=True):
        own = features[ops.points_in_boxes(points, roi[None]) == 0]
        wanted = torch.zeros_like(values) if len(own) == 0 else own.amax(0) if mode == "max" else own.mean(0)
        torch.testing.assert_close(values, wanted)


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_rigid_motion_changes_nothing(device, mode):
    rois, points, features = to(device, torch.float64, *scene(torch.float64, seed=3))
    before = ops.roiaware_pool(rois, points, features, SIZE, mode=mode)
    turn, shift = 1.1, torch.tensor([30.0, -20, 1], device=device, dtype=torch.float64)
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], device=device, dtype=torch.float64)
    rois = torch.cat((rois[:, :3] @ rotation + shift, rois[:, 3:6], rois[:, 6:] + turn), dim=1)
    after = ops.roiaware_pool(rois, points @ rotation + shift, features, SIZE, mode=mode)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_frames_do_not_see_each_other(device, dtype, mode):
    rois, points, features = to(device, dtype, *scene(dtype, seed=4, num_rois=12))
    roi_counts, point_counts = [5, 0, 7], [300, 50, len(points) - 350]
    found = ops.roiaware_pool(
        rois,
        points,
        features,
        SIZE,
        mode=mode,
        roi_counts=torch.tensor(roi_counts, device=device),
        point_counts=torch.tensor(point_counts, device=device, dtype=torch.int32),
    )
    parts = zip(rois.split(roi_counts), points.split(point_counts), features.split(point_counts), strict=True)
    wanted = torch.cat([ops.roiaware_pool(*part, SIZE, mode=mode) for part in parts])
    torch.testing.assert_close(found, wanted)
    assert (found != 0).any()


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_gradients_are_those_of_finite_differences(device, mode):
    rois, points, _ = to(device, torch.float64, *scene(torch.float64, seed=5, num_points=40, num_rois=3))
    points = points[ops.neighbors_in_boxes(points, rois).index.unique()]
    values = torch.from_numpy(np.random.default_rng(6).permutation(2 * len(points)).reshape(-1, 2) / 10.0)
    features = values.to(device).requires_grad_()
    assert len(points) > 4
    assert torch.autograd.gradcheck(lambda f: ops.roiaware_pool(rois, points, f, (2, 2, 1), 2, mode), features)


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_half_precision_is_pooled_in_float32_and_keeps_its_gradient(device, mode):
    rois, points, features = to(device, torch.float32, *scene(torch.float32, seed=7))
    half = features.half().requires_grad_()
    found = ops.roiaware_pool(rois, points, half, SIZE, mode=mode)
    torch.testing.assert_close(found, ops.roiaware_pool(rois, points, half.detach().float(), SIZE, mode=mode))
    found.sum().backward()
    assert half.grad.dtype == torch.float16
    assert half.grad.any()


@pytest.mark.parametrize("column", range(7))
def test_a_roi_that_is_not_finite_is_empty(device, dtype, column):
    roi = torch.tensor([[0, 0, 0, 4, 2, 1, 0.2]], device=device, dtype=dtype)
    roi[0, column] = math.nan
    ones = torch.ones(1, 3, device=device, dtype=dtype)
    assert not ops.roiaware_pool(roi, 0 * ones, ones, 2).any()
    roi[0, column] = 1
    assert ops.roiaware_pool(roi, math.nan * ones, ones, 2).tolist() == torch.zeros(1, 2, 2, 2, 3).tolist()


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize(("rois", "points"), [(0, 0), (0, 4), (3, 0), (1, 1)])
def test_few_rois_and_points(device, dtype, mode, rois, points):
    features = torch.ones(points, 5, device=device, dtype=dtype, requires_grad=True)
    given = torch.ones(rois, 7, device=device, dtype=dtype), torch.full((points, 3), 9.0, device=device, dtype=dtype)
    found = ops.roiaware_pool(*given, features, (3, 2, 1), mode=mode)
    assert found.shape == (rois, 3, 2, 1, 5)
    assert not found.any()
    found.sum().backward()
    assert not features.grad.any()


def test_wrong_arguments_are_named(device):
    rois, points, features = to(device, torch.float32, *scene(torch.float32, seed=8, num_points=20, num_rois=2))
    with pytest.raises(ValueError, match=r"rois must have shape \(any, 7\), got \(2, 6\)"):
        ops.roiaware_pool(rois[:, :6], points, features, SIZE)
    with pytest.raises(
        ValueError, match=rf"features must have shape \({len(points)}, any\), got \({len(points) - 1}, 6\)"
    ):
        ops.roiaware_pool(rois, points, features[1:], SIZE)
    with pytest.raises(ValueError, match="must share a dtype"):
        ops.roiaware_pool(rois, points.double(), features, SIZE)
    with pytest.raises(ValueError, match="out_size must be three positive numbers of cells, got 0"):
        ops.roiaware_pool(rois, points, features, 0)
    with pytest.raises(ValueError, match="max_points_per_voxel must be at least 1, got 0"):
        ops.roiaware_pool(rois, points, features, SIZE, 0)
    with pytest.raises(ValueError, match="mode must be 'max' or 'avg', got 'sum'"):
        ops.roiaware_pool(rois, points, features, SIZE, mode="sum")
    with pytest.raises(ValueError, match="point_counts and roi_counts go together"):
        ops.roiaware_pool(rois, points, features, SIZE, roi_counts=torch.tensor([2], device=device))
    counts = {"point_counts": torch.tensor([len(points)]).to(device), "roi_counts": torch.tensor([1, 1]).to(device)}
    with pytest.raises(ValueError, match="point_counts and roi_counts must be of the same frames and name as many"):
        ops.roiaware_pool(rois, points, features, SIZE, **counts)


def test_counts_that_do_not_add_up_are_refused_on_cpu():
    rois, points, features = to("cpu", torch.float32, *scene(torch.float32, seed=9, num_points=20, num_rois=2))
    rest = "belong to each frame: numbers of at least 0 that add up to 2, got"
    with pytest.raises(ValueError, match=f"^roi_counts must say how many of the 2 rows of rois {rest}"):
        ops.roiaware_pool(
            rois, points, features, SIZE, roi_counts=torch.tensor([3]), point_counts=torch.tensor([len(points)])
        )
