"""Costs against arithmetic by hand and pairs counted one by one."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import spconv.pytorch as spconv
import torch
from pruning_networks import GRID, SparseUNet, voxel_batch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cakdp_ext.pruning import (
    ACTIVATIONS,
    EXACT,
    REST,
    THOP,
    cost,
    count_layers,
    count_macs,
    count_parameters,
    measure_latency,
    measure_parts,
    peak_memory,
)
from cakdp_ext.pruning.rulebooks import num_pairs


def test_dense_layers_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 10 x 14 -> 5 x 7
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 6, 2, stride=2),  # -> 10 x 14
        nn.Conv2d(6, 4, 3, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(4 * 10 * 14, 5),
    )
    macs = count_macs(lambda m: m(torch.randn(2, 3, 10, 14)), net)
    assert macs.layers == {
        "0": 2 * 5 * 7 * 8 * 3 * 9,
        "2": 2 * 5 * 7 * 8 * 6 * 4,
        "3": 2 * 10 * 14 * 4 * 3 * 9,
        "5": 2 * 560 * 5,
    }
    assert macs.total == sum(macs.layers.values())


def test_dense_layers_by_the_papers_counter():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 10 x 14 -> 5 x 7
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 6, 2, stride=2),  # -> 10 x 14
        nn.Conv2d(6, 4, 3, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(4 * 10 * 14, 5),
    )
    counts = count_layers(lambda m: m(torch.randn(2, 3, 10, 14)), net)
    assert counts[EXACT].layers == count_macs(lambda m: m(torch.randn(2, 3, 10, 14)), net).layers
    assert counts[THOP].layers == {
        "0": 2 * 5 * 7 * 8 * 3 * 9,
        "1": 2 * (2 * 5 * 7 * 8),
        "2": 2 * 10 * 14 * 6 * (8 * 4 + 1),
        "3": 2 * 10 * 14 * 4 * (3 * 9 + 1),
        "5": 2 * 560 * 5,
    }


def test_sparse_layers_by_the_papers_counter():
    net = nn.Sequential(spconv.SparseConv3d(4, 5, 3, stride=2, padding=1, indice_key="down"))
    up = spconv.SparseInverseConv3d(5, 4, 3, bias=False, indice_key="down")
    with torch.no_grad():
        num_out = len(net.eval()(sparse_input()).features)
    counts = count_layers(lambda m: m(sparse_input()), nn.Sequential(*net, up))
    exact, thop = counts[EXACT].layers, counts[THOP].layers
    assert exact["0"] == exact["1"] > 0
    assert thop == {"0": exact["0"] + num_out, "1": 0}


def test_activations_are_what_layers_output():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 6, 5))
    counts = count_layers(lambda m: m(torch.randn(2, 3, 6, 8)), dense)[ACTIVATIONS]
    assert counts.layers == {"0": 2 * 8 * 4 * 6, "4": 2 * 5}
    sparse = nn.Sequential(spconv.SparseConv3d(4, 5, 3, stride=2, padding=1, indice_key="down"))
    with torch.no_grad():
        num_out = len(sparse.eval()(sparse_input()).features)
    assert count_layers(lambda m: m(sparse_input()), sparse)[ACTIVATIONS].total == 5 * num_out


def test_dense_layers_against_torchs_own_counter():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1), nn.Conv2d(6, 2, (3, 1), dilation=(2, 1))
    )
    image = torch.randn(1, 3, 20, 24)
    with FlopCounterMode(display=False) as counter:
        net(image)
    assert 2 * count_macs(lambda m: m(image), net).total == counter.get_total_flops()


def test_a_layer_used_twice_counts_twice_and_submodules_add_up():
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "ab": nn.Linear(3, 2)})
    macs = count_macs(lambda m: m["ab"](m["a"](m["a"](torch.randn(4, 3)))), net)
    assert macs.layers == {"a": 2 * 4 * 9, "ab": 4 * 6}
    assert (macs.under("a"), macs.under("ab")) == (72, 24)


def pairs_one_by_one(inputs, outputs, kernel, stride, padding):
    """Count the kernel positions of every output voxel that hold an input voxel."""
    active = {tuple(row) for row in inputs.tolist()}
    return sum(
        (frame, *(o * s - p + k for o, s, p, k in zip(zyx, stride, padding, offset, strict=True))) in active
        for frame, *zyx in outputs.tolist()
        for offset in itertools.product(*map(range, kernel))
    )


def sparse_input(channels=4):
    batch = voxel_batch(batch_size=2)
    features = torch.randn(len(batch.voxels), channels)
    return spconv.SparseConvTensor(features, batch.voxel_coords, GRID, 2)


@pytest.mark.parametrize("key", ["key", None])
@pytest.mark.parametrize(
    ("kind", "kernel", "stride", "padding"),
    [
        (spconv.SubMConv3d, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
        (spconv.SubMConv3d, (1, 3, 3), (1, 1, 1), (0, 1, 1)),
        (spconv.SubMConv3d, (1, 1, 1), (1, 1, 1), (0, 0, 0)),
        (spconv.SparseConv3d, (3, 3, 3), (2, 2, 2), (1, 1, 1)),
        (spconv.SparseConv3d, (3, 1, 1), (2, 1, 1), (0, 0, 0)),
        (spconv.SparseConv3d, (1, 1, 1), (1, 1, 1), (0, 0, 0)),
    ],
)
def test_sparse_pairs_one_by_one(kind, kernel, stride, padding, key):
    conv = kind(4, 5, kernel, stride=stride, padding=padding, bias=False, indice_key=key)
    voxels = sparse_input()
    net = nn.Sequential(conv)
    with torch.no_grad():
        out = net.eval()(voxels)
    want = pairs_one_by_one(voxels.indices, out.indices, kernel, stride, padding)
    assert count_macs(lambda m: m(sparse_input()), net).total == want * 4 * 5


def test_inverse_convolution_has_the_pairs_of_its_partner():
    macs = count_macs(lambda m: m(voxel_batch()), SparseUNet()).layers
    assert macs["backbone_3d.up"] / (5 * 4) == macs["backbone_3d.down"] / (3 * 5) > 0


def test_pairs_of_an_implicit_gemm_rulebook_are_its_filled_entries():
    table = torch.tensor([[0, -1, 2], [-1, -1, 1], [3, 4, -1]], dtype=torch.int32)
    output = SimpleNamespace(indice_dict={"key": SimpleNamespace(pair_fwd=table)})
    conv = SimpleNamespace(conv1x1=False, indice_key="key", subm=True)
    assert num_pairs(conv, None, output) == 5


def test_counting_leaves_no_hook_and_no_changed_mode():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    with pytest.raises(RuntimeError):
        count_macs(lambda m: m(torch.randn(1, 7, 2, 2)), net)
    assert net.training
    assert not net[0]._forward_hooks


def test_parameters_are_counted_once_and_frozen_ones_on_request():
    shared = nn.Linear(3, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2))
    net[3].weight.requires_grad_(False)
    assert count_parameters(net) == 12 + 4 + 2
    assert count_parameters(net, trainable_only=False) == 12 + 4 + 8 + 2


def test_latency_of_a_known_wait():
    waits = iter([0.05] * 3 + [0.002] * 9 + [0.02])
    stats = measure_latency(lambda: time.sleep(next(waits)), warmup=3, iterations=10)
    assert 2 <= stats.p50 < 15
    assert stats.p50 <= stats.p90 <= stats.p99
    assert 15 < stats.p99
    assert stats.iterations == 10


def test_parts_take_what_they_wait_and_the_rest_is_outside():
    class Waiting(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self):
            time.sleep(self.seconds)
            return self.seconds

    parts = {"short": Waiting(0.004), "twice": Waiting(0.008), "never": Waiting(1.0)}

    def run():
        assert parts["short"]() == 0.004
        time.sleep(0.03)
        parts["twice"]()
        parts["twice"]()

    costs = measure_parts(run, parts, warmup=1, iterations=3)
    assert list(costs) == [*parts, REST]
    p50 = {name: cost.latency.p50 for name, cost in costs.items()}
    assert p50["never"] == 0
    assert 4 <= p50["short"] < 16 <= p50["twice"] < p50[REST]
    assert 30 <= p50[REST]
    assert {cost.latency.iterations for cost in costs.values()} == {3}
    assert "forward" not in parts["short"].__dict__


def test_latency_needs_a_call():
    with pytest.raises(ValueError, match="iterations >= 1, got 10 and 0"):
        measure_latency(lambda: None, iterations=0)


PEAKS = """
import torch
from cakdp_ext.pruning import peak_memory
def peak_of(num_bytes):
    with peak_memory("cpu") as peak:
        torch.ones(num_bytes, dtype=torch.uint8)
    return peak.num_bytes
print(peak_of(1), peak_of(256 * 2**20), peak_of(1))
"""


def test_peak_memory_of_the_process_sees_a_large_tensor():
    """In a process of its own: where much was freed before, a large tensor may need no new memory."""
    answer = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True).stdout
    if "None" in answer:
        pytest.skip("this system does not tell a process's peak")
    before, peak, after = map(int, answer.split())
    assert peak - max(before, after) > 240 * 2**20


def test_no_peak_where_the_system_does_not_reset_it(monkeypatch):
    sizes = {"VmHWM": 900 * 2**20, "VmRSS": 500 * 2**20}
    monkeypatch.setattr(cost, "_resident", sizes.get)
    with peak_memory("cpu") as peak:
        pass
    assert peak.num_bytes is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sparse_pairs_on_cuda_are_those_on_cpu():
    model, batch = SparseUNet(), voxel_batch()
    on_cpu = count_macs(lambda m: m(batch), model).layers
    moved = batch.to("cuda")
    on_gpu = count_macs(lambda m: m(moved), SparseUNet().cuda()).layers
    assert on_gpu == on_cpu


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parts_on_cuda_have_their_own_peaks():
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4096)).cuda()
    rows = torch.randn(4096, 64, device="cuda")
    costs = measure_parts(lambda: net(rows), dict(net.named_children()), warmup=1, iterations=2, device="cuda")
    assert costs["1"].memory - costs["0"].memory > 2**25  # its output has 64 MiB, that of the other 1
    assert costs[REST].memory is None
