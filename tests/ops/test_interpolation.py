"""Three nearest points against scipy and their definition; interpolation and its gradients; what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from stacked_clouds import lattice, scattered, squared, starts_of

from cakdp_ext import ops
from cakdp_ext.ops.reference import stacked

pytestmark = pytest.mark.usefixtures("implementation")


def nearest_by_definition(unknown, unknown_counts, known, known_counts):
    distances, index = [], []
    unknown_starts, known_starts = starts_of(unknown_counts), starts_of(known_counts)
    for frame in range(len(known_counts)):
        for point in unknown[unknown_starts[frame] : unknown_starts[frame + 1]]:
            rows = range(known_starts[frame], known_starts[frame + 1])
            pairs = ((float(squared(known[row], point)), row) for row in rows)
            pairs = sorted(pair for pair in pairs if math.isfinite(pair[0]))[:3]
            distances.append([math.sqrt(d) for d, _ in pairs] + [math.inf] * (3 - len(pairs)))
            index.append([row for _, row in pairs] + [pairs[0][1] if pairs else 0] * (3 - len(pairs)))
    return distances, index


def run(device, dtype, unknown, unknown_counts, known, known_counts):
    distances, index = ops.three_nn(
        unknown.to(dtype).to(device),
        torch.tensor(unknown_counts, device=device, dtype=torch.int64),
        known.to(dtype).to(device),
        torch.tensor(known_counts, device=device, dtype=torch.int64),
    )
    assert distances.dtype == dtype
    assert index.dtype == torch.int64
    return distances.cpu(), index.cpu()


def assert_nearest(found, wanted):
    assert found[1].tolist() == wanted[1]
    np.testing.assert_allclose(found[0], np.array(wanted[0]).reshape(-1, 3), rtol=1e-6)


@pytest.mark.parametrize("make", [lattice, scattered])
def test_nearest_are_those_of_the_definition(device, dtype, make):
    unknown_counts, known_counts = [40, 5, 0, 60, 4], [300, 0, 9, 130, 2]
    unknown, known = make(sum(unknown_counts), 0).to(dtype), make(sum(known_counts), 1).to(dtype)
    found = run(device, dtype, unknown, unknown_counts, known, known_counts)
    assert_nearest(found, nearest_by_definition(unknown.numpy(), unknown_counts, known.numpy(), known_counts))


def test_nearest_are_scipys(device, dtype):
    unknown, known = scattered(200, 2), scattered(3000, 3)
    found = run(device, dtype, unknown, [200], known, [3000])
    distances, index = cKDTree(known).query(unknown, 3)
    assert found[1].tolist() == index.tolist()
    np.testing.assert_allclose(found[0], distances, rtol=1e-5)


def test_equally_near_points_come_by_ascending_index(device, dtype):
    known = torch.tensor([[5, 0, 0], [0, 1, 0], [-1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0.5]])
    found = run(device, dtype, torch.zeros(1, 3), [1], known, [6])
    assert (found[0].tolist(), found[1].tolist()) == ([[0.5, 1.0, 1.0]], [[5, 1, 2]])


@pytest.mark.parametrize(
    ("known", "distances", "index"),
    [
        ([], [math.inf] * 3, [0, 0, 0]),
        ([[0, 3, 4]], [5.0, math.inf, math.inf], [0, 0, 0]),
        ([[0, 3, 4], [1, 0, 0]], [1.0, 5.0, math.inf], [1, 0, 1]),
    ],
)
def test_slots_without_a_point_are_infinitely_far(device, dtype, known, distances, index):
    known = torch.tensor(known, dtype=torch.float64).reshape(-1, 3)
    found = run(device, dtype, torch.zeros(2, 3), [2], known, [len(known)])
    assert (found[0].tolist(), found[1].tolist()) == ([distances] * 2, [index] * 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_neighbours_and_is_none(device, dtype, bad):
    unknown, known = lattice(20, 4), lattice(60, 5)
    for row in range(0, 20, 5):
        unknown[row, row % 3] = bad
    for row in range(0, 60, 5):
        known[row, row % 3] = bad
    found = run(device, dtype, unknown, [20], known, [60])
    with np.errstate(invalid="ignore"):
        wanted = nearest_by_definition(unknown.to(dtype).numpy(), [20], known.to(dtype).numpy(), [60])
    assert_nearest(found, wanted)
    assert found[0][::5].isinf().all()
    assert not {row % 5 for rows in found[1][1:5].tolist() for row in rows} & {0}


def test_blocks_of_the_reference_leave_no_seam(device, dtype, monkeypatch):
    monkeypatch.setattr(stacked, "DENSE_LIMIT", 300)
    unknown, known = lattice(30, 6).to(dtype), lattice(90, 7).to(dtype)
    found = run(device, dtype, unknown, [10, 20], known, [50, 40])
    assert_nearest(found, nearest_by_definition(unknown.numpy(), [10, 20], known.numpy(), [50, 40]))


def test_far_from_origin(device):
    unknown, known = (scattered(50, 8) * 16).round() / 16, (scattered(300, 9) * 16).round() / 16
    shift = torch.tensor([48000.0, -48000.0, 0])
    near = run(device, torch.float32, unknown, [50], known, [300])
    far = run(device, torch.float32, unknown + shift, [50], known + shift, [300])
    torch.testing.assert_close(far, near, rtol=0, atol=0)


@pytest.mark.parametrize(("unknown", "known"), [(0, 0), (0, 5), (5, 0)])
def test_few_points(device, dtype, unknown, known):
    distances, index = run(device, dtype, scattered(unknown, 10), [unknown], scattered(known, 11), [known])
    assert distances.shape == index.shape == (unknown, 3)
    none = run(device, dtype, torch.zeros(0, 3), [], torch.zeros(0, 3), [])
    assert none[0].shape == none[1].shape == (0, 3)


def test_number_of_threads_does_not_change_the_answer(device, cpu_kernels):
    given = scattered(300, 12), [100, 200], scattered(900, 13), [500, 400]
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(run(device, torch.float32, *given))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=0)


def test_wrong_arguments_of_three_nn_are_named(device):
    xyz, counts = torch.zeros(4, 3, device=device), torch.tensor([4], device=device)
    with pytest.raises(ValueError, match=r"known must have shape \(any, 3\), got \(4, 2\)"):
        ops.three_nn(xyz, counts, xyz[:, :2], counts)
    with pytest.raises(ValueError, match="unknown and known must share a dtype, got torch.float32 and torch.float64"):
        ops.three_nn(xyz, counts, xyz.double(), counts)
    with pytest.raises(ValueError, match="known_counts must be int32 or int64"):
        ops.three_nn(xyz, counts, xyz, counts.float())
    with pytest.raises(
        ValueError, match="unknown_counts and known_counts must be of the same frames and name as many, got 1 and 2"
    ):
        ops.three_nn(xyz, counts, xyz, torch.tensor([4, 0], device=device))


@pytest.mark.parametrize("counts", [[1, 2], [1, 4], [5, -1]])
def test_on_a_cpu_counts_are_held_against_the_rows(counts):
    xyz, good, bad = torch.zeros(4, 3), torch.tensor([2, 2]), torch.tensor(counts)
    rest = "belong to each frame: numbers of at least 0 that add up to 4, got"
    with pytest.raises(ValueError, match=f"^unknown_counts must say how many of the 4 rows of unknown {rest}"):
        ops.three_nn(xyz, bad, xyz, good)
    with pytest.raises(ValueError, match=f"^known_counts must say how many of the 4 rows of known {rest}"):
        ops.three_nn(xyz, good, xyz, bad)


@pytest.mark.parametrize("counts", [[0, 6], [2, 9], [2, 1], [-3, 6], [7, -7]])
def test_cuda_kernels_stay_within_the_rows_whatever_the_counts(device, cuda_kernels, counts):
    xyz, good, bad = torch.zeros(6, 3, device=device), torch.tensor([3, 3], device=device), torch.tensor(counts)
    for which in ((good, bad.to(device)), (bad.to(device), good)):
        distances, index = torch.ops.cakdp.three_nn(xyz, which[0], xyz, which[1])
        assert ((index >= 0) & (index < 6)).all()
        if counts == [2, 1] and which[1] is good:
            assert distances.isinf().all(1).tolist() == [False] * 3 + [True] * 3


def mixture(count, rows, channels, seed):
    rng = np.random.default_rng(seed)
    features, weights = rng.normal(size=(rows, channels)), rng.uniform(size=(count, 3))
    return tuple(map(torch.from_numpy, (features, rng.integers(0, rows, (count, 3)), weights)))


@pytest.mark.parametrize(("count", "rows", "channels"), [(1, 1, 1), (50, 20, 3), (7, 9, 32), (30, 5, 70)])
def test_interpolation_is_numpys(device, dtype, count, rows, channels):
    features, index, weights = mixture(count, rows, channels, 14)
    found = ops.three_interpolate(features.to(device, dtype), index.to(device), weights.to(device, dtype))
    wanted = np.einsum("nkc,nk->nc", features.numpy()[index.numpy()], weights.numpy())
    np.testing.assert_allclose(found.cpu(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "rows", "channels"), [(1, 1, 1), (50, 20, 3), (7, 9, 32), (30, 5, 70)])
def test_gradient_adds_up_where_the_features_went(device, dtype, count, rows, channels):
    features, index, weights = mixture(count, rows, channels, 15)
    grad = torch.randn(count, channels, dtype=torch.float64)
    given = features.to(device, dtype).requires_grad_()
    mixed = ops.three_interpolate(given, index.to(device), weights.to(device, dtype))
    (found,) = torch.autograd.grad(mixed, given, grad.to(device, dtype))
    wanted = np.zeros(features.shape)
    for slot in range(3):
        np.add.at(wanted, index[:, slot].numpy(), (grad * weights[:, slot, None]).numpy())
    np.testing.assert_allclose(found.cpu(), wanted, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_gradient_is_that_of_finite_differences(device, needs):
    features, index, weights = (tensor.to(device) for tensor in mixture(6, 4, 3, 16))
    features.requires_grad_(needs[0]), weights.requires_grad_(needs[1])
    tolerance = 1e-12 if device.type == "cuda" else 0.0
    given = (features, index, weights)
    assert torch.autograd.gradcheck(ops.three_interpolate, given, nondet_tol=tolerance)
    assert torch.autograd.gradgradcheck(ops.three_interpolate, given, nondet_tol=tolerance)


@pytest.mark.parametrize(("count", "rows", "channels"), [(0, 4, 3), (0, 0, 3), (4, 3, 0)])
def test_nothing_to_interpolate(device, dtype, count, rows, channels):
    features = torch.zeros(rows, channels, device=device, dtype=dtype, requires_grad=True)
    index = torch.zeros(count, 3, dtype=torch.int64, device=device)
    mixed = ops.three_interpolate(features, index, torch.zeros(count, 3, device=device, dtype=dtype))
    assert mixed.shape == (count, channels)
    assert torch.autograd.grad(mixed.sum(), features)[0].shape == (rows, channels)


def test_columns_and_32_bits_will_do(device):
    features, index, weights = (tensor.to(device) for tensor in mixture(9, 5, 8, 17))
    wide = torch.cat((weights, weights), dim=1)
    found = ops.three_interpolate(features[:, ::2], index.int(), wide[:, 2:5])
    assert (
        found.tolist()
        == ops.three_interpolate(features[:, ::2].contiguous(), index, wide[:, 2:5].contiguous()).tolist()
    )


def test_wrong_arguments_of_three_interpolate_are_named(device):
    features, index, weights = (tensor.to(device) for tensor in mixture(9, 5, 8, 18))
    with pytest.raises(ValueError, match=r"index must have shape \(any, 3\), got \(9, 2\)"):
        ops.three_interpolate(features, index[:, :2], weights)
    with pytest.raises(ValueError, match=r"weights must have shape \(9, 3\), got \(8, 3\)"):
        ops.three_interpolate(features, index, weights[1:])
    with pytest.raises(
        ValueError, match="features and weights must share a dtype, got torch.float64 and torch.float32"
    ):
        ops.three_interpolate(features, index, weights.float())
    with pytest.raises(ValueError, match="features and index must be on one device"):
        ops.three_interpolate(features.to("meta"), index, weights)


@pytest.mark.parametrize("row", [-1, 4])
def test_on_a_cpu_an_index_that_is_no_row_is_refused(cpu_kernels, row):
    index, weights = torch.tensor([[0, 1, 2], [3, 3, row]]), torch.ones(2, 3)
    with pytest.raises(ValueError, match=f"index must lie within the 4 rows of features, got {row}"):
        ops.three_interpolate(torch.zeros(4, 5), index, weights)
    if cpu_kernels == "native":
        with pytest.raises(ValueError, match=f"index must lie within the 4 rows of features, got {row}"):
            torch.ops.cakdp.three_interpolate_backward(torch.zeros(2, 5), index, weights, 4)


def test_cuda_kernels_give_nan_for_an_index_that_is_no_row(device, cuda_kernels):
    index = torch.tensor([[0, 1, 2], [3, 3, -1], [4, 0, 0]], device=device)
    features = torch.ones(4, 5, device=device, requires_grad=True)
    mixed = ops.three_interpolate(features, index, torch.ones(3, 3, device=device))
    assert mixed.isnan().all(1).tolist() == [False, True, True]
    assert torch.autograd.grad(mixed.sum(), features)[0].tolist() == [[3.0] * 5, [1.0] * 5, [1.0] * 5, [2.0] * 5]
    none = ops.three_interpolate(features[:0], index, torch.ones(3, 3, device=device))
    assert none.isnan().all()
