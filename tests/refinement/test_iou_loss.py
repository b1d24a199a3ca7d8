import math

import pytest
import torch

from cakdp_ext.refinement import iou_loss


def slow_loss(iou_logits, targets, samples="all"):
    frames = []
    for logits, labels in zip(iou_logits.tolist(), targets.tolist(), strict=True):
        pairs = [
            pair for row, label_row in zip(logits, labels, strict=True) for pair in zip(row, label_row, strict=True)
        ]
        taught = [pair for pair in pairs if pair[1] > 0] if samples == "positive" else pairs
        error = sum((1 / (1 + math.exp(-logit)) - label) ** 2 for logit, label in taught)
        frames.append(error / max(sum(label > 0 for _, label in pairs), 1))
    return sum(frames) / len(frames)


def sparse_case(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 7, 2, generator=generator, dtype=torch.float64)
    targets = torch.rand(3, 7, 2, generator=generator, dtype=torch.float64)
    targets[targets < 0.6] = 0.0
    targets[1] = 0.0
    return logits, targets


@pytest.mark.parametrize("samples", ["all", "positive"])
def test_loss_is_equation_six_frame_by_frame(samples):
    logits, targets = sparse_case(seed=0)
    expected = slow_loss(logits, targets, samples)
    assert iou_loss(logits, targets, samples).item() == pytest.approx(expected, rel=1e-12)


def test_what_is_not_taught_gets_no_gradient():
    logits, targets = sparse_case(seed=1)
    iou_loss(logits.requires_grad_(), targets, "positive").backward()
    assert torch.equal(logits.grad != 0, targets > 0)


def test_one_hand_computed_frame():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    targets = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
    assert iou_loss(logits, targets).item() == pytest.approx((0.25 + 0.25 + 0.0 + 0.25) / 2)


def test_gradient_reaches_every_output_but_no_target():
    logits, targets = sparse_case(seed=1)
    logits.requires_grad_()
    targets.requires_grad_()
    assert torch.autograd.gradcheck(lambda value: iou_loss(value, targets.detach()), logits)
    iou_loss(logits, targets).backward()
    assert (logits.grad != 0).all()
    assert targets.grad is None


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_empty_input_gives_a_connected_zero(shape):
    logits = torch.zeros(shape, requires_grad=True)
    loss = iou_loss(logits, torch.zeros(shape))
    loss.backward()
    assert loss.item() == 0.0


def test_half_precision_logits_are_squared_in_float32():
    logits, targets = sparse_case(seed=2)
    half = logits.bfloat16()
    loss = iou_loss(half, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loss(half, targets), rel=1e-5)


@pytest.mark.parametrize("samples", ["all", "positive"])
def test_nan_is_not_hidden(samples):
    logits, targets = sparse_case(seed=3)
    logits[1, 3, 1] = float("nan")
    assert iou_loss(logits, targets, samples).isnan()


def test_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 4, 3\) and \(1, 4, 2\)"):
        iou_loss(torch.zeros(1, 4, 3), torch.zeros(1, 4, 2))
