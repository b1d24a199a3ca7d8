"""A hundred thousand hard pairs of each size: IoUs in float32 against polygons clipped in float64, and shapely's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import shapely
import torch
from hard_pairs import SIZES, clipped_overlap, hard_pairs, polygons
from shapely_boxes import shared_height

from cakdp_ext import ops

WANTED = 1e-4
KM_50 = 50_000.0
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Pairs:
    """Aligned boxes (P, 7), float32, and what polygon clipping says about them, float64."""

    boxes1: torch.Tensor
    boxes2: torch.Tensor
    overlap: torch.Tensor
    iou_bev: torch.Tensor
    iou_3d: torch.Tensor


@cache
def clipped(size, offset=0.0):
    boxes1, boxes2 = (torch.from_numpy(boxes) for boxes in hard_pairs(size, offset=offset))
    first, second = boxes1.double(), boxes2.double()
    overlap = torch.from_numpy(clipped_overlap(first.numpy(), second.numpy()))
    volume = overlap * shared_height(first, second)
    iou_bev = overlap / (first[:, 3:5].prod(1) + second[:, 3:5].prod(1) - overlap)
    return Pairs(boxes1, boxes2, overlap, iou_bev, volume / (first[:, 3:6].prod(1) + second[:, 3:6].prod(1) - volume))


@pytest.mark.parametrize(("size", "offset"), [*((size, 0.0) for size in SIZES), (4.0, KM_50)])
def test_both_oracles_agree(size, offset):
    """GEOS 3.14 takes very few of the nearly equal rectangles for disjoint: 1 of 13,000 jittered copies."""
    pairs = clipped(size, offset)
    first, second = polygons(pairs.boxes1.numpy(), pairs.boxes2.numpy())
    differ = np.abs(shapely.area(shapely.intersection(first, second)) - pairs.overlap.numpy()) > 1e-12 * size**2
    assert len(differ) >= 100_000
    assert differ.sum() <= 5
    found = shapely.area(shapely.intersection(first[differ], second[differ], grid_size=1e-7 * size))
    np.testing.assert_allclose(found, pairs.overlap[differ], rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, KM_50], ids=["near", "50 km away"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("implementation")
def test_iou_of_hard_pairs_in_float32(device, size, offset):
    pairs = clipped(size, offset)
    boxes1, boxes2 = pairs.boxes1.to(device), pairs.boxes2.to(device)
    for op, wanted in ((ops.iou_bev_aligned, pairs.iou_bev), (ops.iou_3d_aligned, pairs.iou_3d)):
        found = op(boxes1, boxes2).cpu()
        assert (found - wanted).abs().max() < WANTED / 10
        assert ((found >= 0) & (found <= 1)).all()
        assert torch.equal(op(boxes2, boxes1).cpu(), found)
    assert (pairs.iou_bev > 0).double().mean() > 0.6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("implementation")
def test_iou_of_hard_pairs_in_float64(device, size):
    pairs = clipped(size, KM_50)
    found = ops.iou_bev_aligned(pairs.boxes1.double().to(device), pairs.boxes2.double().to(device)).cpu()
    assert (found - pairs.iou_bev).abs().max() < 1e-12


@pytest.mark.parametrize("offset", [0.0, KM_50], ids=["near", "50 km away"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("implementation")
def test_hard_boxes_overlap_themselves_entirely(device, size, offset):
    boxes = clipped(size, offset).boxes2.to(device)
    for found in (ops.iou_bev_aligned(boxes, boxes), ops.iou_3d_aligned(boxes, boxes)):
        assert (1 - found).max() < 2e-5
        assert found.max() <= 1


@pytest.mark.parametrize("offset", [0.0, KM_50], ids=["near", "50 km away"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("implementation")
def test_a_gap_of_next_to_nothing_is_one(device, size, offset):
    pairs = clipped(size, offset)
    is_apart = pairs.overlap == 0
    first, second = polygons(pairs.boxes1[is_apart].numpy(), pairs.boxes2[is_apart].numpy())
    gap = shapely.distance(first, second) > 1e-5 * size
    found = ops.iou_bev_aligned(pairs.boxes1[is_apart].to(device), pairs.boxes2[is_apart].to(device)).cpu()
    assert gap.sum() > 10_000
    assert not found[torch.from_numpy(gap)].any()
    assert found.max() < 1e-6


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("implementation")
def test_iou_of_hard_pairs_moved_together(device, size, precision):
    """What remains is that the moved numbers are rounded: by half a step each, so that boxes shift by so much."""
    pairs, dtype = clipped(size), DTYPES[precision]
    moved = [move_together(boxes.double()) for boxes in (pairs.boxes1, pairs.boxes2)]
    found = ops.iou_bev_aligned(*(boxes.to(device, dtype) for boxes in moved)).cpu()
    step = torch.finfo(dtype).eps
    shift = sum(step * (b[:, :2].abs().sum(1) + b[:, 6].abs() * radius(b)) for b in moved)
    area = torch.maximum(*(boxes[:, 3:5].prod(1) for boxes in moved))
    allowed = 50 * step + 4 * shift * torch.minimum(*map(radius, moved)) / area
    needle = 2 * sum(step * radius(b) / b[:, 3:5].amin(1) for b in moved)
    assert ((found - pairs.iou_bev).abs() / (allowed + needle)).max() < 1


def move_together(boxes, turn=2.1, shift=(31.4, -72.8)):
    place = torch.view_as_complex(boxes[:, :2].contiguous()) * np.exp(1j * turn) + complex(*shift)
    return torch.cat((torch.view_as_real(place), boxes[:, 2:6], boxes[:, 6:] + turn), dim=1)


def radius(boxes):
    return boxes[:, 3:5].norm(dim=1) / 2
