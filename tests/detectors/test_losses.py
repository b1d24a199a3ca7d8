from __future__ import annotations

import math

import pytest
import torch

from cakdp_ext.detectors import losses


def slow_focal(logit: float, is_target: bool) -> float:
    probability = 1 / (1 + math.exp(-logit))
    if is_target:
        return -0.25 * (1 - probability) ** 2 * math.log(probability)
    return -0.75 * probability**2 * math.log(1 - probability)


def test_focal_loss_agrees_with_its_formula():
    logits = torch.linspace(-6, 6, 13, dtype=torch.float64)
    for is_target in (True, False):
        expected = torch.tensor([slow_focal(logit, is_target) for logit in logits.tolist()], dtype=torch.float64)
        found = losses.sigmoid_focal_loss(logits, torch.full((13,), is_target))
        torch.testing.assert_close(found, expected)


def test_focal_loss_of_a_hopeless_logit_is_finite_with_a_gradient():
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    losses.sigmoid_focal_loss(logits, torch.tensor([True, False])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-0.25, 0.75]))


def test_focal_loss_differentiates():
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    is_target = torch.tensor([True, False] * 3)
    assert torch.autograd.gradcheck(lambda x: losses.sigmoid_focal_loss(x, is_target), logits)


def test_classification_skips_ignored_anchors_and_averages_frames():
    logits = torch.randn(2, 4, 2)
    labels = torch.tensor([[1, 0, -1, -2], [-1, -1, -2, -1]])
    expected = 0.0
    for frame, positives in enumerate((2, 1)):
        for anchor, label in enumerate(labels[frame].tolist()):
            if label >= -1:
                values = logits[frame, anchor].tolist()
                expected += sum(slow_focal(value, label == c) for c, value in enumerate(values)) / positives
    found = losses.classification_loss(logits, labels, torch.tensor([2, 1]))
    assert found.item() == pytest.approx(expected / 2, rel=1e-5)


def test_smooth_l1_is_square_near_zero_and_linear_beyond():
    found = losses.smooth_l1(torch.tensor([0.0, 0.05, -0.05, 1.0, -1.0]), 1 / 9)
    linear = 1 - 1 / 18
    torch.testing.assert_close(found, torch.tensor([0, 0.0025 * 4.5, 0.0025 * 4.5, linear, linear]))


def test_localization_takes_the_sine_of_the_heading_and_weighs_codes():
    deltas, targets = torch.zeros(2, 7), torch.zeros(2, 7)
    deltas[0, 0], deltas[0, 6], targets[1, 6] = 2.0, 0.3, math.pi
    weights = torch.tensor([0.5, 1, 1, 1, 1, 1, 2.0])
    found = losses.localization_loss(deltas, targets, weights)
    first = (2.0 * 0.5 - 1 / 18) + (2 * math.sin(0.3) - 1 / 18)
    torch.testing.assert_close(found, torch.tensor([first, 0.0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(45, 0), (46, 0), (134, 0), (224, 0), (226, 1), (44, 1), (0, 1), (-44, 1), (-134, 1), (-136, 0), (405.5, 0)],
)
def test_two_direction_bins_begin_at_45_degrees(degrees, expected):
    heading = torch.tensor(math.radians(degrees) + 1e-5)
    assert losses.direction_bins(heading, math.pi / 4, 2).item() == expected


def test_four_direction_bins_by_hand():
    headings = torch.tensor([0.1, 1.6, 3.2, 4.8, -0.1, 6.4])
    assert losses.direction_bins(headings, 0.0, 4).tolist() == [0, 1, 2, 3, 3, 0]


@pytest.mark.parametrize("offset", [0.0, 0.78539])
@pytest.mark.parametrize("num_bins", [2, 4])
def test_the_bin_restores_what_whole_bins_took_from_a_heading(offset, num_bins):
    true = torch.linspace(-3.1, 3.1, 40, dtype=torch.float64)
    width = 2 * math.pi / num_bins
    turned = true + width * torch.randint(-3, 4, (40,))
    restored = losses.heading_in_bin(
        turned, losses.direction_bins(true, offset, num_bins), offset, limit_offset=0.0, num_bins=num_bins
    )
    torch.testing.assert_close(torch.cos(restored - true), torch.ones_like(true))
    assert ((restored >= offset - 1e-9) & (restored < offset + 2 * math.pi + 1e-9)).all()


def test_limit_offset_lets_a_heading_lie_below_its_bin():
    """OpenPCDet's Waymo setting 0.5: half a bin below, so that a heading near the border is not sent half a turn on."""
    just_below = torch.tensor(-0.01)
    assert losses.heading_in_bin(just_below, torch.tensor(0), 0.0, 0.5, 2).item() == pytest.approx(-0.01, abs=1e-5)
    assert losses.heading_in_bin(just_below, torch.tensor(0), 0.0, 0.0, 2).item() == pytest.approx(math.pi - 0.01, 1e-5)


def test_frames_count_alike_however_many_positives_they_have():
    loss = torch.tensor([1.0, 2.0, 3.0, 10.0])
    found = losses.mean_over_frames(loss, torch.tensor([0, 0, 0, 2]), torch.tensor([3, 1, 1]))
    assert found.item() == pytest.approx((2.0 + 0.0 + 10.0) / 3)


def test_no_positives_give_a_zero_with_a_gradient():
    loss = torch.zeros(0, requires_grad=True)
    found = losses.mean_over_frames(loss, torch.zeros(0, dtype=torch.int64), torch.tensor([1, 1]))
    found.backward()
    assert found.item() == 0
    assert loss.grad.shape == (0,)
