from __future__ import annotations

import math

import pytest
import torch
from shapely import affinity
from shapely.geometry import Polygon, box

from cakdp_ext.detectors.post_processing import (
    CenterPostProcessing,
    NMSConfig,
    PostProcessingConfig,
    detect,
    detect_centers,
)
from cakdp_ext.refinement import IoURefinement
from cakdp_ext.types import DensePredictions

SCENE = 40


def predictions(frames: int = 2, seed: int = 0, has_iou: bool = False) -> DensePredictions:
    random = torch.Generator().manual_seed(seed)
    boxes = torch.rand(frames, SCENE, 7, generator=random)
    boxes[..., :2] *= 12
    boxes[..., 3:6] = boxes[..., 3:6] * 2 + 1
    boxes[..., 6] = boxes[..., 6] * 6 - 3
    logits = 3 * torch.randn(frames, SCENE, 3, generator=random) - 2
    iou_logits = 2 * torch.randn(frames, SCENE, 3, generator=random) - 2 if has_iou else None
    return DensePredictions(logits, boxes, iou_logits)


def footprint(row: list[float], is_rotated: bool) -> Polygon:
    x, y, _, dx, dy, _, heading = row
    shape = box(x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2)
    return affinity.rotate(shape, math.degrees(heading), origin=(x, y)) if is_rotated else shape


def slow_nms(boxes, scores, config: NMSConfig) -> list[int]:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: config.nms_pre_maxsize]
    kept: list[int] = []
    for i in order:
        shape = footprint(boxes[i], config.nms_type == "nms_gpu")
        overlaps = []
        for j in kept:
            other = footprint(boxes[j], config.nms_type == "nms_gpu")
            overlaps.append(shape.intersection(other).area / shape.union(other).area)
        if all(overlap <= config.nms_thresh for overlap in overlaps):
            kept.append(i)
    return kept[: config.nms_post_maxsize]


def slow_detect(boxes, scores, allowed, config: PostProcessingConfig) -> list[tuple[float, int, int]]:
    """Score, label and box index of every detection of one frame."""
    num_classes = len(scores[0])
    found = []
    for group in range(num_classes) if config.nms_config.multi_classes_nms else [None]:
        candidates = []
        for i, row in enumerate(scores):
            label = row.index(max(row)) if group is None else group
            if allowed[i] and row[label] >= config.score_thresh:
                candidates.append((i, row[label], label))
        kept = slow_nms([boxes[i] for i, *_ in candidates], [score for _, score, _ in candidates], config.nms_config)
        found += [(candidates[k][1], candidates[k][2], candidates[k][0]) for k in kept]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("is_multi_class", [False, True])
@pytest.mark.parametrize("nms_type", ["nms_gpu", "nms_normal_gpu"])
@pytest.mark.parametrize(("pre", "post"), [(4096, 500), (15, 4)])
def test_detections_agree_with_a_slow_reference(is_multi_class, nms_type, pre, post):
    config = PostProcessingConfig(score_thresh=0.1, nms_config=NMSConfig(is_multi_class, nms_type, 0.25, pre, post))
    given = predictions()
    for frame, detections in enumerate(detect(given, config)):
        scores = given.cls_logits[frame].sigmoid().tolist()
        expected = slow_detect(given.boxes[frame].tolist(), scores, [True] * SCENE, config)
        assert len(detections.scores) == len(expected) > 3
        torch.testing.assert_close(detections.scores, torch.tensor([score for score, *_ in expected]))
        assert detections.labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(detections.boxes, given.boxes[frame, [index for *_, index in expected]])


def test_masked_samples_do_not_suppress_others():
    """Box 0 is the best but its IoU says nothing; box 1 beneath it must then survive."""
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 1.5, 0], [0.1, 0, 0, 4, 2, 1.5, 0], [9.0, 0, 0, 4, 2, 1.5, 0]])[None]
    logits = torch.tensor([[3.0], [2.0], [1.0]])[None]
    iou_logits = torch.tensor([[-4.0], [1.0], [-2.0]])[None]
    given = DensePredictions(logits, boxes, iou_logits)
    masked = detect(given, PostProcessingConfig(iou_refinement=IoURefinement("mask", delta=0.1)))[0]
    torch.testing.assert_close(masked.scores, torch.tensor([2.0, 1.0]).sigmoid())
    plain = detect(given, PostProcessingConfig(iou_refinement=IoURefinement("none")))[0]
    torch.testing.assert_close(plain.scores, torch.tensor([3.0, 1.0]).sigmoid())


def test_an_iou_branch_masks_unless_told_otherwise():
    given = predictions(has_iou=True)
    config = PostProcessingConfig(nms_config=NMSConfig(nms_thresh=0.25))
    allowed = (given.iou_logits[0].sigmoid().amax(dim=1) > 0.1).tolist()
    expected = slow_detect(given.boxes[0].tolist(), given.cls_logits[0].sigmoid().tolist(), allowed, config)
    torch.testing.assert_close(detect(given, config)[0].scores, torch.tensor([score for score, *_ in expected]))
    assert not all(allowed)


def test_rescoring_ranks_by_both():
    given = predictions(has_iou=True)
    config = PostProcessingConfig(IoURefinement("rescore", power=0.5), nms_config=NMSConfig(nms_thresh=0.25))
    scores = (given.cls_logits[0].sigmoid() * given.iou_logits[0].sigmoid()).sqrt()
    expected = slow_detect(given.boxes[0].tolist(), scores.tolist(), [True] * SCENE, config)
    torch.testing.assert_close(detect(given, config)[0].scores, torch.tensor([score for score, *_ in expected]))


def test_nothing_above_the_threshold_gives_empty_tensors():
    given = predictions()
    for is_multi_class in (False, True):
        config = PostProcessingConfig(score_thresh=1.1, nms_config=NMSConfig(is_multi_class))
        for found in detect(given, config):
            assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 7), (0,), (0,))
            assert found.labels.dtype == torch.int64


def test_without_a_threshold_even_the_worst_box_counts():
    given = predictions(1)
    config = PostProcessingConfig(score_thresh=None, nms_config=NMSConfig(nms_thresh=1.0))
    assert len(detect(given, config)[0].scores) == SCENE


def test_detections_carry_no_gradient():
    given = predictions(1)
    found = detect(DensePredictions(given.cls_logits.requires_grad_(), given.boxes), PostProcessingConfig())[0]
    assert not found.scores.requires_grad


def test_what_is_not_supported_is_refused():
    with pytest.raises(ValueError, match="NMS_TYPE must be one of nms_gpu, nms_normal_gpu, got 'circle'"):
        NMSConfig(nms_type="circle")
    with pytest.raises(ValueError, match="OUTPUT_RAW_SCORE must be False"):
        PostProcessingConfig(output_raw_score=True)


def slow_detect_centers(boxes, scores, allowed, config: CenterPostProcessing) -> list[tuple[float, int, int]]:
    """Score, label and cell of every detection of one part."""
    rows = [(score, label, cell) for cell, row in enumerate(scores) for label, score in enumerate(row)]
    rows = [row for row in rows if allowed[row[2]] and (config.score_thresh is None or row[0] > config.score_thresh)]
    rows = sorted(rows, reverse=True)[: config.max_obj_per_sample]
    limits = config.post_center_limit_range
    if limits is not None:
        rows = [row for row in rows if all(limits[k] <= boxes[row[2]][k] <= limits[k + 3] for k in range(3))]
    kept = slow_nms([boxes[cell] for *_, cell in rows], [score for score, *_ in rows], config.nms_config)
    return [rows[k] for k in kept]


@pytest.mark.parametrize("thresh", [0.1, None])
@pytest.mark.parametrize("limits", [None, (2.0, 1.0, 0.2, 10.0, 11.0, 0.9)])
@pytest.mark.parametrize(("most", "post"), [(500, 500), (30, 500), (30, 4)])
def test_detections_of_centers_agree_with_a_slow_reference(thresh, limits, most, post):
    config = CenterPostProcessing(thresh, limits, most, NMSConfig(nms_thresh=0.25, nms_post_maxsize=post))
    given = predictions()
    for frame in range(2):
        scores, keep = given.cls_logits[frame].sigmoid(), torch.arange(SCENE) % 3 > 0
        found = detect_centers(given.boxes[frame], scores, keep, config)
        expected = slow_detect_centers(given.boxes[frame].tolist(), scores.tolist(), keep.tolist(), config)
        assert 3 < len(expected) < SCENE * 2
        torch.testing.assert_close(found.scores, torch.tensor([score for score, *_ in expected]))
        assert found.labels.tolist() == [label for _, label, _ in expected]
        assert torch.equal(found.boxes, given.boxes[frame][[cell for *_, cell in expected]])


def test_of_two_classes_in_one_cell_the_better_one_stays():
    boxes, scores = torch.tensor([[5.0, 5, 0, 4, 2, 1, 0]]), torch.tensor([[0.6, 0.7]])
    found = detect_centers(boxes, scores, torch.ones(1, dtype=torch.bool), CenterPostProcessing())
    assert (found.labels.tolist(), found.scores.tolist()) == ([1], pytest.approx([0.7]))


@pytest.mark.parametrize("thresh", [None, 0.1])
def test_what_is_no_number_is_neither_found_nor_in_the_way(thresh):
    given = predictions(1)
    scores, boxes = given.cls_logits[0].sigmoid(), given.boxes[0].clone()
    keep = torch.ones(SCENE, dtype=torch.bool)
    config = CenterPostProcessing(thresh, None, 6, NMSConfig(nms_thresh=1.0))
    best = detect_centers(boxes, scores, keep, config)
    scores, boxes = torch.cat([scores, scores.new_full((9, 3), torch.nan)]), torch.cat([boxes, boxes[:9]])
    with_nan = detect_centers(boxes, scores, torch.ones(SCENE + 9, dtype=torch.bool), config)
    assert torch.equal(with_nan.scores, best.scores)
    first = (boxes == best.boxes[0]).all(dim=1).nonzero()[0]
    for bad in (torch.nan, torch.inf):
        boxes[first, 4] = bad
        found = detect_centers(boxes, scores, torch.ones(SCENE + 9, dtype=torch.bool), config)
        assert found.boxes.isfinite().all()
        assert 0 < len(found.scores) < len(best.scores)


def test_nothing_passes_a_part_without_candidates():
    for keep, thresh in ((False, None), (True, 1.0)):
        found = detect_centers(
            torch.zeros(4, 7), torch.ones(4, 2), torch.full((4,), keep), CenterPostProcessing(thresh)
        )
        assert [tuple(getattr(found, name).shape) for name in ("boxes", "scores", "labels")] == [(0, 7), (0,), (0,)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nms_config": NMSConfig(multi_classes_nms=True)}, "MULTI_CLASSES_NMS must be False; .* a head of its own"),
        ({"post_center_limit_range": (0.0, 1.0)}, "POST_CENTER_LIMIT_RANGE needs x, y, z, x, y, z"),
        ({"max_obj_per_sample": 0}, "MAX_OBJ_PER_SAMPLE must be at least 1"),
    ],
)
def test_settings_of_centers_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CenterPostProcessing(**settings)
