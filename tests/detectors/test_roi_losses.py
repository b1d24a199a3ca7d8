from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext.detectors.roi_heads.roi_losses import corner_loss, roi_class_loss, roi_residual_loss

BOXES = torch.tensor([[3.0, -2.0, 0.5, 4.0, 1.6, 1.5, 0.4], [-5.0, 7.0, -1.0, 0.8, 0.6, 1.7, 3.0]], dtype=torch.float64)


@pytest.mark.parametrize("turn", [0.0, math.pi, -math.pi, 3 * math.pi])
def test_corners_of_the_same_or_a_turned_box_cost_nothing(turn):
    turned = BOXES.clone()
    turned[:, 6] += turn
    assert corner_loss(BOXES, turned).item() == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize(("shift", "expected"), [(0.1, 0.005), (0.5, 0.125), (3.0, 2.5)])
def test_corners_of_a_shifted_box_cost_the_huber_loss_of_the_shift(shift, expected):
    """A shift along z moves every corner alike: half its square up to one metre, then itself less a half."""
    shifted = BOXES.clone()
    shifted[:, 2] += shift
    assert corner_loss(shifted, BOXES).item() == pytest.approx(expected)


def test_perfect_boxes_give_corner_gradients_that_are_zero_not_nan():
    boxes = BOXES.clone().requires_grad_()
    corner_loss(boxes, BOXES).backward()
    assert_close(boxes.grad, torch.zeros_like(boxes))


def test_corner_loss_is_differentiable_off_the_target():
    boxes = BOXES + 0.07 * torch.arange(7) - 0.1
    assert torch.autograd.gradcheck(lambda b: corner_loss(b, BOXES), boxes.requires_grad_())


def test_residuals_cost_smooth_l1_summed_over_codes_and_averaged_over_rois():
    """Below 1/9 the loss is 4.5 d^2, above it |d| - 1/18."""
    deltas, targets = torch.zeros(2, 7), torch.zeros(2, 7)
    deltas[0, 0], deltas[0, 6], targets[1, 3] = 0.1, 1.0, 0.5
    expected = (4.5 * 0.01 + (1 - 1 / 18) + (0.5 - 1 / 18)) / 2
    assert roi_residual_loss(deltas, targets, torch.ones(7)).item() == pytest.approx(expected)
    weights = torch.tensor([0.0, 1, 1, 2, 1, 1, 0.05])
    expected = (4.5 * 0.05**2 + (1.0 - 1 / 18)) / 2
    assert roi_residual_loss(deltas, targets, weights).item() == pytest.approx(expected)


def test_class_loss_is_the_mean_over_rois_that_count():
    logits = torch.tensor([0.0, 2.0, -1.0, 50.0])
    targets = torch.tensor([0.5, 1.0, 0.25, -1.0])
    sigmoid = [1 / (1 + math.exp(-x)) for x in (0.0, 2.0, -1.0)]
    expected = sum(
        -(t * math.log(p) + (1 - t) * math.log(1 - p)) for t, p in zip((0.5, 1.0, 0.25), sigmoid, strict=True)
    )
    assert roi_class_loss(logits, targets).item() == pytest.approx(expected / 3)


def test_class_loss_of_a_very_wrong_logit_is_finite():
    assert roi_class_loss(torch.tensor([200.0]), torch.tensor([0.0])).item() == pytest.approx(200.0)


def test_no_roi_that_counts_gives_zero_and_a_gradient_of_zero():
    logits, deltas = torch.ones(3, requires_grad=True), torch.ones(3, 7, requires_grad=True)
    none = deltas[torch.zeros(3, dtype=torch.bool)]
    loss = roi_class_loss(logits, torch.full((3,), -1.0)) + roi_residual_loss(none, torch.zeros(0, 7), torch.ones(7))
    (loss + corner_loss(none, torch.zeros(0, 7))).backward()
    assert loss.item() == 0
    assert_close(logits.grad, torch.zeros(3))
    assert_close(deltas.grad, torch.zeros(3, 7))
