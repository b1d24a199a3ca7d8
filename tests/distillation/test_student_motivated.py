import pytest
import torch
from teaching import scene_of, teach

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation import FrozenTeacher, SkdConfig, StudentMotivatedKD
from cakdp_ext.types import DensePredictions

NUM_ANCHORS, NUM_CLASSES = 40, 3


class Scene:
    """Two frames of a student and the teacher's first-stage boxes, which lie elsewhere than the student's."""

    def __init__(self, make_sites, make_boxes, make_teacher, num_outputs=1):
        generator = torch.Generator().manual_seed(11)
        self.logits = torch.randn(2, NUM_ANCHORS, NUM_CLASSES, generator=generator).requires_grad_()
        self.student_boxes = make_boxes(2, NUM_ANCHORS, seed=12).requires_grad_()
        self.teacher_boxes = make_boxes(2, NUM_ANCHORS, seed=13)
        self.sites = make_sites(NUM_ANCHORS, NUM_CLASSES)
        self.detector = make_teacher(self.sites, self.teacher_boxes, num_outputs)

    @property
    def predictions(self):
        return DensePredictions(self.logits, self.student_boxes)

    def distil(self, config):
        teacher = FrozenTeacher(self.detector)
        return teach(config, self.predictions, self.sites, teacher, teacher.encode(None))

    def slow_gaps(self, chosen):
        """Give (frame, anchor, class, gap) of every representative with the plain formula."""
        weight, bias = self.detector.head.weight.detach(), self.detector.head.bias.detach()
        gaps = []
        for frame, samples in enumerate(chosen):
            for anchor, label in samples:
                row = label if len(bias) > 1 else 0
                judged = float(self.teacher_boxes[frame, anchor] @ weight[row] + bias[row])
                gaps.append((frame, anchor, label, self.logits[frame, anchor, label].item() - judged))
        return gaps


@pytest.fixture(params=[1, NUM_CLASSES], ids=["class_agnostic_teacher", "class_wise_teacher"])
def scene(request, make_sites, make_boxes, make_teacher):
    return Scene(make_sites, make_boxes, make_teacher, request.param)


def test_loss_and_gradient_follow_the_formula(scene, make_config, slow_representatives):
    config = make_config(alpha=1.5, score_thresh=0.6, nms_thresh=0.2)
    chosen = slow_representatives(scene.predictions, config)
    counts = [len(samples) for samples in chosen]
    assert 3 < counts[0] != counts[1] > 3
    output = scene.distil(config)
    output.loss.backward()
    gaps = scene.slow_gaps(chosen)
    expected = 1.5 * sum(gap**2 / counts[frame] for frame, _, _, gap in gaps) / 2
    expected_grad = torch.zeros_like(scene.logits)
    for frame, anchor, label, gap in gaps:
        expected_grad[frame, anchor, label] = 1.5 * 2 * gap / counts[frame] / 2
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert output.num_representatives.tolist() == counts
    torch.testing.assert_close(scene.logits.grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_the_student_alone(scene, make_config):
    scene.distil(make_config()).loss.backward()
    assert scene.logits.grad.count_nonzero() > 0
    assert scene.student_boxes.grad is None
    assert all(parameter.grad is None for parameter in scene.detector.parameters())


def test_an_empty_frame_halves_the_mean_of_two_and_gets_no_gradient(scene, make_config):
    alone = DensePredictions(scene.logits.detach()[:1], scene.student_boxes.detach()[:1])
    teacher = FrozenTeacher(scene.detector)
    encoded = teacher.encode(None)
    first = DensePredictions(encoded.predictions.cls_logits[:1], encoded.predictions.boxes[:1])
    single = teach(make_config(), alone, scene.sites, teacher, scene_of(scene.sites, first)).loss
    with torch.no_grad():
        scene.logits[1] -= 50.0
    output = scene.distil(make_config())
    output.loss.backward()
    assert output.num_representatives[1] == 0
    assert output.loss.item() == pytest.approx(single.item() / 2, rel=1e-5)
    assert scene.logits.grad[1].count_nonzero() == 0


def test_without_representatives_the_second_stage_is_not_asked(scene, make_config):
    with torch.no_grad():
        scene.logits -= 50.0
    output = scene.distil(make_config())
    output.loss.backward()
    assert scene.detector.asked == []
    assert output.loss.item() == 0.0
    assert output.num_representatives.tolist() == [0, 0]
    assert scene.logits.grad.count_nonzero() == 0


def test_the_second_stage_is_asked_once_at_the_teachers_own_boxes(scene, make_config, slow_representatives):
    config = make_config(score_thresh=0.7)
    scene.distil(config)
    (rois,) = scene.detector.asked
    for frame, samples in enumerate(slow_representatives(scene.predictions, config)):
        anchors = [anchor for anchor, _ in samples]
        assert torch.equal(rois[frame, : len(anchors)], scene.teacher_boxes[frame, anchors])


def test_frames_of_fewer_representatives_are_filled_up_with_one_of_theirs(scene, make_config, slow_representatives):
    with torch.no_grad():
        scene.logits[1, 5:] -= 50.0
    config = make_config()
    scene.distil(config)
    (rois,) = scene.detector.asked
    counts = [len(samples) for samples in slow_representatives(scene.predictions, config)]
    assert 0 < counts[1] < counts[0]
    assert torch.equal(rois[1, counts[1] :], rois[1, :1].expand(counts[0] - counts[1], -1))


def test_probability_space_is_bounded_by_alpha(scene, make_config):
    loss = scene.distil(make_config(space="probability", alpha=0.5)).loss.item()
    assert 0.0 < loss < 0.5 < scene.distil(make_config(alpha=0.5)).loss.item()


def test_a_student_that_is_not_finite_is_named(scene, make_config):
    with torch.no_grad():
        scene.logits[0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="student's class logits"):
        scene.distil(make_config())


def test_a_teacher_that_is_not_finite_is_named(scene, make_config):
    scene.detector.head.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="teacher's second-stage logits.*check the teacher's checkpoint"):
        scene.distil(make_config())


def test_teacher_boxes_that_are_not_finite_are_named_before_the_second_stage_sees_them(scene, make_config):
    scene.teacher_boxes.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="teacher's RoIs"):
        scene.distil(make_config())
    assert scene.detector.asked == []


def test_a_teacher_with_other_anchors_is_refused(scene, make_config, make_sites):
    scene.detector.fixed_sites = make_sites(NUM_ANCHORS, NUM_CLASSES, seed=1)
    with pytest.raises(ConfigError, match="anchor 0"):
        scene.distil(make_config())


def test_a_second_stage_for_other_classes_is_refused(make_sites, make_boxes, make_teacher, make_config):
    scene = Scene(make_sites, make_boxes, make_teacher, num_outputs=2)
    with pytest.raises(ValueError, match=r"1\) or .* 3\), got .* 2\)"):
        scene.distil(make_config())


def test_half_precision_student_gets_a_float32_loss(scene, make_config):
    half = DensePredictions(scene.logits.bfloat16(), scene.student_boxes)
    teacher = FrozenTeacher(scene.detector)
    output = teach(make_config(), half, scene.sites, teacher, teacher.encode(None))
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert scene.logits.grad.isfinite().all()


def test_the_method_has_nothing_to_save():
    assert StudentMotivatedKD(SkdConfig()).state_dict() == {}
