"""The student-motivated method where student or teacher is a center head."""

import pytest
import torch
from teaching import scene_of, teach

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import TrainingOutput
from cakdp_ext.distillation import FrozenTeacher
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.types import DensePredictions

LOW, NUM_CLASSES = (-4.0, 0.8), 3
MAPS = {
    "center student, anchor teacher": (((0.8, 0.8), (8, 6), 1, False), ((0.8, 0.8), (8, 6), 6, True)),
    "center student, coarser anchor teacher": (((0.4, 0.4), (8, 6), 1, False), ((0.8, 0.8), (4, 3), 6, True)),
    "center student, finer anchor teacher": (((0.8, 0.8), (8, 6), 1, False), ((0.4, 0.4), (16, 12), 2, True)),
    "both center": (((0.8, 0.8), (8, 6), 1, False), ((0.8, 0.8), (8, 6), 1, False)),
    "anchor student, center teacher": (((0.8, 0.8), (8, 6), 2, True), ((0.8, 0.8), (8, 6), 1, False)),
}


class Pair:
    """A student and a teacher on maps of their own, two frames, boxes around their cells."""

    def __init__(self, make_map, make_boxes, make_teacher, student, teacher):
        generator = torch.Generator().manual_seed(21)
        self.student, self.teacher = make_map(LOW, *student), make_map(LOW, *teacher)
        self.logits = torch.randn(2, len(self.student.cells), NUM_CLASSES, generator=generator).requires_grad_()
        self.student_boxes = make_boxes(2, len(self.student.cells), seed=22).requires_grad_()
        self.teacher_boxes = make_boxes(2, len(self.teacher.cells), seed=23)
        self.teacher_logits = torch.randn(2, len(self.teacher.cells), NUM_CLASSES, generator=generator)
        self.detector = make_teacher(self.teacher.sites, self.teacher_boxes)

    @property
    def predictions(self):
        return DensePredictions(self.logits, self.student_boxes)

    def distil(self, config):
        teacher = FrozenTeacher(self.detector)
        encoded = scene_of(self.teacher.sites, DensePredictions(self.teacher_logits, self.teacher_boxes))
        return teach(config, self.predictions, self.student.sites, teacher, encoded)

    def slow_roi(self, candidates, frame, index):
        best = max(candidates[index], key=lambda site: self.teacher_logits[frame, site].max().item())
        return self.teacher_boxes[frame, best]


@pytest.fixture(params=MAPS)
def pair(request, make_map, make_boxes, make_teacher):
    return Pair(make_map, make_boxes, make_teacher, *MAPS[request.param])


def test_loss_and_gradient_follow_the_formula(pair, make_config, slow_representatives, slow_candidates):
    config = make_config(alpha=1.5, score_thresh=0.6, nms_thresh=0.2)
    chosen, candidates = slow_representatives(pair.predictions, config), slow_candidates(pair.student, pair.teacher)
    weight, bias = pair.detector.head.weight.detach()[0], pair.detector.head.bias.detach()[0]
    expected, expected_grad = 0.0, torch.zeros_like(pair.logits)
    for frame, samples in enumerate(chosen):
        for index, label in samples:
            judged = pair.slow_roi(candidates, frame, index) @ weight + bias
            gap = (pair.logits[frame, index, label].detach() - judged).item()
            expected += 1.5 * gap**2 / len(samples) / 2
            expected_grad[frame, index, label] = 1.5 * 2 * gap / len(samples) / 2
    output = pair.distil(config)
    output.loss.backward()
    assert output.num_representatives.tolist() == [len(samples) for samples in chosen]
    assert min(map(len, chosen)) > 3
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(pair.logits.grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_the_second_stage_sees_the_first_stages_boxes(pair, make_config, slow_representatives, slow_candidates):
    config = make_config(score_thresh=0.7)
    pair.distil(config)
    (rois,) = pair.detector.asked
    candidates = slow_candidates(pair.student, pair.teacher)
    for frame, samples in enumerate(slow_representatives(pair.predictions, config)):
        for slot, (index, _) in enumerate(samples):
            assert torch.equal(rois[frame, slot], pair.slow_roi(candidates, frame, index))


def test_gradient_reaches_the_students_logits_alone(pair, make_config):
    pair.teacher_logits.requires_grad_()
    pair.teacher_boxes.requires_grad_()
    pair.distil(make_config()).loss.backward()
    assert pair.logits.grad.count_nonzero() > 0
    assert pair.student_boxes.grad is pair.teacher_logits.grad is pair.teacher_boxes.grad is None
    assert all(parameter.grad is None for parameter in pair.detector.parameters())


def test_without_representatives_there_is_a_connected_zero(pair, make_config):
    with torch.no_grad():
        pair.logits -= 50.0
    output = pair.distil(make_config())
    output.loss.backward()
    assert pair.detector.asked == []
    assert output.loss.item() == 0.0
    assert pair.logits.grad.count_nonzero() == 0


def test_a_frame_without_representatives_beside_one_with(pair, make_config):
    with torch.no_grad():
        pair.logits[1] -= 50.0
    output = pair.distil(make_config())
    output.loss.backward()
    assert output.num_representatives[0] > 3
    assert output.num_representatives[1] == 0
    assert pair.logits.grad[1].count_nonzero() == 0


def test_first_stage_logits_that_are_not_finite_are_named(pair, make_config):
    pair.teacher_logits.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="teacher's first-stage class logits"):
        pair.distil(make_config())
    assert pair.detector.asked == []


class Student(torch.nn.Module):
    def __init__(self, sites):
        super().__init__()
        self.sites = sites

    def forward(self, batch):
        return TrainingOutput({})


def test_a_training_step_refuses_a_teacher_that_sees_less_before_it_starts(
    make_map, make_boxes, make_teacher, make_config
):
    student, teacher = make_map(LOW, (0.8, 0.8), (8, 6)), make_map(LOW, (0.8, 0.8), (8, 5))
    frozen = FrozenTeacher(make_teacher(teacher.sites, make_boxes(1, 40)))
    with pytest.raises(ConfigError, match="the teacher cannot teach this student by SKD: 8 of 48 predictions"):
        TrainingStep(Student(student.sites), teacher=frozen, distill=make_config())
    TrainingStep(Student(teacher.sites), teacher=frozen, distill=make_config())
