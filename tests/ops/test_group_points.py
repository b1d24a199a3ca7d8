"""Grouped features and their gradient against indexing in numpy; empty groups, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cakdp_ext import ops

pytestmark = pytest.mark.usefixtures("implementation")
SIZES = [(1, 1, 1, 1), (9, 3, 7, 16), (40, 33, 11, 5), (20, 70, 3, 40), (6, 32, 5, 32), (5, 4, 3, 65)]


def groups(rows, channels, count, samples, seed=0):
    rng = np.random.default_rng(seed)
    index = rng.integers(0, rows, (count, samples))
    index[: count // 2, samples // 2 :] = index[: count // 2, :1]
    return torch.from_numpy(rng.normal(size=(rows, channels))), torch.from_numpy(index)


@pytest.mark.parametrize("sizes", SIZES)
def test_groups_are_numpys(device, dtype, sizes):
    features, index = groups(*sizes)
    found = ops.group_points(features.to(device, dtype), index.to(device))
    wanted = np.moveaxis(features.to(dtype).numpy()[index.numpy()], 2, 1)
    assert found.shape == (sizes[2], sizes[1], sizes[3])
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.cpu(), wanted)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("has_empty", [False, True])
def test_gradient_adds_up_where_the_features_went(device, dtype, sizes, has_empty):
    features, index = groups(*sizes, seed=1)
    empty = torch.arange(len(index)) % 3 == 1 if has_empty else None
    features = features.to(device, dtype).requires_grad_()
    grouped = ops.group_points(features, index.to(device), None if empty is None else empty.to(device))
    grad = torch.randn(grouped.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(grouped, features, grad.to(device, dtype))
    wanted = np.zeros(features.shape)
    for group in range(len(index)):
        if empty is None or not empty[group]:
            np.add.at(wanted, index[group].numpy(), grad[group].numpy().T)
    np.testing.assert_allclose(found.cpu(), wanted, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_empty_groups_are_zero_whatever_their_index_says(device, dtype):
    features, index = groups(8, 5, 4, 6, seed=2)
    empty = torch.tensor([False, True, False, True])
    index[empty] = 99
    found = ops.group_points(features.to(device, dtype), index.to(device), empty.to(device))
    assert (found[[1, 3]] == 0).all()
    whole = ops.group_points(features.to(device, dtype), index[[0, 2]].to(device))
    assert found[[0, 2]].tolist() == whole.tolist()


def test_empty_groups_need_no_features(device, dtype):
    index, empty = torch.zeros(3, 4, dtype=torch.int64, device=device), torch.ones(3, dtype=torch.bool, device=device)
    features = torch.zeros(0, 2, device=device, dtype=dtype, requires_grad=True)
    grouped = ops.group_points(features, index, empty)
    assert grouped.tolist() == torch.zeros(3, 2, 4).tolist()
    assert torch.autograd.grad(grouped.sum(), features)[0].shape == (0, 2)


@pytest.mark.parametrize("has_empty", [False, True])
def test_gradient_is_that_of_finite_differences(device, has_empty):
    features, index = groups(5, 3, 4, 6, seed=3)
    empty = torch.tensor([False, True, False, False], device=device) if has_empty else None
    features, index = features.to(device).requires_grad_(), index.to(device)
    tolerance = 1e-12 if device.type == "cuda" else 0.0
    run = lambda values: ops.group_points(values, index, empty)  # noqa: E731
    assert torch.autograd.gradcheck(run, features, nondet_tol=tolerance)
    assert torch.autograd.gradgradcheck(run, features, nondet_tol=tolerance)


def test_half_precision_gets_its_gradient(device):
    features, index = groups(5, 3, 4, 6, seed=4)
    features = features.to(device, torch.float16).requires_grad_()
    grouped = ops.group_points(features, index.to(device))
    assert grouped.dtype == torch.float32
    assert torch.autograd.grad(grouped.sum(), features)[0].dtype == torch.float16


@pytest.mark.parametrize("sizes", [(4, 3, 0, 5), (4, 3, 5, 0), (4, 0, 5, 2), (0, 3, 0, 5), (0, 0, 0, 0)])
def test_nothing_to_group(device, dtype, sizes):
    rows, channels, count, samples = sizes
    features = torch.zeros(rows, channels, device=device, dtype=dtype, requires_grad=True)
    grouped = ops.group_points(features, torch.zeros(count, samples, dtype=torch.int64, device=device))
    assert grouped.shape == (count, channels, samples)
    assert torch.autograd.grad(grouped.sum(), features)[0].tolist() == torch.zeros(rows, channels).tolist()


def test_columns_and_32_bits_will_do(device):
    features, index = groups(9, 8, 4, 6, seed=5)
    features, index = features.float().to(device), index.to(device)
    wanted = ops.group_points(features[:, :3].contiguous(), index.T.contiguous())
    assert ops.group_points(features[:, :3], index.T.int()).tolist() == wanted.tolist()
    grad = torch.randn(4, 6, 8, device=device).mT
    features = features.requires_grad_()
    grouped = ops.group_points(features, index)
    first, second = (torch.autograd.grad(grouped, features, g, retain_graph=True)[0] for g in (grad, grad.contiguous()))
    torch.testing.assert_close(first, second)


def test_number_of_threads_does_not_change_the_gradient(device, cpu_kernels):
    features, index = groups(30, 40, 500, 16, seed=6)
    features, index = features.float().to(device).requires_grad_(), index.to(device)
    grad = torch.randn(500, 40, 16, device=device)
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(torch.autograd.grad(ops.group_points(features, index), features, grad)[0])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(answers[1], answers[0], atol=0 if cpu_kernels == "native" else 1e-4, rtol=0)


def test_wrong_arguments_are_named(device):
    features, index = torch.zeros(4, 3, device=device), torch.zeros(2, 5, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"features must have shape \(any, any\), got \(4,\)"):
        ops.group_points(features[:, 0], index)
    with pytest.raises(ValueError, match="index must be int32 or int64, got torch.float32"):
        ops.group_points(features, index.float())
    with pytest.raises(ValueError, match=r"empty must have shape \(2\), got \(3,\)"):
        ops.group_points(features, index, torch.zeros(3, dtype=torch.bool, device=device))
    with pytest.raises(ValueError, match="empty must be bool, got torch.int64"):
        ops.group_points(features, index, index[:, 0])
    with pytest.raises(ValueError, match="features and index must be on one device"):
        ops.group_points(features.to("meta"), index)


@pytest.mark.parametrize("row", [-1, 4])
def test_on_a_cpu_an_index_that_is_no_row_is_refused(cpu_kernels, row):
    index = torch.tensor([[0, 1], [row, 3]])
    with pytest.raises(ValueError, match=f"index must lie within the 4 rows of features, got {row}"):
        ops.group_points(torch.zeros(4, 3), index)
    if cpu_kernels == "native":
        with pytest.raises(ValueError, match=f"index must lie within the 4 rows of features, got {row}"):
            torch.ops.cakdp.group_points_backward(torch.zeros(2, 3, 2), index, None, 4)


def test_cuda_kernels_give_nan_for_an_index_that_is_no_row(device, cuda_kernels):
    features = torch.ones(4, 3, device=device, requires_grad=True)
    grouped = ops.group_points(features, torch.tensor([[0, 1], [-1, 3], [4, 2]], device=device))
    assert grouped.isnan().tolist() == [[[False, False]] * 3, [[True, False]] * 3, [[True, False]] * 3]
    assert torch.autograd.grad(grouped.sum(), features)[0].tolist() == [[1.0] * 3] * 4
