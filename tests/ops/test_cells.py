"""Points by cell and features pooled over cells: against numpy's loops; faces, order, ties, gradients, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cell_oracle import far_from_faces, members_of, pooled, rounded
from shapely_boxes import random_boxes

from cakdp_ext import ops
from cakdp_ext.ops.reference import cells as reference

pytestmark = pytest.mark.usefixtures("implementation")


def scene(dtype, num_cells, seed=0, num_points=600, num_boxes=9):
    """Points away from all faces, boxes among them, and five features a point, as tensors and in float64 numpy."""
    rng = np.random.default_rng(seed)
    boxes = rounded(random_boxes(num_boxes, seed, spread=6.0, smallest=1.0).numpy(), dtype)
    points = rounded(rng.uniform(-4, 4, (num_points, 3)) * (1, 1, 0.4), dtype)
    points = far_from_faces(points, boxes, num_cells)
    features = rounded(rng.normal(size=(len(points), 5)), dtype)
    return points, boxes, features


def to(device, dtype, *arrays):
    return tuple(torch.from_numpy(array).to(device, dtype) for array in arrays)


def as_dicts(cells):
    members = cells.members.tolist()
    answer = []
    for first, count in zip(cells.first, cells.count, strict=True):
        places = count.nonzero().tolist()
        begins, sizes = (tensor[count > 0].tolist() for tensor in (first, count))
        rows = [members[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]
        answer.append(dict(zip(map(tuple, places), rows, strict=True)))
    return answer


def cells_of(counts, members, device="cpu"):
    """Cells of one box with so many members each, from a plain list."""
    count = torch.tensor(counts, dtype=torch.int64, device=device).view(1, len(counts), 1, 1)
    first = (count.flatten().cumsum(0) - count.flatten()).view_as(count)
    return ops.Cells(first, count, torch.tensor(members, dtype=torch.int64, device=device))


@pytest.mark.parametrize("num_cells", [(1, 1, 1), (4, 3, 2), (13, 1, 5)])
@pytest.mark.parametrize("max_points", [None, 1, 3])
def test_cells_hold_what_loops_find(device, dtype, num_cells, max_points):
    points, boxes, _ = scene(dtype, num_cells)
    given = to(device, dtype, points, boxes)
    cells = ops.group_by_cell(*given, ops.neighbors_in_boxes(*given), num_cells, max_points)
    wanted = members_of(points, boxes, num_cells, max_points)
    assert as_dicts(cells) == wanted
    assert cells.first.shape == (len(boxes), *num_cells)
    assert sum(map(len, wanted)) > 5


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("max_points", [None, 2])
def test_features_are_pooled_as_by_loops(device, dtype, mode, max_points):
    num_cells = (3, 2, 2)
    points, boxes, features = scene(dtype, num_cells, seed=1)
    given = to(device, dtype, points, boxes)
    cells = ops.group_by_cell(*given, ops.neighbors_in_boxes(*given), num_cells, max_points)
    found, winner = ops.pool_cells(*to(device, dtype, features), cells, mode)
    wanted, wanted_winner = pooled(features, members_of(points, boxes, num_cells, max_points), num_cells, mode)
    torch.testing.assert_close(found.double().cpu(), wanted, atol=1e-6, rtol=1e-5)
    assert winner is None if mode == "avg" else torch.equal(winner.cpu(), wanted_winner)
    assert found.dtype == dtype


@pytest.mark.parametrize("channels", [0, 1, 3, 16, 32, 33, 70])
@pytest.mark.parametrize("mode", ["max", "avg"])
def test_any_number_of_channels(device, mode, channels):
    rng = np.random.default_rng(channels)
    features = torch.from_numpy(rng.normal(size=(50, channels)))
    members = rng.permutation(50).tolist()
    cells = cells_of([7, 0, 40, 1, 2, 0], members, device)
    given = features.to(device).requires_grad_()
    found, _ = ops.pool_cells(given, cells, mode)
    for rows, values in zip(np.split(np.array(members), [7, 7, 47, 48, 50]), found[0, :, 0, 0], strict=True):
        own = features[rows]
        wanted = torch.zeros(channels) if len(rows) == 0 else own.amax(0) if mode == "max" else own.mean(0)
        torch.testing.assert_close(values.cpu(), wanted.double())
    found.sum().backward()
    assert given.grad.sum().item() == pytest.approx(4 * channels)


def test_blocks_of_the_reference_leave_no_seam(monkeypatch):
    rng = np.random.default_rng(2)
    features = torch.from_numpy(rng.normal(size=(80, 4)))
    counts = torch.from_numpy(rng.integers(0, 9, 40))
    members = torch.from_numpy(rng.integers(0, 80, int(counts.sum())))
    given = (features, counts.cumsum(0) - counts, counts, members)
    whole = reference.pool_cells_mean(*given), *reference.pool_cells_max(*given)
    monkeypatch.setattr(reference, "DENSE_LIMIT", 40)
    torch.testing.assert_close((reference.pool_cells_mean(*given), *reference.pool_cells_max(*given)), whole)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_point_on_a_face_lies_in_the_upper_cell_and_in_the_last_at_the_end(device, dtype, axis):
    box = torch.tensor([[8.0, -4, 2, 4, 4, 4, 0]], device=device, dtype=dtype)
    steps = torch.tensor([-2.0, -1, 0, 1, 2, -1.001, 1.999, 2.001], dtype=dtype)
    points = box[:, :3].repeat(len(steps), 1)
    points[:, axis] += steps.to(device)
    num_cells = [1, 1, 1]
    num_cells[axis] = 4
    cells = ops.group_by_cell(points, box, ops.neighbors_in_boxes(points, box), tuple(num_cells))
    first = [0, 0, 0]
    wanted = {}
    for cell, rows in enumerate([[0, 5], [1], [2], [3, 4, 6]]):
        first[axis] = cell
        wanted[tuple(first)] = rows
    assert as_dicts(cells) == [wanted]


def test_a_listed_point_beyond_the_box_counts_to_the_outermost_cell(device, dtype):
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0.3]], device=device, dtype=dtype)
    points = torch.tensor([[90.0, 20, 90], [-90, -50, -90]], device=device, dtype=dtype)
    lists = ops.Neighbors(*(torch.tensor(rows, device=device) for rows in ([0], [2], [0, 1])))
    cells = ops.group_by_cell(points, box, lists, (3, 3, 3))
    assert sum(cells.count.flatten().tolist()) == 2
    assert cells.count[0, 2, :, 2].sum() == cells.count[0, 0, :, 0].sum() == 1


def test_a_maximum_goes_to_the_first_of_equal_points(device, dtype):
    features = torch.tensor([[1.0], [3], [3], [2], [3]], device=device, dtype=dtype).requires_grad_()
    found, winner = ops.pool_cells(features, cells_of([4, 0, 1], [3, 2, 1, 0, 4], device), "max")
    assert winner.flatten().tolist() == [2, -1, 4]
    assert found.flatten().tolist() == [3, 0, 3]
    found.sum().backward()
    assert features.grad.flatten().tolist() == [0, 0, 1, 0, 1]


def test_negative_features_keep_their_maximum(device, dtype):
    found, _ = ops.pool_cells(
        torch.tensor([[-3.0], [-5]], device=device, dtype=dtype), cells_of([2], [1, 0], device), "max"
    )
    assert found.item() == -3


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("members", [[0, 1, 2], [1, 0, 2], [2, 0, 1]])
def test_a_nan_is_passed_on(device, dtype, mode, members):
    features = torch.tensor([[1.0, 1], [math.nan, 2], [3, 3]], device=device, dtype=dtype)
    found, winner = ops.pool_cells(features, cells_of([3], members, device), mode)
    assert found.isnan().flatten().tolist() == [True, False]
    assert mode == "avg" or winner.flatten().tolist() == [1, 2]


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_gradients_are_those_of_finite_differences(device, mode):
    rng = np.random.default_rng(3)
    features = torch.from_numpy(rng.permutation(60).reshape(20, 3) / 10.0).to(device).requires_grad_()
    cells = cells_of([5, 0, 1, 6, 3], rng.integers(0, 20, 15).tolist(), device)
    assert torch.autograd.gradcheck(lambda f: ops.pool_cells(f, cells, mode)[0], features)


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_number_of_threads_changes_nothing(implementation, mode):
    if implementation == "reference":
        pytest.skip("PyTorch's own sums may depend on it")
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 40, 3000).tolist()
    cells = cells_of(counts, rng.integers(0, 500, sum(counts)).tolist())
    features = torch.from_numpy(rng.normal(size=(500, 24)).astype(np.float32))
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            given = features.clone().requires_grad_()
            found, _ = ops.pool_cells(given, cells, mode)
            (found * found.detach().sin()).sum().backward()
            answers.append((found.detach(), given.grad))
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=0, rtol=0)


def test_table_lists_counts_and_rows(device):
    cells = cells_of([2, 0, 3], [7, 8, 4, 5, 6], device)
    assert cells.table(2)[0, :, 0, 0].tolist() == [[2, 7, 8], [0, 0, 0], [2, 4, 5]]
    assert cells.table(4)[0, :, 0, 0].tolist() == [[2, 7, 8, 0, 0], [0] * 5, [3, 4, 5, 6, 0]]
    assert cells_of([0, 0], [], device).table(2).tolist() == [[[[[0, 0, 0]]], [[[0, 0, 0]]]]]


def test_a_table_holds_cells_again(device, dtype):
    """Pooling over a dense table, as OpenPCDet lays it out, needs no other kernel."""
    features = torch.arange(18.0, device=device, dtype=dtype).view(9, 2)
    cells = cells_of([2, 0, 3], [7, 8, 4, 5, 6], device)
    table = cells.table(3)
    first = torch.arange(3, device=device).view(1, 3, 1, 1) * 4 + 1
    again = ops.Cells(first, table[..., 0], table.flatten())
    torch.testing.assert_close(ops.pool_cells(features, again, "avg")[0], ops.pool_cells(features, cells, "avg")[0])


def test_pairs_list_what_counts(device):
    cells = cells_of([2, 0, 3], [7, 8, 4, 5, 6], device)
    limited = ops.Cells(cells.first, cells.count.clamp(max=1), cells.members)
    assert [tensor.tolist() for tensor in cells.pairs()] == [[7, 8, 4, 5, 6], [0, 0, 2, 2, 2]]
    assert [tensor.tolist() for tensor in limited.pairs()] == [[7, 4], [0, 2]]


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_no_cells_no_points(device, dtype, mode):
    features = torch.zeros(0, 4, device=device, dtype=dtype, requires_grad=True)
    found, _ = ops.pool_cells(features, cells_of([0, 0], [], device), mode)
    assert found.tolist() == torch.zeros(1, 2, 1, 1, 4).tolist()
    found.sum().backward()
    none = cells_of([], [], device)
    assert ops.pool_cells(torch.ones(3, 4, device=device, dtype=dtype), none, mode)[0].shape == (1, 0, 1, 1, 4)


def test_wrong_arguments_are_named(device):
    points, boxes = torch.zeros(3, 3, device=device), torch.ones(2, 7, device=device)
    neighbors = ops.neighbors_in_boxes(points, boxes)
    with pytest.raises(ValueError, match=r"num_cells must be three positive numbers of cells, got \(2, 0, 1\)"):
        ops.group_by_cell(points, boxes, neighbors, (2, 0, 1))
    with pytest.raises(ValueError, match="points and boxes must share a dtype"):
        ops.group_by_cell(points.double(), boxes, neighbors, (1, 1, 1))
    with pytest.raises(ValueError, match="max_points must be at least 0, got -1"):
        ops.group_by_cell(points, boxes, neighbors, (1, 1, 1), -1)
    cells = ops.group_by_cell(points, boxes, neighbors, (1, 1, 1))
    with pytest.raises(ValueError, match="mode must be 'max' or 'avg', got 'mean'"):
        ops.pool_cells(points, cells, "mean")
    with pytest.raises(ValueError, match=r"features must have shape \(any, any\), got \(3,\)"):
        ops.pool_cells(points[:, 0], cells, "max")
    with pytest.raises(ValueError, match="features must be float32 or float64, got torch.int64"):
        ops.pool_cells(points.long(), cells, "max")


@pytest.mark.usefixtures("checks_rows")
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize(("counts", "members"), [([3], [0, 1]), ([2], [0, 5]), ([2], [-1, 0])])
def test_cells_that_reach_out_are_refused_on_cpu(mode, counts, members):
    with pytest.raises(ValueError, match="a list (reaches beyond the 2 rows that there are|holds row .* of 5)"):
        ops.pool_cells(torch.zeros(5, 2), cells_of(counts, members), mode)


@pytest.mark.usefixtures("checks_rows")
def test_overlapping_lists_are_refused_on_cpu():
    lists = ops.Neighbors(torch.tensor([0, 0]), torch.tensor([2, 2]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="the lists overlap, they hold 4 rows of 2"):
        ops.group_by_cell(torch.zeros(2, 3), torch.ones(2, 7), lists, (2, 2, 2))
