"""Neighbours against scipy's KD-tree and shapely's polygons; order, borders, frames, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from scipy.spatial import cKDTree
from shapely_boxes import polygons, random_boxes

from cakdp_ext import ops
from cakdp_ext.ops.reference import neighbors as reference
from cakdp_ext.ops.reference import stacked

pytestmark = pytest.mark.usefixtures("implementation")


def cloud(count, seed, spread=12.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-spread / 2, spread / 2, (count, 3)) * (1, 1, 0.3))


def as_lists(neighbors):
    rows = neighbors.index.tolist()
    return [rows[s : s + n] for s, n in zip(neighbors.start.tolist(), neighbors.length.tolist(), strict=True)]


def tensors(device, dtype, xyz, counts, new_xyz, new_counts):
    given = (torch.as_tensor(counts, device=device), torch.as_tensor(new_counts, device=device))
    return xyz.to(device, dtype), given[0], new_xyz.to(device, dtype), given[1]


def one_frame(device, dtype, xyz, new_xyz):
    return tensors(device, dtype, xyz, [len(xyz)], new_xyz, [len(new_xyz)])


@pytest.mark.parametrize(("neighbor_type", "norm"), [("cube", math.inf), ("ball", 2)])
@pytest.mark.parametrize("max_distance", [0.3, 1.1, 40.0])
def test_neighbours_are_those_of_scipys_tree(device, dtype, neighbor_type, norm, max_distance):
    xyz, new_xyz = cloud(900, 0).to(dtype), cloud(70, 1).to(dtype)
    found = ops.local_neighbors(
        *one_frame(device, dtype, xyz, new_xyz), max_distance, None, neighbor_type=neighbor_type
    )
    wanted = cKDTree(xyz.double()).query_ball_point(new_xyz.double(), max_distance, p=norm, return_sorted=True)
    assert as_lists(found) == list(wanted)
    assert {found.start.dtype, found.length.dtype, found.index.dtype} == {torch.int64}
    assert found.start.tolist() == (found.length.cumsum(0) - found.length).tolist()
    assert sum(map(len, wanted)) > 10


def test_boxes_hold_what_shapely_says(device, dtype):
    boxes = random_boxes(40, 2).to(dtype)
    points = cloud(2000, 3).to(dtype)
    exact, height = boxes.double(), (points[:, 2, None] - boxes[:, 2]).double().abs() - boxes[:, 5].double() / 2
    gap = shapely.distance(
        shapely.points(points[:, :2].double().numpy())[:, None], shapely.boundary(polygons(exact))[None]
    )
    points = points[(torch.from_numpy(gap) > 1e-4).all(1) & (height.abs() > 1e-4).all(1)]
    inside = shapely.contains_xy(polygons(exact)[:, None], *points[:, :2].double().numpy().T[:, None])
    inside &= ((points[:, 2] - boxes[:, 2, None]).abs() <= boxes[:, 5, None] / 2).numpy()
    found = ops.neighbors_in_boxes(points.to(device), boxes.to(device))
    assert as_lists(found) == [np.flatnonzero(row).tolist() for row in inside]
    assert inside.sum() > 100


@pytest.mark.parametrize("neighbor_type", ["cube", "ball"])
@pytest.mark.parametrize("num_samples", [0, 1, 7])
def test_a_limit_keeps_the_first_points(device, dtype, neighbor_type, num_samples):
    given = one_frame(device, dtype, cloud(9000, 4), cloud(20, 5))
    every = as_lists(ops.local_neighbors(*given, 1.5, None, neighbor_type))
    some = as_lists(ops.local_neighbors(*given, 1.5, num_samples, neighbor_type))
    assert some == [rows[:num_samples] for rows in every]
    assert max(map(len, every)) > 7


def test_blocks_of_the_reference_leave_no_seam(monkeypatch):
    monkeypatch.setattr(stacked, "DENSE_LIMIT", 300)
    points, boxes = cloud(100, 6), random_boxes(30, 7)
    counts = (torch.tensor([60, 40]), torch.tensor([10, 20]))
    lists = as_lists(ops.Neighbors(*reference.neighbors_in_boxes(points, counts[0], boxes, counts[1], 3)))
    monkeypatch.undo()
    assert lists == as_lists(ops.neighbors_in_boxes(points, boxes, *counts, max_points=3))


@pytest.mark.parametrize("neighbor_type", ["cube", "ball"])
def test_a_point_exactly_at_the_distance_counts(device, dtype, neighbor_type):
    xyz = torch.tensor([[1.5, 0, 0], [0, -1.5, 0], [0, 0, 1.5], [1.501, 0, 0], [1.25, 1.25, 0]])
    lists = as_lists(
        ops.local_neighbors(*one_frame(device, dtype, xyz, torch.zeros(1, 3)), 1.5, None, neighbor_type=neighbor_type)
    )
    assert lists == [[0, 1, 2, 4] if neighbor_type == "cube" else [0, 1, 2]]


@pytest.mark.parametrize("neighbor_type", ["cube", "ball"])
def test_frames_do_not_see_each_other(device, dtype, neighbor_type):
    xyz, new_xyz = cloud(700, 8), cloud(60, 9)
    counts, new_counts = [300, 0, 150, 250], [13, 7, 0, 40]
    given = tensors(device, dtype, xyz, counts, new_xyz, new_counts)
    found = as_lists(ops.local_neighbors(*given, 1.2, None, neighbor_type))
    wanted, first = [], 0
    for own, queries in zip(xyz.split(counts), new_xyz.split(new_counts), strict=True):
        alone = one_frame(device, dtype, own, queries)
        lists = as_lists(ops.local_neighbors(*alone, 1.2, None, neighbor_type))
        wanted += [[first + row for row in rows] for rows in lists]
        first += len(own)
    assert found == wanted


def test_far_from_origin(device):
    xyz, new_xyz = ((cloud(count, seed) * 64).round() / 64 for count, seed in ((400, 10), (30, 11)))
    shift = torch.tensor([48000.0, -48000.0, 0])
    near = ops.local_neighbors(*one_frame(device, torch.float32, xyz, new_xyz), 1.0)
    far = ops.local_neighbors(*one_frame(device, torch.float32, xyz + shift, new_xyz + shift), 1.0)
    assert as_lists(far) == as_lists(near)
    assert len(near.index) > 10


@pytest.mark.parametrize("neighbor_type", ["cube", "ball"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_neighbour_and_has_none(device, dtype, neighbor_type, bad):
    xyz = torch.zeros(4, 3)
    xyz[1, 0] = xyz[2, 2] = bad
    new_xyz = torch.zeros(3, 3)
    new_xyz[1, 1] = bad
    given = one_frame(device, dtype, xyz, new_xyz)
    assert as_lists(ops.local_neighbors(*given, 5.0, None, neighbor_type)) == [[0, 3], [], [0, 3]]


@pytest.mark.parametrize("column", range(7))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_box_that_is_not_finite_holds_nothing(device, dtype, column, bad):
    box = torch.tensor([[0, 0, 0, 4, 2, 1, 0.2]], device=device, dtype=dtype)
    box[0, column] = bad
    assert as_lists(ops.neighbors_in_boxes(torch.zeros(2, 3, device=device, dtype=dtype), box)) == [[]]


@pytest.mark.parametrize("neighbor_type", ["cube", "ball"])
@pytest.mark.parametrize(("points", "queries"), [(0, 0), (0, 3), (4, 0), (1, 1)])
def test_few_points_and_queries(device, dtype, neighbor_type, points, queries):
    given = one_frame(device, dtype, cloud(points, 12) + 99, cloud(queries, 13))
    found = ops.local_neighbors(*given, 1.0, None, neighbor_type)
    assert as_lists(found) == [[]] * queries
    assert found.index.shape == (0,)


def test_no_frames(device):
    none = torch.zeros(0, dtype=torch.int64, device=device)
    found = ops.local_neighbors(torch.zeros(0, 3, device=device), none, torch.zeros(0, 3, device=device), none, 1.0)
    assert as_lists(found) == []


def test_inputs_may_be_strided_and_have_32_bits(device):
    wide = torch.cat((cloud(200, 14), cloud(200, 15)), dim=1).float().to(device)
    counts = torch.tensor([150, 50], dtype=torch.int32, device=device)
    new_counts = torch.tensor([[30, 0], [10, 0]], dtype=torch.int32, device=device)[:, 0]
    found = ops.local_neighbors(wide[:, :3], counts, wide[:40, 3:], new_counts, 2.0)
    wanted = ops.local_neighbors(
        wide[:, :3].clone(), counts.long(), wide[:40, 3:].clone(), new_counts.clone().long(), 2.0
    )
    assert as_lists(found) == as_lists(wanted)
    assert len(found.index) > 10


def test_three_nearest_are_scipys_among_the_neighbours(device, dtype):
    xyz, new_xyz = cloud(900, 16).to(dtype), cloud(60, 17, spread=15.0).to(dtype)
    centers = new_xyz[:, None] + cloud(8, 18, spread=2.0).to(dtype)
    neighbors = ops.local_neighbors(*one_frame(device, dtype, xyz, new_xyz), 1.1)
    distance_squared, index = ops.local_three_nn(xyz.to(device), centers.to(device), neighbors)
    for rows, middles, squared, found in zip(as_lists(neighbors), centers, distance_squared, index, strict=True):
        wanted = np.full((8, 3), math.inf), np.full((8, 3), -1)
        if rows:
            distances, places = cKDTree(xyz[rows].double()).query(middles.double(), k=range(1, 4))
            wanted = distances, np.append(rows, -1)[places]
        assert found.tolist() == wanted[1].tolist()
        torch.testing.assert_close(squared.cpu().double().sqrt(), torch.from_numpy(wanted[0]), atol=1e-5, rtol=1e-5)
    assert (neighbors.length < 3).any()
    assert (neighbors.length > 20).any()


def test_of_equally_near_points_the_first_in_the_list_comes_first(device, dtype):
    xyz = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, 0, 0.5]], device=device, dtype=dtype)
    lists = ops.Neighbors(*(torch.tensor(rows, device=device) for rows in ([0, 1], [5, 2], [3, 2, 1, 0, 4, 1])))
    _, index = ops.local_three_nn(xyz, torch.zeros(2, 1, 3, device=device, dtype=dtype), lists)
    assert index.tolist() == [[[4, 3, 2]], [[2, 1, -1]]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_distance_that_is_not_finite_is_not_near(device, dtype, bad):
    xyz = torch.tensor([[0.0, 0, 0], [bad, 0, 0]], device=device, dtype=dtype)
    lists = ops.Neighbors(*(torch.tensor(rows, device=device) for rows in ([0], [2], [1, 0])))
    distance_squared, index = ops.local_three_nn(xyz, torch.ones(1, 1, 3, device=device, dtype=dtype), lists)
    assert index.tolist() == [[[0, -1, -1]]]
    assert distance_squared.tolist() == [[[3, math.inf, math.inf]]]


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_three_nearest_of_no_centres(device, shape):
    zero = torch.zeros(shape[0], dtype=torch.int64, device=device)
    lists = ops.Neighbors(zero, zero, torch.zeros(0, dtype=torch.int64, device=device))
    distance_squared, index = ops.local_three_nn(
        torch.zeros(5, 3, device=device), torch.zeros(shape, device=device), lists
    )
    assert distance_squared.shape == index.shape == shape


def test_wrong_arguments_are_named(device):
    xyz, counts, new_xyz, new_counts = one_frame(device, torch.float32, cloud(6, 19), cloud(4, 20))
    with pytest.raises(ValueError, match=r"xyz must have shape \(any, 3\), got \(6, 2\)"):
        ops.local_neighbors(xyz[:, :2], counts, new_xyz, new_counts, 1.0)
    with pytest.raises(ValueError, match="xyz and new_xyz must share a dtype"):
        ops.local_neighbors(xyz, counts, new_xyz.double(), new_counts, 1.0)
    with pytest.raises(ValueError, match="counts must be int32 or int64, got torch.float32"):
        ops.local_neighbors(xyz, counts.float(), new_xyz, new_counts, 1.0)
    with pytest.raises(
        ValueError, match="counts and new_counts must be of the same frames and name as many, got 1 and 2"
    ):
        ops.local_neighbors(xyz, counts, new_xyz, torch.tensor([1, 3], device=device), 1.0)
    with pytest.raises(ValueError, match="neighbor_type must be 'cube' or 'ball', got 'box'"):
        ops.local_neighbors(xyz, counts, new_xyz, new_counts, 1.0, neighbor_type="box")
    with pytest.raises(ValueError, match="max_distance must be positive metres, got nan"):
        ops.local_neighbors(xyz, counts, new_xyz, new_counts, math.nan)
    with pytest.raises(ValueError, match="num_samples must be at least 0, got -1; for no limit give None"):
        ops.local_neighbors(xyz, counts, new_xyz, new_counts, 1.0, -1)
    with pytest.raises(ValueError, match="point_counts and box_counts go together"):
        ops.neighbors_in_boxes(xyz, torch.zeros(2, 7, device=device), counts)
    neighbors = ops.local_neighbors(xyz, counts, new_xyz, new_counts, 1.0)
    with pytest.raises(ValueError, match=r"start must have shape \(3\), got \(4,\)"):
        ops.local_three_nn(xyz, torch.zeros(3, 8, 3, device=device), neighbors)


@pytest.mark.parametrize(
    ("counts", "new_counts", "which"),
    [
        ([5], [4], "counts must say how many of the 6 rows of xyz"),
        ([7, -1], [4, 0], "counts must say how many of the 6 rows of xyz"),
        ([6], [3], "new_counts must say how many of the 4 rows of new_xyz"),
    ],
)
def test_counts_that_do_not_add_up_are_refused_on_cpu(counts, new_counts, which):
    given = tensors("cpu", torch.float32, cloud(6, 21), counts, cloud(4, 22), new_counts)
    rest = "belong to each frame: numbers of at least 0 that add up to [64], got"
    with pytest.raises(ValueError, match=f"^{which} {rest}"):
        ops.local_neighbors(*given, 1.0)


@pytest.mark.parametrize(
    ("counts", "new_counts", "wanted"),
    [
        ([0, 6], [3, 3], [[], [], [], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]),
        ([2, 9], [3, 3], [[0, 1], [0, 1], [0, 1], [2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 5]]),
        ([2, 1], [3, 3], [[0, 1], [0, 1], [0, 1], [2], [2], [2]]),
        ([7, -7], [3, 3], [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [], [], []]),
        ([3, 3], [2, 9], [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5], [3, 4, 5]]),
        ([3, 3], [2, 1], [[0, 1, 2], [0, 1, 2], [3, 4, 5], [], [], []]),
        ([3, 3], [-3, 6], [[3, 4, 5], [3, 4, 5], [3, 4, 5], [3, 4, 5], [3, 4, 5], [3, 4, 5]]),
        ([], [], [[], [], [], [], [], []]),
    ],
)
@pytest.mark.usefixtures("cuda_kernels")
def test_cuda_kernels_stay_within_the_rows_whatever_the_counts(device, counts, new_counts, wanted):
    points, boxes = torch.zeros(6, 3, device=device), torch.full((6, 7), 0.1, device=device)
    of_points = torch.tensor(counts, dtype=torch.int64, device=device)
    of_queries = torch.tensor(new_counts, dtype=torch.int64, device=device)
    boxes[:, 3:6] = 1
    in_boxes = torch.ops.cakdp.neighbors_in_boxes(points, of_points, boxes, of_queries, -1)
    in_balls = torch.ops.cakdp.neighbors_in_balls(points, of_points, boxes[:, :3], of_queries, 1.0, -1)
    assert as_lists(ops.Neighbors(*in_boxes)) == wanted
    assert as_lists(ops.Neighbors(*in_balls)) == wanted


@pytest.mark.usefixtures("checks_rows")
@pytest.mark.parametrize(
    ("start", "length", "index"), [(0, 3, [0, 1]), (-1, 2, [0, 1]), (0, 2, [0, 6]), (0, 2, [-1, 0])]
)
def test_lists_that_reach_out_are_refused_on_cpu(start, length, index):
    lists = ops.Neighbors(torch.tensor([start]), torch.tensor([length]), torch.tensor(index))
    with pytest.raises(ValueError, match="a list (reaches beyond the 2 rows that there are|holds row .* of 6)"):
        ops.local_three_nn(cloud(6, 23), torch.zeros(1, 2, 3, dtype=torch.float64), lists)
