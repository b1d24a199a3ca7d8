"""The door to spconv; what its cured convolutions compute is tested with the sparse blocks."""

from __future__ import annotations

import sys

import pytest
import torch

from cakdp_ext import spconv_on_cpu
from cakdp_ext.types import MissingSpconvError


def test_missing_spconv_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv", None)
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    with pytest.raises(MissingSpconvError, match=r"pip install spconv==2\.3\.8 for CPU, spconv-cu124==2\.3\.8 or"):
        spconv_on_cpu.load_spconv()


def test_curing_twice_changes_nothing():
    from spconv.pytorch import conv, ops

    before = ops.get_current_stream, conv.SparseConvolutionBase._conv_forward
    spconv_on_cpu.cure_cpu_faults()
    assert (ops.get_current_stream, conv.SparseConvolutionBase._conv_forward) == before


@pytest.mark.parametrize(("is_running", "expected"), [(False, 0), (True, 77)])
def test_stream_is_asked_for_only_while_cuda_runs(monkeypatch, is_running, expected):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_running)
    assert spconv_on_cpu._stream_or_zero(lambda: 77)() == expected


def test_convolution_of_cuda_features_is_left_as_it_was():
    class CudaFeatures:
        is_cuda = True

    class Input:
        features = CudaFeatures()

    class Conv:
        algo = "chosen for CUDA"

    calls = []
    forward = spconv_on_cpu._conv_forward_on_any_device(lambda self, *args, **kw: calls.append((self.algo, args, kw)))
    given = Input()
    forward(Conv(), False, given, "weight", "bias", None, name="conv")
    assert calls == [("chosen for CUDA", (False, given, "weight", "bias", None), {"name": "conv"})]


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_convolution_under_autocast_computes_in_float32(given):
    spconv = spconv_on_cpu.load_spconv()
    spconv_on_cpu.cure_cpu_faults()
    torch.manual_seed(0)
    conv = spconv.SubMConv3d(4, 8, 3, bias=True)
    indices = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2], [0, 3, 3, 3]], dtype=torch.int32)
    features = torch.rand(3, 4).to(given).requires_grad_()

    def run(features):
        return conv(spconv.SparseConvTensor(features, indices, [5, 5, 5], 1)).features

    expected = run(features.detach().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = run(features)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    found.sum().backward()
    assert conv.weight.grad.isfinite().all()
    assert features.grad.dtype == given


@pytest.mark.parametrize("key", [None, "down"])
def test_voxels_of_a_strided_convolution_come_frame_after_frame(key):
    """OpenPCDet's set abstraction counts the voxels of each frame and takes them in order."""
    spconv = spconv_on_cpu.load_spconv()
    spconv_on_cpu.cure_cpu_faults()
    torch.manual_seed(0)
    down = spconv.SparseConv3d(3, 4, 3, stride=2, padding=1, bias=False, indice_key=key)
    dense = torch.zeros(3, 3, 8, 8, 8)
    coords = torch.cat([torch.nonzero(torch.rand(3, 8, 8, 8) < 0.1)]).int()
    features = torch.randn(len(coords), 3, requires_grad=True)
    frame, z, y, x = coords.long().unbind(1)
    out = down(spconv.SparseConvTensor(features, coords, [8, 8, 8], 3))
    assert (out.indices[1:, 0] >= out.indices[:-1, 0]).all()
    filled = dense.index_put((frame, torch.arange(3)[:, None], z, y, x), features.t())
    expected = torch.nn.functional.conv3d(filled, down.weight.permute(0, 4, 1, 2, 3), stride=2, padding=1)
    torch.testing.assert_close(out.dense(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected.shape)
    (grad,) = torch.autograd.grad((out.dense() * weights).sum(), features, retain_graph=True)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), features)
    torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-5)
    if key:
        up = spconv.SparseInverseConv3d(4, 2, 3, indice_key=key, bias=False)
        assert torch.equal(up(out).indices, coords)
