import math

import pytest
import torch

from cakdp_ext.distillation import category_loss

VALID = torch.tensor([[1, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def slow_loss(student, teacher, valid, space):
    transform = sigmoid if space == "probability" else float
    total = 0.0
    for frame in zip(student.tolist(), teacher.tolist(), valid.tolist(), strict=True):
        gaps = [(transform(s) - transform(t)) ** 2 for s, t, v in zip(*frame, strict=True) if v]
        total += sum(gaps) / len(gaps) if gaps else 0.0
    return total / len(student)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) * 3


@pytest.mark.parametrize("space", ["logits", "probability"])
def test_loss_is_equation_one(logits, space):
    expected = slow_loss(*logits, VALID, space)
    assert category_loss(*logits, VALID, space).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_twice_the_gap_over_samples_and_frames_and_zero_elsewhere(logits):
    student, teacher = logits.clone().requires_grad_().unbind()
    student.retain_grad()
    category_loss(student, teacher, VALID).backward()
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for frame, slot in VALID.nonzero().tolist():
        count = VALID[frame].sum()
        expected[frame, slot] = 2 * (student[frame, slot] - teacher[frame, slot]).detach() / count / 3
    torch.testing.assert_close(student.grad, expected)


def test_probability_space_is_differentiable(logits):
    student = logits[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: category_loss(value, logits[1], VALID, "probability"), student)


def test_no_gradient_flows_to_the_teacher(logits):
    student, teacher = (item.clone().requires_grad_() for item in logits)
    category_loss(student, teacher, VALID).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("space", ["logits", "probability"])
def test_padding_changes_nothing_whatever_it_holds(logits, space):
    student, teacher = logits
    wider = torch.nn.functional.pad(student, (0, 3), value=float("nan")).requires_grad_()
    wider_teacher = torch.nn.functional.pad(teacher, (0, 3), value=float("inf"))
    loss = category_loss(wider, wider_teacher, torch.nn.functional.pad(VALID, (0, 3)), space)
    loss.backward()
    assert loss.item() == category_loss(student, teacher, VALID, space).item()
    assert wider.grad.isfinite().all()


@pytest.mark.parametrize("space", ["logits", "probability"])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_at_a_sample_is_not_hidden(logits, side, space):
    logits[side, 0, 2] = float("nan")
    assert category_loss(*logits, VALID, space).isnan()


@pytest.mark.parametrize("shape", [(2, 0), (2, 4), (0, 4)])
def test_no_sample_gives_a_zero_that_stays_in_the_graph(shape):
    student = torch.ones(shape, requires_grad=True)
    loss = category_loss(student, torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad.count_nonzero() == 0


def test_half_precision_is_squared_in_float32(logits):
    student, teacher = (logits * 100).half()
    loss = category_loss(student, teacher, VALID)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loss(student, teacher, VALID, "logits"), rel=1e-5)


def test_shapes_that_would_broadcast_are_refused(logits):
    with pytest.raises(ValueError, match=r"\(3, 5\), \(3, 1\), \(3, 5\)"):
        category_loss(logits[0], logits[1][:, :1], VALID)


def test_an_unknown_space_is_refused(logits):
    with pytest.raises(ValueError, match="valid spaces: logits, probability"):
        category_loss(*logits, VALID, "softmax")
