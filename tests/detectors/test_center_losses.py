from __future__ import annotations

import math

import pytest
import torch

from cakdp_ext.detectors.center_losses import heatmap_loss, regression_loss


def slow_heatmap_loss(logits, heatmap) -> float:
    total, centers = 0.0, 0
    for logit, target in zip(logits.flatten().tolist(), heatmap.flatten().tolist(), strict=True):
        score = min(max(1 / (1 + math.exp(-logit)), 1e-4), 1 - 1e-4)
        if target == 1:
            centers += 1
            total -= (1 - score) ** 2 * math.log(score)
        else:
            total -= (1 - target) ** 4 * score**2 * math.log(1 - score)
    return total / max(centers, 1)


def random_maps(centers=5):
    random = torch.Generator().manual_seed(0)
    heatmap = torch.rand(2, 3, 4, 6, generator=random, dtype=torch.float64) ** 2 * 0.99
    heatmap.view(-1)[torch.randperm(heatmap.numel(), generator=random)[:centers]] = 1
    return 4 * torch.randn(heatmap.shape, generator=random, dtype=torch.float64), heatmap


@pytest.mark.parametrize("centers", [0, 1, 5])
def test_heatmap_loss_agrees_with_a_loop_over_cells(centers):
    logits, heatmap = random_maps(centers)
    logits[0, 0, 0, :2] = torch.tensor([20.0, -20.0])
    assert heatmap_loss(logits, heatmap).item() == pytest.approx(slow_heatmap_loss(logits, heatmap), rel=1e-9)


def test_heatmap_loss_differentiates():
    logits, heatmap = random_maps()
    assert torch.autograd.gradcheck(lambda x: heatmap_loss(x, heatmap), logits.requires_grad_())


def test_heatmap_loss_is_finite_whatever_the_logits():
    logits, heatmap = (values.float() for values in random_maps())
    logits = (logits * 1e4).requires_grad_()
    loss = heatmap_loss(logits, heatmap)
    loss.backward()
    assert loss.isfinite()
    assert not logits.grad.any()


def test_cells_near_a_center_are_punished_less():
    logits = torch.zeros(1, 1, 1, 2)
    near, far = (heatmap_loss(logits, torch.tensor([[[[1.0, value]]]])) for value in (0.8, 0.0))
    certain = (0.25 * math.log(2), 0.25 * math.log(2))
    assert near.item() == pytest.approx(certain[0] + 0.2**4 * certain[1])
    assert far.item() == pytest.approx(sum(certain))


def test_regression_loss_is_the_mean_over_objects_of_weighted_absolute_errors():
    random = torch.Generator().manual_seed(0)
    codes, targets, weights = (torch.randn(*shape, generator=random) for shape in ((5, 8), (5, 8), (8,)))
    expected = sum(
        weights[k].item() * abs(codes[i, k].item() - targets[i, k].item()) for i in range(5) for k in range(8)
    )
    assert regression_loss(codes, targets, weights).item() == pytest.approx(expected / 5, rel=1e-5)


def test_regression_loss_without_objects_is_a_zero_in_the_graph():
    maps = torch.randn(2, 8, 6, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = regression_loss(maps[none, :, none], torch.zeros(0, 8), torch.ones(8))
    loss.backward()
    assert loss == 0
    assert torch.equal(maps.grad, torch.zeros_like(maps))
