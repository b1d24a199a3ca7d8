import copy

import pytest
import torch
from torch import nn

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import TwoStageTeacher
from cakdp_ext.distillation import Distiller, FrozenTeacher


class Student(nn.Module):
    def __init__(self, teacher):
        super().__init__()
        self.layer = nn.Linear(7, 1)
        self.teacher = teacher


@pytest.fixture
def detector(make_sites, make_boxes, make_teacher):
    return make_teacher(make_sites(6), make_boxes(2, 6, seed=5).requires_grad_()).train()


def test_a_teacher_cannot_train(detector):
    """No gradient, eval mode whatever its owner does, absent from the student's state dict."""
    student = Student(FrozenTeacher(detector))
    student.train()
    assert not any(module.training for module in detector.modules())
    encoded = student.teacher.encode(None)
    logits = student.teacher.refine(encoded, encoded.predictions.boxes)
    assert not encoded.predictions.cls_logits.requires_grad
    assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    assert set(student.state_dict()) == {"layer.weight", "layer.bias"}
    assert sum(1 for _ in student.parameters()) == 2
    assert list(student.children()) == [student.layer]


def test_even_when_put_into_training_mode_directly_it_answers_in_eval_mode(detector):
    teacher = FrozenTeacher(detector)
    statistics = detector.norm.running_mean.clone()
    expected = teacher.encode(None).predictions.cls_logits
    detector.train()
    assert torch.equal(teacher.encode(None).predictions.cls_logits, expected)
    detector.train()
    teacher.refine(None, torch.zeros(1, 1, 7))
    assert not detector.training
    assert torch.equal(detector.norm.running_mean, statistics)


def test_its_answers_may_stand_in_a_loss_that_is_differentiated(detector):
    logits = FrozenTeacher(detector).refine(None, torch.ones(1, 2, 7))
    student = torch.zeros(1, 2, 1, requires_grad=True)
    (student * logits).sum().backward()
    torch.testing.assert_close(student.grad, logits)


def test_it_moves_only_on_request(detector):
    teacher = FrozenTeacher(detector)
    student = Student(teacher).double()
    assert student.layer.weight.dtype == torch.float64
    assert detector.head.weight.dtype == torch.float32
    assert teacher.to("meta") is teacher
    assert detector.head.weight.device.type == "meta"


def test_it_is_a_two_stage_teacher_and_survives_a_deep_copy(detector):
    teacher = FrozenTeacher(detector)
    assert isinstance(teacher, TwoStageTeacher)
    assert teacher.sites is detector.sites
    twin = copy.deepcopy(teacher)
    rois = torch.ones(1, 1, 7)
    assert torch.equal(twin.refine(None, rois), teacher.refine(None, rois))


def test_a_detector_that_shows_nothing_is_refused():
    with pytest.raises(ValueError, match="Linear lacks one of them"):
        FrozenTeacher(nn.Linear(1, 1))


def test_a_detector_without_second_stage_teaches_whoever_does_not_ask_for_one(detector, make_config):
    class OneStage(nn.Module):
        sites, encode = detector.sites, detector.encode

    teacher = FrozenTeacher(OneStage())
    with pytest.raises(ConfigError, match="asks the teacher's second stage, OneStage has none"):
        Distiller(make_config(), teacher)
    assert Distiller(make_config(method="VanillaKD"), teacher).teacher is teacher
