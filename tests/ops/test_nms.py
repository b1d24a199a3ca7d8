"""Kept sets against a ten-line greedy reference on shapely's IoU, away from the threshold; order, limits, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from shapely_boxes import jittered, random_boxes, shapely_iou_bev

from cakdp_ext import ops
from cakdp_ext.ops.reference import nms as reference
from cakdp_ext.ops.reference import overlap as reference_overlap

pytestmark = pytest.mark.usefixtures("implementation")


def greedy(iou, scores, threshold):
    keep = []
    for candidate in scores.argsort(descending=True, stable=True).tolist():
        if all(iou[kept, candidate] <= threshold for kept in keep):
            keep.append(candidate)
    return keep


def clustered(count, seed):
    """Boxes in groups of five that overlap each other much, and their scores."""
    boxes = random_boxes(count // 5, seed, spread=4 * math.sqrt(count)).repeat(5, 1)
    scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return jittered(boxes, seed + 1, 0.25), scores


def gap_near(iou, threshold):
    """A threshold in the widest gap between the IoUs around it, so that rounding cannot matter."""
    values = iou[(iou > threshold - 0.05) & (iou < threshold + 0.05)].unique()
    widths = values.diff()
    assert widths.max() > 1e-5
    return (values[widths.argmax()] + widths.max() / 2).item()


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("axis_aligned", [False, True])
def test_kept_boxes_are_those_of_a_greedy_search_on_shapelys_iou(device, dtype, threshold, axis_aligned):
    boxes, scores = clustered(150, 0)
    boxes = boxes.to(dtype)
    seen = boxes.clone()
    if axis_aligned:
        seen[:, 6] = 0
    iou = shapely_iou_bev(seen, seen)
    threshold = gap_near(iou, threshold)
    wanted = greedy(iou, scores, threshold)
    found = ops.nms(boxes.to(device), scores.to(device, dtype), threshold, axis_aligned=axis_aligned)
    assert found.tolist() == wanted
    assert 30 <= len(wanted) < 150
    assert found.dtype == torch.int64


def test_blocks_of_the_reference_leave_no_seam(monkeypatch):
    monkeypatch.setattr(reference, "BLOCK", 8)
    boxes, scores = clustered(150, 2)
    iou = shapely_iou_bev(boxes, boxes)
    threshold = gap_near(iou, 0.3)
    order = scores.argsort(descending=True)
    for post_max in (-1, 20):
        found = order[reference.nms_sorted(boxes[order], None, threshold, post_max=post_max)]
        assert found.tolist() == greedy(iou, scores, threshold)[: post_max if post_max > 0 else None]


@pytest.mark.parametrize("limits", [{}, {"pre_max": 20}, {"post_max": 5}, {"pre_max": 25, "post_max": 8}])
@pytest.mark.parametrize("axis_aligned", [False, True])
def test_groups_are_as_if_each_were_alone(device, dtype, axis_aligned, limits):
    boxes, scores = (tensor.to(device, dtype) for tensor in clustered(150, 14))
    groups = torch.randint(-3, 3, (150,), generator=torch.Generator().manual_seed(1)).to(device) * 10**12
    wanted = []
    for group in groups.unique():
        rows = (groups == group).nonzero().squeeze(1)
        wanted.append(rows[ops.nms(boxes[rows], scores[rows], 0.2, axis_aligned=axis_aligned, **limits)])
    merged = torch.cat(wanted)
    merged = merged[scores[merged].argsort(descending=True)]
    found = ops.nms(boxes, scores, 0.2, groups=groups, axis_aligned=axis_aligned, **limits)
    assert found.tolist() == merged.tolist()
    assert len(found) > len(ops.nms(boxes, scores, 0.2, axis_aligned=axis_aligned, **limits))


def test_one_group_is_no_groups(device):
    boxes, scores = (tensor.to(device) for tensor in clustered(100, 15))
    same = torch.full((100,), 7, dtype=torch.int32, device=device)
    assert torch.equal(ops.nms(boxes, scores, 0.3, groups=same), ops.nms(boxes, scores, 0.3))


def test_equal_scores_of_several_groups_keep_the_given_order(device):
    boxes = random_boxes(40, 16, spread=500).to(device)
    groups = torch.arange(40, device=device) % 3
    assert ops.nms(boxes, torch.ones(40, device=device), 0.5, groups=groups).tolist() == list(range(40))


def test_frames_of_a_batch_are_as_if_each_were_alone(device, dtype):
    boxes, scores = (tensor.to(device, dtype) for tensor in clustered(120, 19))
    boxes, scores = boxes.view(3, 40, 7), scores.view(3, 40)
    candidates = scores > 0.2
    candidates[1] = False
    frames, rows, ranks = ops.nms_in_frames(boxes, scores, candidates, 0.3, post_max=25)
    wanted = []
    for frame in range(3):
        chosen = candidates[frame].nonzero().squeeze(1)
        keep = chosen[ops.nms(boxes[frame, chosen], scores[frame, chosen], 0.3, post_max=25)]
        wanted += [(frame, row, rank) for rank, row in enumerate(keep.tolist())]
    assert list(zip(frames.tolist(), rows.tolist(), ranks.tolist(), strict=True)) == wanted
    assert [len(part) for part in ops.nms_in_frames(boxes, scores, candidates & False, 0.3)] == [0, 0, 0]


def test_the_same_box_in_another_group_stays(device):
    boxes = random_boxes(1, 17).repeat(3, 1).to(device)
    scores = torch.tensor([0.7, 0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 0.5, groups=torch.tensor([0, 1, 0], device=device)).tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_boxes_of_any_size_and_place(device, dtype, seed):
    """Sizes and spreads over six orders of magnitude, far away places, and some that are no boxes."""
    rng = torch.Generator().manual_seed(seed)
    boxes = random_boxes(60, 18 + seed).repeat(4, 1)
    scale = 10 ** (6 * torch.rand(60, 1, generator=rng, dtype=torch.float64) - 3).repeat(4, 1)
    boxes = jittered(boxes, seed, 0.2) * torch.cat((scale.expand(-1, 6), torch.ones_like(scale)), dim=1)
    boxes[:60, 0] += 1e6
    boxes[5:240:40, 3], boxes[7:240:50, 0], boxes[9:240:60, 1] = 0, math.nan, 1e30
    boxes = boxes[torch.randperm(240, generator=rng)].to(dtype)
    iou = reference_overlap.boxes_overlap_bev(boxes.double(), boxes.double())
    area = boxes.double()[:, 3:5].prod(1)
    iou = (iou / (area[:, None] + area - iou)).nan_to_num(nan=0)
    scores = torch.rand(240, generator=rng)
    threshold = gap_near(iou, 0.4)
    found = ops.nms(boxes.to(device), scores.to(device), threshold)
    assert found.tolist() == greedy(iou, scores, threshold)
    assert 70 < len(found) < 230


@pytest.mark.parametrize("threshold", [0.05, 0.5])
@pytest.mark.parametrize("limits", [{}, {"post_max": 200}])
def test_kept_boxes_of_several_chunks(device, threshold, limits):
    """More boxes than a block of either device settles at once; the reference is another way to the same end."""
    boxes, scores = clustered(1300, 22)
    boxes, scores = boxes[scores.argsort(descending=True)], scores.sort(descending=True).values
    wanted = reference.nms_sorted(boxes, None, threshold, **limits)
    assert torch.equal(ops.nms(boxes.to(device), scores.to(device), threshold, **limits).cpu(), wanted)
    assert len(wanted) >= 200


def test_a_chain_in_which_each_box_would_remove_the_next(device):
    """Of boxes side by side that overlap by a third, every other one stays: as many rounds as boxes."""
    boxes = torch.zeros(300, 7, device=device)
    boxes[:, 0], boxes[:, 3:6] = torch.arange(300, device=device), 2.0
    scores = torch.arange(300, 0, -1, device=device).float()
    assert ops.nms(boxes, scores, 0.2).tolist() == list(range(0, 300, 2))


def test_equal_scores_keep_the_given_order(device, dtype):
    boxes = random_boxes(40, 5, spread=500).to(device, dtype)
    assert ops.nms(boxes, torch.full((40,), 0.5, device=device, dtype=dtype), 0.5).tolist() == list(range(40))


def test_of_equal_boxes_the_best_scored_stays(device, dtype):
    boxes = random_boxes(1, 6).repeat(4, 1).to(device, dtype)
    assert ops.nms(boxes, torch.tensor([0.1, 0.9, 0.3, 0.9], device=device, dtype=dtype), 0.5).tolist() == [1]


def test_limits_cut_before_and_after(device):
    boxes, scores = (tensor.to(device) for tensor in clustered(100, 7))
    everything = ops.nms(boxes, scores, 0.3)
    assert ops.nms(boxes, scores, 0.3, post_max=7).tolist() == everything[:7].tolist()
    best = scores.argsort(descending=True)[:30]
    assert ops.nms(boxes, scores, 0.3, pre_max=30).tolist() == best[ops.nms(boxes[best], scores[best], 0.3)].tolist()
    assert ops.nms(boxes, scores, 0.3, post_max=0).tolist() == []
    assert ops.nms(boxes, scores, 0.3, pre_max=0).tolist() == []


def test_iou_equal_to_the_threshold_stays(device, dtype):
    boxes = torch.tensor([[0, 0, 0, 2, 1, 1, 0], [0.5, 0, 0, 1, 1, 1, 0]], device=device, dtype=dtype)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.49).tolist() == [0]


def test_axis_aligned_ignores_headings(device):
    boxes = torch.tensor([[0, 0, 0, 8, 1, 1, 0], [0, 0, 0, 8, 1, 1, math.pi / 2]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.5, axis_aligned=True).tolist() == [0]


def test_height_does_not_matter(device):
    boxes = random_boxes(1, 8).repeat(2, 1).to(device)
    boxes[1, 2] += 50
    assert ops.nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.5).tolist() == [0]


def test_a_box_without_size_removes_nothing_and_stays(device, dtype):
    boxes = random_boxes(1, 9).repeat(3, 1).to(device, dtype)
    boxes[0, 3], boxes[1, 4] = 0, math.nan
    assert ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.1).tolist() == [0, 1, 2]


def test_nan_score_counts_as_lowest(device):
    boxes = random_boxes(1, 10).repeat(2, 1).to(device)
    assert ops.nms(boxes, torch.tensor([math.nan, 0.1], device=device), 0.5).tolist() == [1]


@pytest.mark.parametrize("count", [0, 1])
def test_few_boxes(device, dtype, count):
    boxes = random_boxes(count, 11).to(device, dtype)
    found = ops.nms(boxes, torch.ones(count, device=device, dtype=dtype), 0.5)
    assert found.tolist() == list(range(count))
    assert found.dtype == torch.int64


def test_far_from_origin_nothing_changes(device):
    boxes, scores = clustered(100, 12)
    boxes[:, :2] = (boxes[:, :2] * 16).round() / 16
    boxes, scores = boxes.float().to(device), scores.to(device)
    shift = torch.tensor([48000.0, 48000, 0, 0, 0, 0, 0], device=device)
    assert ops.nms(boxes + shift, scores, 0.3).tolist() == ops.nms(boxes, scores, 0.3).tolist()


def test_wrong_arguments_are_named(device):
    boxes, scores = random_boxes(3, 13).to(device), torch.rand(3, device=device)
    with pytest.raises(ValueError, match=r"boxes must have shape \(any, 7\), got \(3, 5\)"):
        ops.nms(boxes[:, :5], scores, 0.5)
    with pytest.raises(ValueError, match=r"scores must have shape \(3\), got \(2,\)"):
        ops.nms(boxes, scores[:2], 0.5)
    with pytest.raises(ValueError, match=f"must be on one device, got {boxes.device} and meta"):
        ops.nms(boxes, scores.to("meta"), 0.5)
    with pytest.raises(ValueError, match=r"iou_threshold must lie in \[0, 1\], got 70"):
        ops.nms(boxes, scores, 70)
    with pytest.raises(ValueError, match="groups must be int32 or int64, got torch.float32"):
        ops.nms(boxes, scores, 0.5, groups=scores)
    with pytest.raises(ValueError, match=r"groups must have shape \(3\), got \(2,\)"):
        ops.nms(boxes, scores, 0.5, groups=torch.zeros(2, dtype=torch.int64, device=device))
    with pytest.raises(ValueError, match=f"boxes and groups must be on one device, got {boxes.device} and meta"):
        ops.nms(boxes, scores, 0.5, groups=torch.zeros(3, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="post_max must be at least 0, got -1; for no limit give None"):
        ops.nms(boxes, scores, 0.5, post_max=-1)
