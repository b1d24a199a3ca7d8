"""Neighbouring voxels against three nested Python loops; order, radius, borders, and what is refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from cakdp_ext import ops
from cakdp_ext.ops import native
from cakdp_ext.ops.reference import voxel_query as reference

pytestmark = pytest.mark.usefixtures("implementation")
SHAPE = (5, 9, 11)
SIZE = (0.4, 0.2, 0.1)


def triple_loop(queries, query_xyz, voxel_coords, voxel_xyz, ranges, radius, num_samples):
    at = {}
    for number, coords in enumerate(voxel_coords.tolist()):
        at.setdefault(tuple(coords), number)
    index, empty = [], []
    for (batch, z, y, x), position in zip(queries.tolist(), query_xyz.double(), strict=True):
        found = []
        for dz, dy, dx in product(*(range(-reach, reach + 1) for reach in ranges)):
            voxel = at.get((batch, z + dz, y + dy, x + dx))
            if voxel is not None and (position - voxel_xyz[voxel].double()).norm() <= radius:
                found.append(voxel)
        found = found[:num_samples]
        empty.append(not found)
        index.append(found + (found[:1] or [0]) * (num_samples - len(found)))
    return index, empty


def scene(seed, num_voxels=180, num_queries=60, frames=2):
    """Occupied voxels in no order, with centres; queries around them, some outside the grid."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(frames * np.prod(SHAPE))[:num_voxels]
    coords = np.stack(np.unravel_index(cells, (frames, *SHAPE)), axis=1)
    queries = np.column_stack(
        (rng.integers(0, frames, num_queries), rng.integers(-2, np.array(SHAPE) + 2, (num_queries, 3)))
    )
    centres = (coords[:, 1:] + 0.5) * SIZE
    positions = (queries[:, 1:] + rng.uniform(0, 1, (num_queries, 3))) * SIZE
    return tuple(map(torch.from_numpy, (queries, positions[:, ::-1].copy(), coords, centres[:, ::-1].copy())))


def run(scene, device, dtype, **settings):
    queries, query_xyz, voxel_coords, voxel_xyz = (tensor.to(device) for tensor in scene)
    settings = {
        "spatial_shape": SHAPE,
        "batch_size": 2,
        "ranges": (1, 2, 3),
        "radius": 0.5,
        "num_samples": 6,
    } | settings
    return ops.voxel_query(queries, query_xyz.to(dtype), voxel_coords, voxel_xyz.to(dtype), **settings)


def at_origin(*voxels):
    """One query in the middle of the grid, at the origin; voxels ``(dz, dy, dx)`` away, a metre a step."""
    shifts = torch.tensor(voxels).reshape(-1, 3)
    coords = torch.cat((torch.zeros(len(shifts), 1, dtype=torch.int64), shifts + torch.tensor([2, 4, 5])), dim=1)
    return torch.tensor([[0, 2, 4, 5]]), torch.zeros(1, 3), coords, shifts.flip(1).float()


@pytest.mark.parametrize("ranges", [(0, 0, 0), (1, 2, 3), (4, 1, 0), (9, 9, 20)])
@pytest.mark.parametrize(("radius", "num_samples"), [(0.3, 1), (0.5, 6), (100.0, 16)])
def test_neighbours_are_those_of_three_loops(device, dtype, ranges, radius, num_samples):
    given = scene(0)
    index, empty = run(given, device, dtype, ranges=ranges, radius=radius, num_samples=num_samples)
    wanted_index, wanted_empty = triple_loop(*given, ranges, radius, num_samples)
    assert index.tolist() == wanted_index
    assert empty.tolist() == wanted_empty
    assert index.dtype == torch.int64
    assert not empty.all()


def test_blocks_of_the_reference_leave_no_seam(monkeypatch):
    monkeypatch.setattr(reference, "DENSE_LIMIT", 500)
    given = scene(1)
    index, empty = reference.voxel_query(*given, 2, reference.Neighbourhood(SHAPE, (1, 2, 3), 0.5, 6))
    assert (index.tolist(), empty.tolist()) == triple_loop(*given, (1, 2, 3), 0.5, 6)


def test_z_is_outermost_then_y_then_x(device):
    given = at_origin((0, 0, 1), (0, 1, -1), (1, -1, -1), (0, 0, -1), (-1, 1, 1))
    index, _ = run(given, device, torch.float32, ranges=(1, 1, 1), radius=9.0, num_samples=5)
    assert index.tolist() == [[4, 3, 0, 1, 2]]


def test_a_voxel_exactly_at_the_radius_counts(device, dtype):
    given = at_origin((0, 0, 2), (0, 2, 1))
    index, empty = run(given, device, dtype, ranges=(2, 2, 2), radius=2.0, num_samples=3)
    assert (index.tolist(), empty.tolist()) == ([[0, 0, 0]], [False])
    index, empty = run(given, device, dtype, ranges=(2, 2, 2), radius=1.999, num_samples=3)
    assert (index.tolist(), empty.tolist()) == ([[0, 0, 0]], [True])


def test_voxels_of_another_frame_and_across_the_border_are_no_neighbours(device, dtype):
    coords = torch.tensor([[1, 2, 4, 5], [0, 2, 3, 10], [0, 1, 8, 0]])
    queries = torch.tensor([[0, 2, 4, 5], [0, 2, 4, 0], [0, 2, 0, 0]])
    given = (queries, torch.zeros(3, 3), coords, torch.zeros(3, 3))
    assert run(given, device, dtype, ranges=(0, 0, 4))[1].tolist() == [True, True, True]


@pytest.mark.parametrize("batch", [-1, 2])
def test_a_query_of_no_frame_finds_nothing(device, dtype, batch):
    queries, query_xyz, coords, xyz = scene(2)
    queries = queries.clone()
    queries[:, 0] = batch
    index, empty = run((queries, query_xyz, coords, xyz), device, dtype, radius=100.0)
    assert empty.all()
    assert (index == 0).all()


def test_of_voxels_at_the_same_place_the_first_counts(device, dtype):
    given = at_origin((0, 0, 1), (0, 0, 0), (0, 0, 0), (0, 0, 1))
    index, _ = run(given, device, dtype, radius=9.0, num_samples=4)
    assert index.tolist() == [[1, 0, 1, 1]]


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_coordinates_may_have_32_bits(device, kind):
    queries, query_xyz, coords, xyz = scene(3)
    found = run((queries.to(kind), query_xyz, coords.to(kind), xyz), device, torch.float32)
    wanted = run((queries, query_xyz, coords, xyz), device, torch.float32)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("queries", "voxels"), [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_few_queries_and_voxels(device, dtype, queries, voxels):
    index, empty = run(scene(4, voxels, queries), device, dtype, radius=1e-3)
    assert index.shape == (queries, 6)
    assert index.dtype == torch.int64
    assert empty.tolist() == [True] * queries


def test_memory_does_not_grow_with_the_volume_of_the_grid(device):
    given = at_origin((0, 0, 1))
    index, empty = run(given, device, torch.float32, spatial_shape=(5, 9, 2**40), radius=2.0)
    assert (index.tolist(), empty.tolist()) == ([[0] * 6], [False])


def test_voxels_outside_the_grid_are_not_found_where_they_are_no_error(device, dtype, implementation):
    """On CUDA, where to tell the caller would make the host wait."""
    queries, query_xyz, coords, xyz = scene(7)
    rng = np.random.default_rng(8)
    moved = torch.from_numpy(rng.permutation(len(coords))[:90])
    coords[moved[:60]] += torch.from_numpy(rng.integers(-12, 12, (60, 4)))
    coords[moved[60:], 0] = 2
    inside = ((coords >= 0) & (coords < torch.tensor([2, *SHAPE]))).all(1)
    wanted_index, wanted_empty = triple_loop(
        queries, query_xyz, torch.where(inside[:, None], coords, -9), xyz, (1, 2, 3), 0.5, 6
    )
    given = [tensor.to(device) for tensor in (queries, query_xyz.to(dtype), coords, xyz.to(dtype))]
    if implementation == "reference":
        index, empty = reference.voxel_query(*given, 2, reference.Neighbourhood(SHAPE, (1, 2, 3), 0.5, 6))
    elif device.type == "cpu" and native.EXTENSION == "cakdp_ext._C":
        pytest.skip("an error on CPU")
    else:
        index, empty = torch.ops.cakdp.voxel_query(*given, SHAPE, 2, (1, 2, 3), 0.5, 6)
    assert (index.tolist(), empty.tolist()) == (wanted_index, wanted_empty)
    assert 20 < inside.sum() < len(coords) - 20


def test_wrong_arguments_are_named(device):
    queries, query_xyz, coords, xyz = (tensor.to(device) for tensor in scene(5))
    settings = (SHAPE, 2, (1, 1, 1), 0.5, 4)
    with pytest.raises(ValueError, match=r"queries must have shape \(any, 4\), got \(60, 3\)"):
        ops.voxel_query(queries[:, 1:], query_xyz, coords, xyz, *settings)
    with pytest.raises(ValueError, match=r"query_xyz must have shape \(60, 3\), got \(59, 3\)"):
        ops.voxel_query(queries, query_xyz[1:], coords, xyz, *settings)
    with pytest.raises(ValueError, match="voxel_coords must be int32 or int64, got torch.float32"):
        ops.voxel_query(queries, query_xyz, coords.float(), xyz, *settings)
    with pytest.raises(ValueError, match="must share a dtype, got torch.float64 and torch.float32"):
        ops.voxel_query(queries, query_xyz, coords, xyz.float(), *settings)
    with pytest.raises(ValueError, match="queries and voxel_coords must be on one device"):
        ops.voxel_query(queries, query_xyz, coords.to("meta"), xyz, *settings)


def test_voxels_outside_the_grid_are_refused_on_cpu():
    with pytest.raises(ValueError, match=r"voxel_coords must lie within batch, z, y, x sizes \(1, 5, 9, 11\)"):
        run(scene(5), torch.device("cpu"), torch.float32, batch_size=1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"spatial_shape": (5, 9)}, "spatial_shape must be three positive sizes"),
        ({"ranges": (1, -1, 1)}, "ranges must be three sizes"),
        ({"radius": 0.0}, "radius must be positive metres, got 0.0"),
        ({"radius": float("nan")}, "radius must be positive metres, got nan"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(device, setting, message):
    with pytest.raises(ValueError, match=message):
        run(scene(6), device, torch.float32, **setting)
