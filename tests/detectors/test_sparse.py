from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import nn

from cakdp_ext.detectors.sparse import SparseBlock, conv_block, convolve_nothing, spconv
from cakdp_ext.voxel_norm import SyncVoxelBatchNorm, VoxelBatchNorm1d, synchronise_batch_norm

SHAPE = [7, 6, 5]


def sparse_tensor(count: int, channels: int = 3, requires_grad: bool = False):
    random = torch.Generator().manual_seed(count)
    cells = torch.stack([torch.randint(0, size, (count,), generator=random) for size in (2, *SHAPE)], dim=1)
    coords = cells.unique(dim=0).int()
    features = torch.randn(len(coords), channels, generator=random).requires_grad_(requires_grad)
    return spconv.SparseConvTensor(features, coords, SHAPE, 2)


def dense_weight(conv) -> torch.Tensor:
    return conv.weight.permute(0, 4, 1, 2, 3)


def at_voxels(dense: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    frame, z, y, x = coords.long().unbind(1)
    return dense[frame, :, z, y, x]


def to_dense(tensor) -> torch.Tensor:
    frame, z, y, x = tensor.indices.long().unbind(1)
    dense = tensor.features.new_zeros(2, *tensor.spatial_shape, tensor.features.shape[1])
    return dense.index_put((frame, z, y, x), tensor.features).permute(0, 4, 1, 2, 3)


def test_eval_convolution_with_bias_on_cpu_adds_the_bias():
    tensor = sparse_tensor(60)
    conv = spconv.SubMConv3d(3, 4, 3, padding=1, bias=True, indice_key="a").eval()
    with torch.no_grad():
        dense = F.conv3d(to_dense(tensor), dense_weight(conv), conv.bias, padding=1)
        torch.testing.assert_close(conv(tensor).features, at_voxels(dense, tensor.indices), rtol=1e-4, atol=1e-5)


def test_convolution_made_for_cuda_runs_on_cpu_and_keeps_its_choice():
    tensor = sparse_tensor(60)
    conv = spconv.SubMConv3d(3, 4, 3, padding=1, bias=False, indice_key="a").eval()
    with torch.no_grad():
        expected = conv(tensor).features
        conv.algo = spconv.ConvAlgo.MaskImplicitGemm
        torch.testing.assert_close(conv(sparse_tensor(60)).features, expected)
    assert conv.algo == spconv.ConvAlgo.MaskImplicitGemm


@pytest.mark.parametrize("is_strided", [False, True])
def test_backward_on_cpu_agrees_with_a_dense_convolution(is_strided):
    tensor = sparse_tensor(60, requires_grad=True)
    kind, stride = (spconv.SparseConv3d, 2) if is_strided else (spconv.SubMConv3d, 1)
    conv = kind(3, 4, 3, stride=stride, padding=1, bias=False, indice_key="a")
    out = conv(tensor)
    factors = torch.randn_like(out.features)
    (out.features * factors).sum().backward()

    features, weight = tensor.features.detach().clone().requires_grad_(), conv.weight.detach().clone().requires_grad_()
    dense = F.conv3d(
        to_dense(tensor.replace_feature(features)), weight.permute(0, 4, 1, 2, 3), stride=stride, padding=1
    )
    (at_voxels(dense, out.indices) * factors).sum().backward()
    torch.testing.assert_close(conv.weight.grad, weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tensor.features.grad, features.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [VoxelBatchNorm1d, SyncVoxelBatchNorm])
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_voxels_leave_the_running_statistics_alone(count, kind):
    norm = kind(3).train()
    norm.running_mean += 2.0
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    out = norm(torch.full((count, 3), 5.0))
    out.sum().backward()
    torch.testing.assert_close(out, torch.full((count, 3), 3.0), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    torch.testing.assert_close(norm.bias.grad, torch.full((3,), float(count)))


@pytest.mark.parametrize("kind", [VoxelBatchNorm1d, SyncVoxelBatchNorm])
def test_two_voxels_are_normalised_as_by_torch(kind):
    features = torch.randn(9, 3)
    ours, theirs = kind(3), nn.BatchNorm1d(3)
    torch.testing.assert_close(ours(features), theirs(features))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(features[:1]), theirs.eval()(features[:1]))


def test_synchronised_norms_keep_their_settings_and_know_which_are_over_voxels():
    block = conv_block(spconv.SubMConv3d(3, 4, 3, indice_key="a"), partial(VoxelBatchNorm1d, eps=1e-3, momentum=0.01))
    model = nn.Sequential(block, nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)))
    nn.init.normal_(block[1].running_mean)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert synchronise_batch_norm(model) is model
    assert [type(norm) for norm in (model[0][1], model[1][1])] == [SyncVoxelBatchNorm, nn.SyncBatchNorm]
    assert (model[0][1].eps, model[0][1].momentum) == (1e-3, 0.01)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("here", "elsewhere"), [(0, 1), (1, 0), (0, 2), (1, 1)])
def test_voxels_of_all_processes_are_counted(monkeypatch, here, elsewhere):
    seen = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(elsewhere))
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda norm, input: seen.append(input.dtype) or input)
    out = SyncVoxelBatchNorm(3).train()(torch.ones(here, 3, dtype=torch.bfloat16))
    assert out.shape == (here, 3)
    assert out.dtype == torch.bfloat16
    gathered = torch.bfloat16 if here else torch.float32  # with nothing to measure, the type of the others' statistics
    assert seen == ([] if here + elsewhere < 2 else [gathered])


@pytest.mark.parametrize("is_strided", [False, True])
def test_convolving_nothing_gives_the_shape_of_convolving_something(is_strided):
    kind, stride = (spconv.SparseConv3d, (2, 1, 2)) if is_strided else (spconv.SubMConv3d, 1)
    conv = kind(3, 4, 3, stride=stride, padding=(0, 1, 1), bias=False, indice_key="a")
    nothing, something = convolve_nothing(conv, sparse_tensor(0)), conv(sparse_tensor(60))
    assert list(nothing.spatial_shape) == list(something.spatial_shape)
    assert nothing.features.shape == (0, 4)
    assert nothing.indices.shape == (0, 4)


def test_a_block_without_voxels_keeps_every_parameter_in_the_graph():
    block = conv_block(spconv.SparseConv3d(3, 4, 3, bias=False, indice_key="a"), VoxelBatchNorm1d)
    block(sparse_tensor(0)).features.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in block.parameters())


def test_a_block_whose_voxels_all_fall_off_the_grid_keeps_its_norm_in_the_graph():
    """A stride-2 kernel of 3 without padding never reads the last of 6 layers."""
    block = conv_block(spconv.SparseConv3d(3, 4, 3, stride=2, bias=False, indice_key="a"), VoxelBatchNorm1d)
    last_layer = torch.tensor([[0, 5, 2, 2], [1, 5, 3, 3]], dtype=torch.int32)
    out = block(spconv.SparseConvTensor(torch.ones(2, 3, requires_grad=True), last_layer, [6, 7, 7], 2))
    out.features.sum().backward()
    assert out.features.shape == (0, 4)
    assert all(p.grad is not None for p in block.parameters())


def test_a_block_is_convolution_norm_and_relu_one_after_the_other():
    conv = spconv.SubMConv3d(3, 4, 3, padding=1, bias=False, indice_key="a")
    block = SparseBlock(conv, nn.BatchNorm1d(4), nn.ReLU()).eval()
    with torch.no_grad():
        expected = F.batch_norm(conv(sparse_tensor(40)).features, torch.zeros(4), torch.ones(4)).relu()
        torch.testing.assert_close(block(sparse_tensor(40)).features, expected)


def test_two_threads_give_what_dense_convolution_gives():
    """spconv 2.3.8 on CPU garbles some rows of a strided convolution when it may use more than one thread."""
    threads, generator = torch.get_num_threads(), torch.Generator().manual_seed(0)
    shape = (41, 128, 128)
    coords = torch.stack([torch.randint(0, s, (3000,), generator=generator) for s in (1, *shape)], dim=1).unique(dim=0)
    conv = spconv.SparseConv3d(16, 32, 3, stride=2, padding=1, bias=False)
    torch.set_num_threads(2)
    try:
        for _ in range(5):
            features = torch.randn(len(coords), 16, generator=generator)
            dense = torch.zeros(1, 16, *shape)
            dense[coords[:, 0], :, coords[:, 1], coords[:, 2], coords[:, 3]] = features
            with torch.no_grad():
                found = conv(spconv.SparseConvTensor(features, coords.int(), list(shape), 1))
                wanted = torch.nn.functional.conv3d(dense, conv.weight.permute(0, 4, 1, 2, 3), stride=2, padding=1)
            b, z, y, x = found.indices.long().T
            torch.testing.assert_close(found.features, wanted[b, :, z, y, x], rtol=1e-4, atol=1e-5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
