"""Every op is tested on each device, in each precision, native and as a reference."""

from __future__ import annotations

import pytest
import torch

from cakdp_ext.ops import native

NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=["native", "reference"])
def implementation(request, device, monkeypatch):
    """Force the native op or the reference for the length of a test."""
    if request.param == "reference":
        monkeypatch.setattr(native, "implementation", lambda name, device: None)
    elif not any(native.has_kernel(name, device.type) for name in native.NAMES):
        pytest.skip(f"native ops on {device.type}: {native.REASON or 'no kernels'}")
    return request.param


def runs_cuda_kernels(implementation, device_type):
    """Whether a test runs the CUDA kernels, on a GPU or compiled for a processor."""
    return implementation == "native" and (device_type == "cuda" or native.EXTENSION != "cakdp_ext._C")


@pytest.fixture
def cuda_kernels(implementation, device):
    """Skip a test unless it runs the CUDA kernels."""
    if not runs_cuda_kernels(implementation, device.type):
        pytest.skip("concerns the CUDA kernels")


@pytest.fixture
def cpu_kernels(implementation, device):
    """The implementation, of which a test on the CPU is skipped if it runs the CUDA kernels."""
    if device.type != "cpu" or runs_cuda_kernels(implementation, device.type):
        pytest.skip("concerns the CPU")
    return implementation


@pytest.fixture
def checks_rows(implementation):
    """Skip a test of an error about rows that do not exist where CUDA kernels run: they ignore those instead."""
    if implementation == "native" and native.EXTENSION != "cakdp_ext._C":
        pytest.skip("CUDA kernels ignore rows that do not exist: to tell would make the host wait")
