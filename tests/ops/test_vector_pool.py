"""Vector pooling against numpy's loops; layout, offsets, frames, gradients, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cell_oracle import far_from_faces, members_of, pooled, rounded

from cakdp_ext import ops

pytestmark = pytest.mark.usefixtures("implementation")
CELLS = (3, 2, 4)
REACH = 0.75


def scene(dtype, seed=0, num_points=900, num_queries=40):
    """Points of one frame away from the faces of all cells, queries, and features, as float64 numpy."""
    rng = np.random.default_rng(seed)
    new_xyz = rounded(rng.uniform(-3, 3, (num_queries, 3)) * (1, 1, 0.3), dtype)
    xyz = rounded(rng.uniform(-3, 3, (num_points, 3)) * (1, 1, 0.3), dtype)
    xyz = far_from_faces(xyz, cubes(new_xyz), CELLS)
    return xyz, rounded(rng.normal(size=(len(xyz), 5)), dtype), new_xyz


def cubes(centers):
    return np.concatenate((centers, np.full((len(centers), 3), 2 * REACH), np.zeros((len(centers), 1))), axis=1)


def loops(xyz, new_xyz, num_samples, neighbor_type):
    members = members_of(xyz, cubes(new_xyz), CELLS)
    for center, cells in zip(new_xyz, members, strict=True):
        for cell, rows in list(cells.items()):
            near = [row for row in rows if neighbor_type == "cube" or np.linalg.norm(xyz[row] - center) <= REACH]
            cells[cell] = near[:num_samples]
            if not near:
                del cells[cell]
    return members


def run(device, dtype, xyz, features, new_xyz, *settings, **more):
    tensors = [torch.from_numpy(array).to(device, dtype) for array in (xyz, features, new_xyz)]
    counts, new_counts = (torch.tensor([len(rows)], device=device) for rows in (xyz, new_xyz))
    return ops.vector_pool(tensors[0], counts, tensors[1], tensors[2], new_counts, CELLS, REACH, *settings, **more)


@pytest.mark.parametrize("neighbor_type", ["cube", "ball"])
@pytest.mark.parametrize("num_samples", [None, 1, 2])
def test_cells_are_averaged_as_by_loops(device, dtype, neighbor_type, num_samples):
    xyz, features, new_xyz = scene(dtype)
    found, count = run(device, dtype, xyz, features, new_xyz, num_samples, neighbor_type)
    members = loops(xyz, new_xyz, num_samples, neighbor_type)
    wanted, _ = pooled(features, members, CELLS, "avg")
    torch.testing.assert_close(found.double().cpu(), wanted.flatten(1), atol=1e-6, rtol=1e-5)
    sizes = torch.zeros(len(new_xyz), *CELLS, dtype=torch.int64)
    for query, cells in enumerate(members):
        for cell, rows in cells.items():
            sizes[(query, *cell)] = len(rows)
    assert torch.equal(count.cpu(), sizes.flatten(1))
    assert found.shape == (len(new_xyz), 24 * 5)
    assert int(sizes.max()) > 2 or num_samples


def test_first_takes_the_first_point(device, dtype):
    xyz, features, new_xyz = scene(dtype, seed=1)
    found, count = run(device, dtype, xyz, features, new_xyz, pool_type="first")
    wanted, _ = pooled(features, loops(xyz, new_xyz, 1, "cube"), CELLS, "avg")
    torch.testing.assert_close(found.double().cpu(), wanted.flatten(1))
    assert count.max() == 1


def test_offsets_come_before_the_features_of_their_cell(device, dtype):
    xyz, features, new_xyz = scene(dtype, seed=2)
    found, _ = run(device, dtype, xyz, features, new_xyz, use_xyz=True)
    plain, _ = run(device, dtype, xyz, features, new_xyz)
    found = found.view(len(new_xyz), 24, 8)
    assert torch.equal(found[..., 3:].flatten(1), plain)
    means, _ = pooled(xyz, loops(xyz, new_xyz, None, "cube"), CELLS, "avg")
    means = means.view(len(new_xyz), 24, 3)
    offsets = (means - torch.from_numpy(new_xyz)[:, None]).masked_fill((means == 0).all(-1, keepdim=True), 0)
    torch.testing.assert_close(found[..., :3].double().cpu(), offsets, atol=2e-6, rtol=1e-5)


def test_offsets_stay_exact_far_from_the_origin(device):
    grid = np.random.default_rng(3).integers(-64, 64, (300, 3)) / 64 + 1 / 128
    features, shift = np.ones((300, 1)), np.array([48000.0, -48000, 0])
    new_xyz = np.zeros((1, 3))
    near, _ = run(device, torch.float32, grid, features, new_xyz, use_xyz=True)
    far, _ = run(device, torch.float32, grid + shift, features, new_xyz + shift, use_xyz=True)
    torch.testing.assert_close(far, near, atol=1e-6, rtol=0)


def test_queries_without_points_among_others_keep_their_offsets(device, dtype):
    xyz = np.array([[0.1, 0.1, 0.1], [5.2, 0, 0]])
    new_xyz = np.array([[90.0, 0, 0], [0, 0, 0], [91, 0, 0], [92, 0, 0], [5, 0, 0], [93, 0, 0]])
    found, count = run(device, dtype, xyz, np.ones((2, 1)), new_xyz, use_xyz=True)
    offsets = found.view(6, 24, 4)[..., :3].sum(1)
    wanted = torch.zeros(6, 3, device=device, dtype=dtype)
    wanted[1], wanted[4, 0] = 0.1, 0.2
    torch.testing.assert_close(offsets, wanted, atol=1e-6, rtol=0)
    assert count.sum(1).tolist() == [0, 1, 0, 0, 1, 0]


def test_frames_do_not_see_each_other(device, dtype):
    xyz, features, new_xyz = (torch.from_numpy(array).to(device, dtype) for array in scene(dtype, seed=4))
    sizes, new_sizes = [400, 0, len(xyz) - 400], [15, 5, 20]
    counts, new_counts = (torch.tensor(numbers, device=device) for numbers in (sizes, new_sizes))
    found = ops.vector_pool(xyz, counts, features, new_xyz, new_counts, CELLS, REACH, use_xyz=True)
    parts = zip(xyz.split(sizes), features.split(sizes), new_xyz.split(new_sizes), strict=True)
    wanted = [
        ops.vector_pool(
            own,
            torch.tensor([len(own)], device=device),
            rows,
            queries,
            torch.tensor([len(queries)], device=device),
            CELLS,
            REACH,
            use_xyz=True,
        )
        for own, rows, queries in parts
    ]
    for tensor, part in zip(found, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(tensor, torch.cat(part))


@pytest.mark.parametrize("settings", [(None, "cube"), (2, "ball", "avg", True), (None, "ball", "first")])
def test_gradients_are_those_of_finite_differences(device, settings):
    xyz, _, new_xyz = (torch.from_numpy(array).to(device) for array in scene(torch.float64, 5, 25, 4))
    counts, new_counts = (torch.tensor([len(rows)], device=device) for rows in (xyz, new_xyz))
    values = torch.from_numpy(np.random.default_rng(6).normal(size=(len(xyz), 2))).to(device).requires_grad_()

    def pool(features):
        return ops.vector_pool(xyz, counts, features, new_xyz, new_counts, (2, 2, 2), 1.5, *settings)[0]

    assert pool(values).any()
    assert torch.autograd.gradcheck(pool, values)


def test_pairs_rebuild_the_pooled_features(device, dtype):
    """Pooled features from a plain list of (point, cell), which is how OpenPCDet keeps its groups."""
    xyz, features, new_xyz = (torch.from_numpy(array).to(device, dtype) for array in scene(dtype, seed=7))
    counts, new_counts = (torch.tensor([len(rows)], device=device) for rows in (xyz, new_xyz))
    rows, cell = ops.vector_cells(xyz, counts, new_xyz, new_counts, CELLS, REACH, 2).pairs()
    found, count = ops.vector_pool(xyz, counts, features, new_xyz, new_counts, CELLS, REACH, 2)
    sums = features.new_zeros(count.numel(), 5).index_add(0, cell, features[rows])
    torch.testing.assert_close(found.view(-1, 5), sums / count.view(-1, 1).clamp(min=1))


@pytest.mark.parametrize("use_xyz", [False, True])
@pytest.mark.parametrize(("points", "queries"), [(0, 0), (0, 3), (4, 0), (1, 1)])
def test_few_points_and_queries(device, dtype, points, queries, use_xyz):
    found, count = run(
        device, dtype, np.full((points, 3), 9.0), np.ones((points, 5)), np.zeros((queries, 3)), use_xyz=use_xyz
    )
    assert found.shape == (queries, 24 * (8 if use_xyz else 5))
    assert count.shape == (queries, 24)
    assert not found.any()
    assert not count.any()


def test_what_is_not_finite_is_left_out(device, dtype):
    xyz = np.array([[0.1, 0.1, 0.1], [math.nan, 0, 0], [0, math.inf, 0]])
    new_xyz = np.array([[0.0, 0, 0], [0, math.nan, 0]])
    found, count = run(device, dtype, xyz, np.ones((3, 1)), new_xyz, use_xyz=True)
    assert count.sum(1).tolist() == [1, 0]
    assert found.isfinite().all()


def test_wrong_arguments_are_named(device):
    xyz, features, new_xyz = scene(torch.float32, 8, 20, 3)
    with pytest.raises(ValueError, match="pool_type must be 'avg' or 'first', got 'max'"):
        run(device, torch.float32, xyz, features, new_xyz, pool_type="max")
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0; for no limit give None"):
        run(device, torch.float32, xyz, features, new_xyz, 0)
    with pytest.raises(ValueError, match="neighbor_type must be 'cube' or 'ball', got 'all'"):
        run(device, torch.float32, xyz, features, new_xyz, None, "all")
    with pytest.raises(ValueError, match=rf"features must have shape \({len(xyz)}, any\)"):
        run(device, torch.float32, xyz, features[1:], new_xyz)
    tensors = torch.from_numpy(xyz), torch.tensor([len(xyz)]), torch.from_numpy(features)
    with pytest.raises(ValueError, match="num_cells must be three positive numbers of cells"):
        ops.vector_pool(*tensors, torch.from_numpy(new_xyz), torch.tensor([3]), (2, 2), 1.0)


def test_only_the_first_neighbors_are_divided():
    """Of the two points in the cube only the one of the lower row is looked at, whichever cells they lie in."""
    xyz = torch.tensor([[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5], [9.0, 9.0, 9.0]])
    counts, queries = torch.tensor([3]), (torch.zeros(1, 3), torch.tensor([1]))
    cells = ops.vector_cells(xyz, counts, *queries, (2, 2, 2), 1.0, max_neighbors=1)
    assert cells.members[: int(cells.count.sum())].tolist() == [0]
    assert int(cells.count[0, 1, 1, 1]) == int(cells.count.sum()) == 1
    both = ops.vector_cells(xyz, counts, *queries, (2, 2, 2), 1.0)
    assert int(both.count.sum()) == 2
