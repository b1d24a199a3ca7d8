from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.detectors.roi_heads.proposals import propose
from cakdp_ext.detectors.roi_heads.roi_config import ProposalConfig
from cakdp_ext.types import DensePredictions

NODE = {
    "NMS_TYPE": "nms_gpu",
    "MULTI_CLASSES_NMS": False,
    "NMS_PRE_MAXSIZE": 100,
    "NMS_POST_MAXSIZE": 5,
    "NMS_THRESH": 0.7,
}


def configured(**changes) -> ProposalConfig:
    return from_node(ProposalConfig, {**NODE, **changes}, "NMS_CONFIG.TEST")


def cars_at(*x: float) -> torch.Tensor:
    boxes = torch.zeros(len(x), 7)
    boxes[:, 0] = torch.tensor(x)
    boxes[:, 3:6] = torch.tensor([4.0, 2.0, 1.5])
    return boxes


def predictions_of(boxes: torch.Tensor, *logits: list[float]) -> DensePredictions:
    return DensePredictions(torch.tensor([logits]).requires_grad_(), boxes[None])


def test_the_best_box_of_each_heap_becomes_a_roi_whatever_its_class():
    """0.2 m apart, two cars overlap by 0.9; the pedestrian logit of the second is the best of the heap."""
    boxes = cars_at(0.0, 0.2, 20.0)
    found = propose(predictions_of(boxes, [1.0, -9.0], [-9.0, 2.0], [0.5, -9.0]), configured())
    assert found.is_valid.tolist() == [[True, True, False, False, False]]
    assert_close(found.rois[0, :2], boxes[[1, 2]])
    assert found.labels[0, :2].tolist() == [1, 0]
    assert_close(found.scores[0, :2], torch.tensor([2.0, 0.5]).sigmoid())
    assert_close(found.rois[0, 2:], torch.zeros(3, 7))
    assert not found.scores.requires_grad


def test_limits_apply_before_and_after_nms():
    boxes = cars_at(*range(0, 200, 10))
    predictions = predictions_of(boxes, *([float(-i)] for i in range(20)))
    assert_close(propose(predictions, configured()).rois[0], boxes[:5])
    assert propose(predictions, configured(NMS_PRE_MAXSIZE=3)).is_valid.sum() == 3
    assert propose(predictions, configured(SCORE_THRESH=0.2)).is_valid.sum() == 2


def test_clear_cases_are_ranked_though_their_scores_are_all_one():
    boxes = cars_at(0.0, 0.2, 0.1)
    found = propose(predictions_of(boxes, [30.0], [40.0], [35.0]), configured())
    assert_close(found.rois[0, 0], boxes[1])


def test_headings_matter_unless_they_are_set_aside():
    """Two cars at a right angle overlap by 1/3 as rotated boxes, entirely as axis-aligned ones."""
    boxes = cars_at(0.0, 0.0)
    boxes[1, 6] = torch.pi / 2
    predictions = predictions_of(boxes, [1.0], [0.0])
    assert propose(predictions, configured()).is_valid.sum() == 2
    assert propose(predictions, configured(NMS_TYPE="nms_normal_gpu")).is_valid.sum() == 1


def test_frames_are_independent_and_may_propose_nothing():
    boxes = cars_at(0.0, 20.0).expand(2, 2, 7)
    logits = torch.tensor([[[3.0], [2.0]], [[-9.0], [-9.0]]])
    found = propose(DensePredictions(logits, boxes), configured(SCORE_THRESH=0.5))
    assert found.is_valid.sum(dim=1).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MULTI_CLASSES_NMS", True, "MULTI_CLASSES_NMS must be False"),
        ("NMS_TYPE", "soft", "NMS_TYPE must be one of nms_gpu, nms_normal_gpu, got 'soft'"),
        ("NMS_POST_MAXSIZE", 0, "must be at least 1"),
    ],
)
def test_unusable_settings_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        configured(**{key: value})
