"""Farthest points against their definition and scipy; ties, repeats, NaN, stacked clouds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from stacked_clouds import lattice, scattered, squared, starts_of

from cakdp_ext import ops

pytestmark = pytest.mark.usefixtures("implementation")


def chosen_by_definition(cloud, number):
    """Rows of one cloud ``(N, 3)``, distances in its own precision."""
    finite = [i for i, point in enumerate(cloud) if np.isfinite(point).all()]
    chosen = finite[:1]
    while len(chosen) < min(number, len(finite)):
        left = [i for i in finite if i not in chosen]
        with np.errstate(over="ignore"):
            nearest = squared(cloud[left][:, None], cloud[chosen]).min(1)
        chosen.append(left[int(np.argmax(nearest))])
    return [chosen[i % len(chosen)] for i in range(number)]


def on(device, dtype, cloud):
    return cloud.to(dtype).to(device)


@pytest.mark.parametrize("make", [lattice, scattered])
@pytest.mark.parametrize(("count", "number"), [(1, 1), (2, 2), (31, 12), (64, 40), (65, 65), (500, 25)])
def test_each_choice_is_that_of_the_definition(device, dtype, make, count, number):
    clouds = torch.stack([make(count, 0), make(count, 1)]).to(dtype)
    found = ops.farthest_point_sampling(clouds.to(device), number)
    assert found.tolist() == [chosen_by_definition(cloud.numpy(), number) for cloud in clouds]
    assert found.dtype == torch.int64


def test_more_points_than_a_warp_for_each_thread_of_a_block(device):
    cloud = scattered(40_000, 9).float()
    assert ops.farthest_point_sampling(cloud[None].to(device), 6)[0].tolist() == chosen_by_definition(cloud.numpy(), 6)


def test_no_point_is_farther_than_the_one_chosen_says_scipy(device, dtype):
    cloud = scattered(1100, 2)
    found = ops.farthest_point_sampling(on(device, dtype, cloud)[None], 25)[0].cpu()
    assert found[0] == 0
    for step in range(1, len(found)):
        distance = cKDTree(cloud[found[:step]]).query(cloud)[0]
        assert distance[found[step]] == pytest.approx(distance.max(), rel=1e-6)


def test_of_points_equally_far_the_lowest_index_is_taken(device, dtype):
    corners = [[0, 0, 0], [1, 1, 0], [1, 0, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0], [0, 0, 0]]
    cloud = torch.tensor(corners, device=device, dtype=dtype)
    assert ops.farthest_point_sampling(cloud[None], 7).tolist() == [[0, 1, 3, 4, 5, 2, 6]]


def test_none_is_taken_twice_before_all_have_been(device, dtype):
    cloud = on(device, dtype, lattice(90, 3, side=1))
    found = ops.farthest_point_sampling(cloud[None], 225)[0].tolist()
    assert sorted(found[:90]) == list(range(90))
    assert found[90:] == (found[:90] * 2)[:135]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_passed_over(device, dtype, bad):
    cloud = scattered(50, 4)
    for row, axis in ((0, 0), (7, 1), (8, 2), (49, 0)):
        cloud[row, axis] = bad
    found = ops.farthest_point_sampling(on(device, dtype, cloud)[None], 60)[0].tolist()
    assert found == chosen_by_definition(cloud.to(dtype).numpy(), 60)
    assert found[0] == 1
    assert not {0, 7, 8, 49} & set(found)


def test_a_cloud_without_a_finite_point_is_taken_in_order(device, dtype):
    cloud = torch.full((1, 3, 3), torch.nan, device=device, dtype=dtype)
    assert ops.farthest_point_sampling(cloud, 5).tolist() == [[0, 1, 2, 0, 1]]


def test_squares_may_overflow(device):
    cloud = (lattice(40, 5) * 1e25).float()
    found = ops.farthest_point_sampling(cloud[None].to(device), 40)[0]
    assert found.tolist() == chosen_by_definition(cloud.numpy(), 40)


def test_far_from_origin(device):
    cloud = (scattered(150, 6) * 16).round().float() / 16
    shift = torch.tensor([48000.0, -48000.0, 0])
    near = ops.farthest_point_sampling(cloud[None].to(device), 30)
    assert ops.farthest_point_sampling((cloud + shift)[None].to(device), 30).tolist() == near.tolist()


@pytest.mark.parametrize("numbers", [9, [9, 9, 9, 9], torch.tensor([9, 9, 9, 9])])
def test_stacked_clouds_do_not_see_each_other(device, dtype, numbers):
    clouds = [on(device, dtype, scattered(count, count)) for count in (70, 5, 129, 9)]
    counts = torch.tensor([len(cloud) for cloud in clouds], device=device)
    found = ops.farthest_point_sampling_stacked(torch.cat(clouds), counts, numbers)
    alone = [ops.farthest_point_sampling(cloud[None], 9)[0] for cloud in clouds]
    starts = starts_of(counts.tolist())
    assert found.tolist() == [start + i for start, own in zip(starts, alone, strict=False) for i in own.tolist()]


def test_a_stacked_cloud_may_ask_for_its_own_number(device, dtype):
    clouds = [on(device, dtype, scattered(count, count)) for count in (30, 0, 40)]
    counts = torch.tensor([30, 0, 40], device=device, dtype=torch.int32)
    found = ops.farthest_point_sampling_stacked(torch.cat(clouds), counts, [4, 0, 2]).tolist()
    assert found[:4] == ops.farthest_point_sampling(clouds[0][None], 4)[0].tolist()
    assert found[4:] == [30 + i for i in ops.farthest_point_sampling(clouds[2][None], 2)[0].tolist()]


def test_columns_of_a_wider_cloud_will_do(device):
    cloud = torch.cat((scattered(50, 7), torch.rand(50, 2)), dim=1).float().to(device)[None]
    found = ops.farthest_point_sampling(cloud[..., :3], 20)
    assert found.tolist() == ops.farthest_point_sampling(cloud[..., :3].contiguous(), 20).tolist()


@pytest.mark.parametrize(("frames", "points", "number"), [(0, 5, 3), (2, 5, 0), (2, 0, 0), (0, 0, 2)])
def test_nothing_to_choose(device, frames, points, number):
    found = ops.farthest_point_sampling(torch.zeros(frames, points, 3, device=device), number)
    assert found.shape == (frames, number)
    assert found.dtype == torch.int64
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert ops.farthest_point_sampling_stacked(torch.zeros(0, 3, device=device), none, 4).shape == (0,)


def test_number_of_threads_does_not_change_the_answer(cpu_kernels):
    clouds = torch.stack([scattered(400, seed) for seed in range(4)])
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(ops.farthest_point_sampling(clouds, 50).tolist())
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1]


def test_no_gradient_flows(device):
    cloud = torch.rand(1, 5, 3, device=device, requires_grad=True)
    assert not ops.farthest_point_sampling(cloud, 2).requires_grad


def test_wrong_arguments_are_named(device):
    cloud = torch.zeros(4, 3, device=device)
    counts = torch.tensor([1, 3], device=device)
    with pytest.raises(ValueError, match=r"xyz must have shape \(any, any, 3\), got \(4, 3\)"):
        ops.farthest_point_sampling(cloud, 2)
    with pytest.raises(ValueError, match="num_samples must be at least 0, got -1"):
        ops.farthest_point_sampling(cloud[None], -1)
    with pytest.raises(ValueError, match="cannot choose 2 of no points"):
        ops.farthest_point_sampling(cloud[None, :0], 2)
    with pytest.raises(ValueError, match="num_samples must be one number a cloud, got 3 for 2 clouds"):
        ops.farthest_point_sampling_stacked(cloud, counts, [1, 1, 1])
    with pytest.raises(ValueError, match="counts must be int32 or int64, got torch.float32"):
        ops.farthest_point_sampling_stacked(cloud, counts.float(), 1)
    with pytest.raises(ValueError, match="counts and xyz must be on one device"):
        ops.farthest_point_sampling_stacked(cloud.to("meta"), counts, 1)


@pytest.mark.parametrize("counts", [[1, 2], [1, 4], [5, -1]])
def test_on_a_cpu_counts_are_held_against_the_rows(counts):
    rest = "belong to each frame: numbers of at least 0 that add up to 4, got"
    with pytest.raises(ValueError, match=f"^counts must say how many of the 4 rows of xyz {rest}"):
        ops.farthest_point_sampling_stacked(torch.zeros(4, 3), torch.tensor(counts), 1)
    with pytest.raises(ValueError, match="cannot choose 1 of the points of cloud 0, it has none; ask for 0 there"):
        ops.farthest_point_sampling_stacked(torch.zeros(4, 3), torch.tensor([0, 4]), 1)


@pytest.mark.parametrize("counts", [[0, 6], [2, 9], [2, 1], [-3, 6], [7, -7]])
def test_cuda_kernels_stay_within_the_rows_whatever_the_counts(device, cuda_kernels, counts):
    cloud = scattered(6, 8).float().to(device)
    found = torch.ops.cakdp.farthest_point_sampling(cloud, torch.tensor(counts, device=device), [3, 3])
    assert ((found >= -1) & (found < 6)).all()
    if counts == [0, 6]:
        assert found[:3].tolist() == [-1, -1, -1]
        assert found[3:].tolist() == ops.farthest_point_sampling(cloud[None], 3)[0].tolist()
