"""What differences cannot follow is scored the slow way, with a warning; it is never taken for something constant."""

from __future__ import annotations

import ctypes
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import spconv.pytorch as spconv
import torch
from pruning_networks import GRID, predict, voxel_batch
from torch import nn

from cakdp_ext.pruning import PLAIN_SCORING, FrameGaps, trace_channels
from cakdp_ext.pruning.incremental import recording

SLOWLY = "filters are scored by repeating whole layers, which is slower: "


class Image(NamedTuple):
    frame_ids: tuple[str, ...]
    pixels: torch.Tensor


def image(name="one", seed=0):
    pixels = torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    pixels[:, :, 6:] = 0
    return Image((name,), pixels)


def of_image(model, batch):
    return model(batch.pixels).flatten(2).transpose(1, 2)


class TwoBranches(nn.Module):
    """A map, and a context that meets it in some way."""

    def __init__(self, meet=None):
        super().__init__()
        self.a, self.ctx = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.b, self.g, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.meet = meet

    def forward(self, images):
        return self.head(self.meet(self.b(self.a(images).relu()).relu(), self.g(self.ctx(images).relu())))


class Raw(nn.Module):
    """Copies its input where no operator of PyTorch passes."""

    def forward(self, x):
        memory = x.contiguous().untyped_storage()
        copied = bytearray(ctypes.string_at(memory.data_ptr(), memory.nbytes()))
        return torch.frombuffer(copied, dtype=torch.float32).view(x.shape)


class Pooled(nn.Module):
    """Sparse layers around a pooling with kernels of its own; the first filter is dead."""

    def __init__(self):
        super().__init__()
        self.fine = spconv.SubMConv3d(4, 6, 3, padding=1, indice_key="fine")
        self.next = spconv.SubMConv3d(6, 6, 3, padding=1, indice_key="fine")
        self.pool = spconv.SparseMaxPool3d(2, 2)
        self.coarse = spconv.SubMConv3d(6, 5, 3, padding=1, indice_key="coarse")
        self.head = nn.Linear(5, 3)
        with torch.no_grad():
            self.fine.weight[0] = 0
            self.fine.bias[0] = -1

    def forward(self, batch):
        x = self.fine(spconv.SparseConvTensor(batch.voxels[:, 0], batch.voxel_coords, GRID, batch.batch_size))
        x = self.next(x.replace_feature(x.features.relu()))
        return self.head(self.coarse(self.pool(x.replace_feature(x.features.relu()))).features.relu())[None]


def branches(meet):
    torch.manual_seed(0)
    return TwoBranches(meet).eval(), image(), of_image, ("a", "ctx", "b")


def pooled():
    torch.manual_seed(0)
    return Pooled().eval(), voxel_batch(0), predict, ("fine", "next", "coarse")


def by_storage():
    raw = Raw()
    model, *rest = branches(lambda y, c: y + model.raw(c))
    model.raw = raw
    return model, *rest


UNSEEN = {
    "a number of no dimension": (lambda: branches(lambda y, c: y + c.mean()), "different shapes"),
    "a number in front": (lambda: branches(lambda y, c: c.mean() + y), "different shapes"),
    "a number for Python": (lambda: branches(lambda y, c: y * (1 + float(c.max()))), "_local_scalar_dense"),
    "a list": (lambda: branches(lambda y, c: y * (1 + c[0, 0, 0].tolist()[3])), "Tensor.tolist"),
    "a choice": (lambda: branches(lambda y, c: y * 2 if bool(c.mean() > 9) else y), "_local_scalar_dense"),
    "NumPy": (lambda: branches(lambda y, c: y + torch.from_numpy(c.numpy() * 1)), "Tensor.numpy"),
    "spconv's pooling": (pooled, "Tensor.data_ptr"),
    "a module that copies bytes": (by_storage, "raw: Raw fills its output unseen"),
    "a part of a constant": (lambda: branches(lambda y, c: overwritten(torch.ones(1, 4, 10, 20), y)), "overwritten"),
    "a write of another type": (lambda: branches(lambda y, c: halved(y)), "a change of type"),
}


def overwritten(canvas, y):
    canvas[..., 10:].add_(y)
    return canvas[..., 5:15].clone()


def halved(y):
    canvas = torch.zeros(y.shape, dtype=torch.bfloat16)
    canvas.copy_(y)
    return canvas.float()


def assert_slow_and_right(network, match):
    model, batch, forward, scope = network
    graph = trace_channels(model, lambda network: forward(network, batch), scope=scope)
    with pytest.warns(UserWarning, match=f"{SLOWLY}.*{match}"):
        found = FrameGaps(model, forward, graph).measure(batch)
    plain = FrameGaps(model, forward, graph, method=PLAIN_SCORING).measure(batch)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-8)
    assert plain.max() > 1e-4


@pytest.mark.parametrize("what", UNSEEN)
def test_what_no_operator_shows_is_no_constant(what, monkeypatch):
    monkeypatch.setattr(FrameGaps, "_check", lambda *_: None)
    make, match = UNSEEN[what]
    assert_slow_and_right(make(), match)


@pytest.mark.parametrize("what", ["NumPy", "spconv's pooling", "a module that copies bytes"])
def test_the_check_finds_a_path_that_the_record_lacks(what, monkeypatch):
    monkeypatch.setattr(recording.Recorder, "_note_escape", lambda *_: None)
    monkeypatch.setattr(recording, "has_own_kernels", lambda module: False)
    assert_slow_and_right(UNSEEN[what][0](), "changes otherwise than its differences say")


def coordinates(y):
    """Write constants into a canvas, then features beside them."""
    height, width = y.shape[2:]
    canvas = torch.zeros(len(y), 4, height, width)
    canvas[:, 2] = torch.linspace(-1, 1, width)
    canvas[:, 3] = torch.linspace(-1, 1, height)[:, None]
    canvas[:, :2] = y[:, :2]
    return canvas


def padded_by_ones(y):
    """A frame of ones around a map, all channels alike."""
    canvas = torch.zeros(len(y), y.shape[1], 14, 14)
    canvas[:, :, :2] = 1
    canvas[:, :, 2:12, 2:12] = y
    return canvas


def in_reused_memory(y):
    canvas = torch.full((1, 4, 10, 10), 7.0)  # as torch.empty may find it
    canvas[:, :2] = y[:, :2]
    canvas[:, 2:] = y[:, 2:]
    return canvas


class Written(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.write = write

    def forward(self, images):
        return self.head(self.b(self.write(self.a(images).relu())).relu())


class Halves(nn.Module):
    """Two halves of a canvas, of which the second has nothing in it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        y = self.a(images).relu()
        canvas = torch.zeros(1, 4, 10, 20)
        canvas[:, :, :, :10] = y
        left, right = (self.head(self.b(half).relu()) for half in (canvas[..., :10], canvas[..., 10:]))
        return left + right


@pytest.mark.parametrize(
    "make",
    [*(lambda w=w: Written(w) for w in (coordinates, padded_by_ones, in_reused_memory)), Halves],
    ids=["coordinates", "ones", "reused memory", "a half without anything"],
)
def test_what_was_written_and_what_is_constant_are_told_apart(make):
    torch.manual_seed(0)
    model, batch = make().eval(), image()
    graph = trace_channels(model, lambda network: of_image(network, batch), scope=("a", "b"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=SLOWLY)
        found = FrameGaps(model, of_image, graph).measure(batch)
    plain = FrameGaps(model, of_image, graph, method=PLAIN_SCORING).measure(batch)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-8)


def test_an_unforeseen_error_leads_to_the_slow_way(monkeypatch):
    def broken(*_):
        raise IndexError("out of places")

    monkeypatch.setattr(recording, "dense_table", broken)
    assert_slow_and_right(branches(torch.add), "IndexError: out of places")


class Moody(nn.Module):
    """Understood on frames whose first pixel is positive."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        y = self.a(images).relu()
        y = y if images[0, 0, 0, 0] > 0 else y * y.sigmoid()
        return self.head(self.b(y).relu())


def test_one_frame_that_is_not_understood_leaves_the_others_alone():
    torch.manual_seed(0)
    model, good, bad = Moody().eval(), image("good"), image("bad", seed=1)
    good.pixels[0, 0, 0, 0], bad.pixels[0, 0, 0, 0] = 1, -1
    graph = trace_channels(model, lambda network: of_image(network, good), scope=("a", "b"))
    gaps = FrameGaps(model, of_image, graph)
    with pytest.warns(UserWarning, match=rf"{SLOWLY}.*\(frame bad\)"):
        gaps.measure(bad)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=SLOWLY)
        later, first = gaps.measure(good), FrameGaps(model, of_image, graph).measure(good)
    assert later.tobytes() == first.tobytes()


def test_an_error_of_the_network_is_told_as_it_is():
    model, batch, forward, scope = branches(torch.add)
    graph = trace_channels(model, lambda network: forward(network, batch), scope=scope)
    model.head.bias.data[0] = torch.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=SLOWLY)
        with pytest.raises(ValueError, match="the complete network gives NaN"):
            FrameGaps(model, forward, graph).measure(batch)
