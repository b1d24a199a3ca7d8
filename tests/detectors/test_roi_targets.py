from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.detectors.roi_heads import Proposals
from cakdp_ext.detectors.roi_heads.roi_config import RoiTargetConfig
from cakdp_ext.detectors.roi_heads.roi_targets import best_objects, class_targets, sample_targets, subsample

NODE = {
    "BOX_CODER": "ResidualCoder",
    "ROI_PER_IMAGE": 128,
    "FG_RATIO": 0.5,
    "SAMPLE_ROI_BY_EACH_CLASS": True,
    "CLS_SCORE_TYPE": "roi_iou",
    "CLS_FG_THRESH": 0.75,
    "CLS_BG_THRESH": 0.25,
    "CLS_BG_THRESH_LO": 0.1,
    "HARD_BG_RATIO": 0.8,
    "REG_FG_THRESH": 0.55,
}
CONFIG = from_node(RoiTargetConfig, NODE, "TARGET_CONFIG")
CAR = torch.tensor([10.0, 0.0, -1.0, 4.0, 2.0, 1.5, 0.0])


def rois_with(counts: dict[float, int]) -> torch.Tensor:
    return torch.cat([torch.full((count,), iou) for iou, count in counts.items()])


def drawn(ious: torch.Tensor, config: RoiTargetConfig = CONFIG) -> dict[float, int]:
    chosen = ious[subsample(ious, config)]
    assert len(chosen) == config.roi_per_image
    return {round(value, 4): int((chosen == value).sum()) for value in chosen.unique().tolist()}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({0.9: 100, 0.3: 100, 0.0: 100}, {0.9: 64, 0.3: 51, 0.0: 13}),
        ({0.9: 10, 0.3: 100, 0.0: 100}, {0.9: 10, 0.3: 94, 0.0: 24}),
        ({0.9: 100, 0.3: 5, 0.0: 100}, {0.9: 64, 0.3: 5, 0.0: 59}),
        ({0.9: 100, 0.3: 2}, {0.9: 64, 0.3: 64}),
        ({0.9: 100, 0.0: 1}, {0.9: 64, 0.0: 64}),
        ({0.3: 3, 0.0: 300}, {0.3: 3, 0.0: 125}),
        ({0.9: 3}, {0.9: 128}),
        ({0.0: 1}, {0.0: 128}),
    ],
    ids=lambda value: " ".join(f"{n}x{iou}" for iou, n in value.items()),
)
def test_shares_of_foreground_hard_and_easy_background(counts, expected):
    """64 foreground at most; of the rest, 80 % hard rounded down, as far as there are any."""
    assert drawn(rois_with(counts)) == expected


@pytest.mark.parametrize(
    ("iou", "kind"), [(0.0999, "easy"), (0.1, "hard"), (0.5499, "hard"), (0.55, "foreground"), (0.7, "foreground")]
)
def test_where_the_kinds_begin(iou, kind):
    """Among 100 rois of each other kind, 100 of this IoU raise their own kind's share and no other's."""
    others = {"easy": 0.0, "hard": 0.3, "foreground": 0.9}
    shares = drawn(rois_with({**{v: 100 for k, v in others.items() if k != kind}, iou: 100}))
    assert shares[iou] == {"easy": 13, "hard": 51, "foreground": 64}[kind]


def test_foreground_is_drawn_without_replacement():
    ious = torch.linspace(0.56, 0.99, 64)
    chosen = subsample(torch.cat([ious, torch.zeros(10)]), CONFIG)
    assert sorted(chosen[:64].tolist()) == list(range(64))


def test_a_class_threshold_below_that_of_regression_begins_foreground():
    config = replace(CONFIG, cls_fg_thresh=0.4)
    assert drawn(rois_with({0.45: 100, 0.0: 100}), config) == {0.45: 64, 0.0: 64}


def test_overlaps_that_are_not_numbers_count_as_easy_background():
    chosen = subsample(torch.tensor([float("nan"), 0.9]), CONFIG)
    assert (chosen == 0).sum() == 127


def test_draws_follow_the_global_seed_so_that_a_resumed_run_goes_on_alike():
    ious = torch.rand(512)
    state = torch.get_rng_state()
    first = subsample(ious, CONFIG)
    other = subsample(ious, CONFIG)
    torch.set_rng_state(state)
    assert_close(subsample(ious, CONFIG), first)
    assert not torch.equal(other, first)


def test_class_targets_rise_linearly_between_the_thresholds():
    ious = torch.tensor([0.0, 0.25, 0.375, 0.5, 0.75, 1.0])
    assert_close(class_targets(ious, CONFIG), torch.tensor([0.0, 0.0, 0.25, 0.5, 1.0, 1.0]))


def test_hard_class_targets_ignore_what_lies_between():
    ious = torch.tensor([0.0, 0.25, 0.375, 0.74, 0.76, 1.0])
    config = replace(CONFIG, cls_score_type="cls")
    assert_close(class_targets(ious, config), torch.tensor([0.0, 0.0, -1.0, -1.0, 1.0, 1.0]))


def test_rois_meet_objects_of_their_own_class_only_when_asked_to():
    rois = CAR.repeat(2, 1)
    gt_boxes = torch.stack([CAR + torch.tensor([1.0, 0, 0, 0, 0, 0, 0]), CAR])
    labels, gt_labels = torch.tensor([0, 1]), torch.tensor([0, 1])
    ious, assigned = best_objects(rois, labels, gt_boxes)
    assert_close(ious, torch.ones(2))
    assert assigned.tolist() == [1, 1]
    ious, assigned = best_objects(rois, labels, gt_boxes, gt_labels)
    assert_close(ious, torch.tensor([0.6, 1.0]))
    assert assigned.tolist() == [0, 1]


def proposals_of(*frames: torch.Tensor, size: int = 4) -> Proposals:
    rois = torch.zeros(len(frames), size, 7)
    is_valid = torch.zeros(len(frames), size, dtype=torch.bool)
    for index, own in enumerate(frames):
        rois[index, : len(own)], is_valid[index, : len(own)] = own, True
    scores = is_valid.float()
    return Proposals(rois, scores, torch.zeros(len(frames), size, dtype=torch.int64), is_valid)


def test_targets_are_the_objects_seen_from_their_rois():
    roi = torch.tensor([10.0, 0.0, -1.0, 4.0, 2.0, 1.5, torch.pi / 2])
    gt_box = torch.tensor([10.0, 0.2, -1.1, 4.2, 2.0, 1.5, torch.pi / 2 + 0.05 - torch.pi])
    far = torch.tensor([50.0, 20.0, -1.0, 4.0, 2.0, 1.5, 0.0])
    targets = sample_targets(
        proposals_of(torch.stack([far, roi])), gt_box[None, None], torch.zeros(1, 1, dtype=torch.int64), CONFIG
    )
    assert targets.is_foreground.sum() == 1
    seen = targets.boxes[targets.is_foreground]
    assert_close(seen, torch.tensor([[0.2, 0.0, -0.1, 4.2, 2.0, 1.5, 0.05]]), atol=1e-6, rtol=0)
    assert targets.cls_targets[targets.is_foreground].item() == 1
    assert (targets.cls_targets[~targets.is_foreground] == 0).all()
    assert (targets.rois[~targets.is_foreground] == far).all()


def test_a_frame_without_objects_has_background_only():
    gt_boxes, gt_labels = torch.zeros(2, 3, 7), torch.full((2, 3), -1)
    targets = sample_targets(proposals_of(CAR[None], CAR.repeat(3, 1)), gt_boxes, gt_labels, CONFIG)
    assert targets.rois.shape == (2, 128, 7)
    assert not targets.is_foreground.any()
    assert (targets.cls_targets == 0).all()
    no_columns = sample_targets(proposals_of(CAR[None]), gt_boxes[:1, :0], gt_labels[:1, :0], CONFIG)
    assert not no_columns.is_foreground.any()


def test_a_frame_without_rois_is_ignored():
    nothing = torch.zeros(0, 7)
    gt_boxes, gt_labels = CAR.expand(2, 1, 7), torch.zeros(2, 1, dtype=torch.int64)
    targets = sample_targets(proposals_of(nothing, CAR[None]), gt_boxes, gt_labels, CONFIG)
    assert (targets.cls_targets[0] == -1).all()
    assert (targets.rois[0] == 0).all()
    assert not targets.is_foreground[0].any()
    assert targets.is_foreground[1].all()


def test_padding_among_the_proposals_is_never_sampled():
    targets = sample_targets(proposals_of(CAR[None], size=512), CAR[None, None], torch.zeros(1, 1).long(), CONFIG)
    assert (targets.rois == CAR).all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ROI_PER_IMAGE", 0, "ROI_PER_IMAGE must be at least 1, got 0"),
        ("CLS_SCORE_TYPE", "raw_roi_iou", "CLS_SCORE_TYPE must be roi_iou or cls"),
        ("BOX_CODER", "PointResidualCoder", "BOX_CODER must be ResidualCoder"),
        ("CLS_BG_THRESH", 0.75, "CLS_BG_THRESH 0.75 must lie below CLS_FG_THRESH 0.75"),
        ("CLS_BG_THRESH_LO", 0.6, "CLS_BG_THRESH_LO 0.6 must not exceed 0.55"),
        ("FG_RATIO", 1.5, r"FG_RATIO must lie in \[0, 1\], got 1.5"),
        ("ROIS_PER_IMAGE", 128, "unknown key ROIS_PER_IMAGE"),
    ],
)
def test_unusable_settings_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        from_node(RoiTargetConfig, {**NODE, key: value}, "TARGET_CONFIG")
