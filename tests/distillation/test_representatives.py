import pytest
import torch

from cakdp_ext.distillation import SkdConfig, select_representatives
from cakdp_ext.types import DensePredictions


@pytest.fixture
def make_config():
    return SkdConfig


@pytest.fixture
def predictions(make_boxes):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 80, 3, generator=generator) - 1.0
    logits[1] -= 20.0
    return DensePredictions(logits, make_boxes(3, 80, seed=2, spread=9.0))


def as_pairs(chosen):
    frames = zip(chosen.indices.tolist(), chosen.labels.tolist(), chosen.valid.tolist(), strict=True)
    return [[(i, c) for i, c, v in zip(*frame, strict=True) if v] for frame in frames]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nms_thresh": 0.1},
        {"score_thresh": 0.6, "nms_thresh": 0.3},
        {"nms_thresh": 0.2, "nms_pre_maxsize": 12},
        {"nms_thresh": 0.2, "nms_pre_maxsize": 20, "nms_post_maxsize": 7},
    ],
)
def test_selection_agrees_with_greedy_nms_on_polygons(predictions, slow_representatives, make_config, changes):
    config = make_config(**changes)
    chosen = select_representatives(predictions, config)
    expected = slow_representatives(predictions, config)
    assert as_pairs(chosen) == expected
    assert [len(frame) for frame in expected][1] == 0
    assert chosen.indices.shape[1] == max(map(len, expected)) > 5


def test_nms_is_class_agnostic(make_boxes, make_config):
    box = make_boxes(1, 1)
    logits = torch.tensor([[[3.0, 0.0], [0.0, 2.0]]])
    chosen = select_representatives(DensePredictions(logits, torch.cat([box, box + 0.01], dim=1)), make_config())
    assert as_pairs(chosen) == [[(0, 0)]]


def test_padding_is_zero_and_invalid(predictions, make_config):
    chosen = select_representatives(predictions, make_config())
    assert not chosen.valid[1].any()
    assert chosen.indices[~chosen.valid].count_nonzero() == 0
    assert chosen.labels[~chosen.valid].count_nonzero() == 0


def test_a_score_on_the_threshold_is_no_representative(make_boxes, make_config):
    predictions = DensePredictions(torch.zeros(1, 1, 1), make_boxes(1, 1))
    assert not select_representatives(predictions, make_config(score_thresh=0.5)).valid.any()
    assert select_representatives(predictions, make_config(score_thresh=0.49)).valid.all()


def test_a_batch_without_representatives_has_k_zero(predictions, make_config):
    quiet = DensePredictions(predictions.cls_logits - 50.0, predictions.boxes)
    chosen = select_representatives(quiet, make_config())
    assert [tuple(item.shape) for item in (chosen.indices, chosen.labels, chosen.valid)] == [(3, 0)] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused_instead_of_dropping_out(predictions, make_config, value):
    predictions.cls_logits[1, 5, 2] = value
    with pytest.raises(FloatingPointError, match="1 of 720 of the student's class logits"):
        select_representatives(predictions, make_config())


def test_selection_takes_no_part_in_the_graph(predictions, make_config):
    logits, boxes = (item.clone().requires_grad_() for item in (predictions.cls_logits, predictions.boxes))
    chosen = select_representatives(DensePredictions(logits, boxes), make_config())
    assert not any(item.requires_grad for item in (chosen.indices, chosen.labels, chosen.valid))
