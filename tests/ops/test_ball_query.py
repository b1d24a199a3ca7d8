"""Points within a radius against their definition and scipy; order, several radii, frames, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from stacked_clouds import lattice, scattered, squared, starts_of

from cakdp_ext import ops
from cakdp_ext.ops.reference import stacked

pytestmark = pytest.mark.usefixtures("implementation")


def found_by_definition(xyz, counts, new_xyz, new_counts, radius, number):
    index, empty = [], []
    starts, new_starts = starts_of(counts), starts_of(new_counts)
    for frame in range(len(counts)):
        for query in new_xyz[new_starts[frame] : new_starts[frame + 1]]:
            rows = range(starts[frame], starts[frame + 1])
            near = [row for row in rows if squared(xyz[row], query) < xyz.dtype.type(radius * radius)][:number]
            empty.append(not near)
            index.append(near + (near[:1] or [0]) * (number - len(near)))
    return index, empty


def run(device, dtype, xyz, counts, new_xyz, new_counts, radius, number):
    return ops.ball_query(
        xyz.to(dtype).to(device),
        torch.tensor(counts, device=device, dtype=torch.int64),
        new_xyz.to(dtype).to(device),
        torch.tensor(new_counts, device=device, dtype=torch.int64),
        radius,
        number,
    )


def as_lists(answer):
    index, empty = answer
    assert index.dtype == torch.int64
    assert empty.dtype == torch.bool
    return index.tolist(), empty.tolist()


def at_origin(device, dtype, points, radius, number):
    points = torch.tensor(points, dtype=torch.float64).reshape(-1, 3)
    return as_lists(run(device, dtype, points, [len(points)], torch.zeros(1, 3), [1], radius, number))


@pytest.mark.parametrize("make", [lattice, scattered])
@pytest.mark.parametrize(("radius", "number"), [(0.6, 1), (1.0, 3), (2.0, 40), (100.0, 7)])
def test_neighbours_are_those_of_the_definition(device, dtype, make, radius, number):
    counts, new_counts = [150, 0, 7, 300], [20, 3, 0, 33]
    xyz, new_xyz = make(sum(counts), 0).to(dtype), make(sum(new_counts), 1).to(dtype)
    found = as_lists(run(device, dtype, xyz, counts, new_xyz, new_counts, radius, number))
    assert found == found_by_definition(xyz.numpy(), counts, new_xyz.numpy(), new_counts, radius, number)


def test_neighbours_are_scipys(device, dtype):
    xyz, new_xyz = scattered(2500, 2), scattered(40, 3)
    index, empty = as_lists(run(device, dtype, xyz, [2500], new_xyz, [40], 0.9, 60))
    wanted = [sorted(rows) for rows in cKDTree(xyz).query_ball_point(new_xyz, 0.9)]
    assert max(map(len, wanted)) < 60
    assert [sorted(set(rows)) if not none else [] for rows, none in zip(index, empty, strict=True)] == wanted
    assert any(wanted)


def test_of_many_neighbours_the_first_rows_are_taken(device, dtype):
    xyz = scattered(1500, 4, spread=1.0)
    index, _ = as_lists(run(device, dtype, xyz, [1500], xyz[:3], [3], 5.0, 4))
    assert index == [[0, 1, 2, 3]] * 3
    index, _ = as_lists(run(device, dtype, xyz.flip(0), [1500], xyz[:3], [3], 5.0, 70))
    assert index == [list(range(70))] * 3


def test_slots_that_found_nothing_repeat_the_first(device, dtype):
    assert at_origin(device, dtype, [[9, 0, 0], [0, 0, 1], [0, 9, 0], [0, 0, 0]], 2.0, 5) == (
        [[1, 3, 1, 1, 1]],
        [False],
    )
    assert at_origin(device, dtype, [[9, 0, 0], [0, 9, 0]], 2.0, 3) == ([[0, 0, 0]], [True])


def test_a_point_exactly_at_the_radius_does_not_count(device, dtype):
    points = [[0, 0, 2], [2, 0, 0], [0, -1, 0], [0, -2, 0]]
    assert at_origin(device, dtype, points, 2.0, 2) == ([[2, 2]], [False])
    assert at_origin(device, dtype, points, 2.001, 4) == ([[0, 1, 2, 3]], [False])


@pytest.mark.parametrize(
    ("radii", "numbers"), [([0.7], [4]), ([0.7, 1.5], [4, 9]), ([3.0, 0.5, 1.0, 2.0, 0.7, 2.0], [3, 2, 40, 1, 5, 8])]
)
def test_several_radii_are_several_queries(device, dtype, radii, numbers):
    counts, new_counts = [200, 100], [15, 25]
    given = scattered(300, 5), counts, scattered(40, 6), new_counts
    answers = run(device, dtype, *given, radii, numbers)
    alone = [run(device, dtype, *given, radius, number) for radius, number in zip(radii, numbers, strict=True)]
    assert list(map(as_lists, answers)) == list(map(as_lists, alone))


def test_blocks_of_the_reference_leave_no_seam(device, dtype, monkeypatch):
    monkeypatch.setattr(stacked, "DENSE_LIMIT", 300)
    xyz, new_xyz = lattice(90, 7).to(dtype), lattice(30, 8).to(dtype)
    found = as_lists(run(device, dtype, xyz, [50, 40], new_xyz, [10, 20], 1.2, 5))
    assert found == found_by_definition(xyz.numpy(), [50, 40], new_xyz.numpy(), [10, 20], 1.2, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_neighbours_and_is_none(device, dtype, bad):
    xyz, new_xyz = lattice(80, 9), lattice(20, 10)
    for row in range(0, 80, 5):
        xyz[row, row % 3] = bad
    for row in range(0, 20, 5):
        new_xyz[row, row % 3] = bad
    with np.errstate(invalid="ignore"):
        wanted = found_by_definition(xyz.to(dtype).numpy(), [80], new_xyz.to(dtype).numpy(), [20], 3.0, 50)
    index, empty = as_lists(run(device, dtype, xyz, [80], new_xyz, [20], 3.0, 50))
    assert (index, empty) == wanted
    assert empty[::5] == [True] * 4
    assert not {row % 5 for rows, none in zip(index, empty, strict=True) for row in rows if not none} & {0}


def test_far_from_origin(device):
    xyz, new_xyz = (scattered(400, 11) * 16).round() / 16, (scattered(50, 12) * 16).round() / 16
    shift = torch.tensor([48000.0, -48000.0, 0])
    near = run(device, torch.float32, xyz, [400], new_xyz, [50], 1.3, 6)
    far = run(device, torch.float32, xyz + shift, [400], new_xyz + shift, [50], 1.3, 6)
    assert as_lists(far) == as_lists(near)
    assert not near[1].all()


@pytest.mark.parametrize(("points", "queries"), [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_few_points_and_queries(device, dtype, points, queries):
    index, empty = run(device, dtype, scattered(points, 13) + 99, [points], scattered(queries, 14), [queries], 1.0, 3)
    assert index.tolist() == [[0] * 3] * queries
    assert index.shape == (queries, 3)
    assert empty.tolist() == [True] * queries


def test_no_frames(device):
    index, empty = run(device, torch.float32, torch.zeros(0, 3), [], torch.zeros(0, 3), [], 1.0, 3)
    assert (index.shape, empty.shape) == ((0, 3), (0,))


def test_columns_and_32_bits_will_do(device):
    wide = torch.cat((scattered(60, 15), torch.rand(60, 2)), dim=1).float().to(device)
    counts = torch.tensor([60], dtype=torch.int32, device=device)
    found = ops.ball_query(wide[:, :3], counts, wide[:, :3], counts, 1.5, 4)
    assert as_lists(found) == as_lists(run(device, torch.float32, wide[:, :3], [60], wide[:, :3], [60], 1.5, 4))


def test_number_of_threads_does_not_change_the_answer(device, cpu_kernels):
    given = scattered(900, 16), [500, 400], scattered(300, 17), [100, 200]
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(as_lists(run(device, torch.float32, *given, 1.5, 8)))
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1]


def test_wrong_arguments_are_named(device):
    xyz, counts = torch.zeros(4, 3, device=device), torch.tensor([4], device=device)
    good = (xyz, counts, xyz, counts)
    with pytest.raises(ValueError, match=r"new_xyz must have shape \(any, 3\), got \(4, 2\)"):
        ops.ball_query(xyz, counts, xyz[:, :2], counts, 1.0, 2)
    with pytest.raises(ValueError, match="xyz and new_xyz must share a dtype, got torch.float32 and torch.float64"):
        ops.ball_query(xyz, counts, xyz.double(), counts, 1.0, 2)
    with pytest.raises(ValueError, match="new_counts must be int32 or int64"):
        ops.ball_query(xyz, counts, xyz, counts.float(), 1.0, 2)
    with pytest.raises(
        ValueError, match="counts and new_counts must be of the same frames and name as many, got 1 and 2"
    ):
        ops.ball_query(xyz, counts, xyz, torch.tensor([4, 0], device=device), 1.0, 2)
    with pytest.raises(ValueError, match="radius must be positive metres, got nan"):
        ops.ball_query(*good, float("nan"), 2)
    with pytest.raises(ValueError, match="radius must be positive metres, got 0.0"):
        ops.ball_query(*good, [1.0, 0.0], [2, 2])
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        ops.ball_query(*good, 1.0, 0)
    with pytest.raises(ValueError, match="radius and num_samples must be as many"):
        ops.ball_query(*good, [1.0, 2.0], [2])


@pytest.mark.parametrize("counts", [[1, 2], [1, 4], [5, -1]])
def test_on_a_cpu_counts_are_held_against_the_rows(counts):
    xyz, good, bad = torch.zeros(4, 3), torch.tensor([2, 2]), torch.tensor(counts)
    rest = "belong to each frame: numbers of at least 0 that add up to 4, got"
    with pytest.raises(ValueError, match=f"^counts must say how many of the 4 rows of xyz {rest}"):
        ops.ball_query(xyz, bad, xyz, good, 1.0, 2)
    with pytest.raises(ValueError, match=f"^new_counts must say how many of the 4 rows of new_xyz {rest}"):
        ops.ball_query(xyz, good, xyz, bad, 1.0, 2)


@pytest.mark.parametrize("counts", [[1, 2], [1, 4], [5, -1]])
@pytest.mark.parametrize(
    "call",
    [
        lambda o, xyz, good, bad: o.ball_query(xyz, bad, xyz, good, [1.0], [2]),
        lambda o, xyz, good, bad: o.ball_query(xyz, good, xyz, bad, [1.0], [2]),
        lambda o, xyz, good, bad: o.three_nn(xyz, bad, xyz, good),
        lambda o, xyz, good, bad: o.three_nn(xyz, good, xyz, bad),
        lambda o, xyz, good, bad: o.farthest_point_sampling(xyz, bad, [1, 1]),
        lambda o, xyz, good, bad: o.neighbors_in_boxes(xyz, bad, torch.zeros(4, 7), good, -1),
        lambda o, xyz, good, bad: o.neighbors_in_boxes(xyz, good, torch.zeros(4, 7), bad, -1),
        lambda o, xyz, good, bad: o.neighbors_in_balls(xyz, bad, xyz, good, 1.0, -1),
        lambda o, xyz, good, bad: o.neighbors_in_balls(xyz, good, xyz, bad, 1.0, -1),
    ],
)
def test_a_direct_call_on_a_cpu_refuses_counts_of_other_rows(cpu_kernels, call, counts):
    if cpu_kernels == "reference":
        pytest.skip("concerns the native ops")
    with pytest.raises(ValueError, match="counts must add up to 4 rows"):
        call(torch.ops.cakdp, torch.zeros(4, 3), torch.tensor([2, 2]), torch.tensor(counts))


@pytest.mark.parametrize("counts", [[0, 6], [2, 9], [2, 1], [-3, 6], [7, -7]])
def test_cuda_kernels_stay_within_the_rows_whatever_the_counts(device, cuda_kernels, counts):
    xyz, good, bad = torch.zeros(6, 3, device=device), torch.tensor([3, 3], device=device), torch.tensor(counts)
    for which in ((good, bad.to(device)), (bad.to(device), good)):
        (index,), (empty,) = torch.ops.cakdp.ball_query(xyz, which[0], xyz, which[1], [1.0], [4])
        assert ((index >= 0) & (index < 6)).all()
        if counts == [2, 1] and which[0] is good:
            assert empty.tolist() == [False] * 3 + [True] * 3
