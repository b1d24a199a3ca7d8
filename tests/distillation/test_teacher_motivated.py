"""TKD and TSKD against plain loops: the teacher's own RoIs say where, the student's prediction there is compared."""

from dataclasses import replace

import pytest
import torch
from teaching import scene_of, teach
from torch import nn

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import TeacherRois
from cakdp_ext.distillation import FrozenTeacher
from cakdp_ext.types import DensePredictions

LOW, NAMES, NUM_ROIS = (-4.0, 0.8), ("Car", "Pedestrian", "Cyclist"), 9
OTHER_ORDER = ("Cyclist", "Car", "Pedestrian")
MAPS = {
    "anchors": (((0.8, 0.8), (8, 6), 3, True), ((0.8, 0.8), (8, 6), 3, True)),
    "center student, anchor teacher": (((0.8, 0.8), (8, 6), 1, False), ((0.8, 0.8), (8, 6), 6, True)),
    "finer center student": (((0.4, 0.4), (16, 12), 1, False), ((0.8, 0.8), (8, 6), 6, True)),
    "coarser center student": (((1.6, 1.6), (4, 3), 1, False), ((0.4, 0.4), (16, 12), 2, True)),
    "both center": (((0.8, 0.8), (8, 6), 1, False), ((0.8, 0.8), (8, 6), 1, False)),
    "anchor student, center teacher": (((0.8, 0.8), (8, 6), 2, True), ((0.8, 0.8), (8, 6), 1, False)),
}


class Pair:
    """A student, a teacher and its RoIs: boxes of its first stage, some classes, the last ones of frame 1 padding."""

    def __init__(self, make_map, make_boxes, make_teacher, maps, names=NAMES, num_outputs=1):
        generator = torch.Generator().manual_seed(35)
        self.student, self.teacher = make_map(LOW, *maps[0]), make_map(LOW, *maps[1])
        self.student.sites = replace(self.student.sites, class_names=NAMES)
        self.teacher.sites = replace(self.teacher.sites, class_names=names)
        num_sites, num_theirs = len(self.student.cells), len(self.teacher.cells)
        self.logits = torch.randn(2, num_sites, 3, generator=generator).requires_grad_()
        self.boxes, self.names = make_boxes(2, num_theirs, seed=32), names
        self.boxes[..., :2] = self.teacher.sites.centers + torch.rand(2, num_theirs, 2, generator=generator) * 2 - 1
        self.student_boxes = make_boxes(2, num_sites, seed=33)
        indices = torch.stack([torch.randperm(num_theirs, generator=generator)[:NUM_ROIS] for _ in range(2)])
        valid = torch.arange(NUM_ROIS) < torch.tensor([[NUM_ROIS], [4]])
        rois = torch.take_along_dim(self.boxes, indices[..., None], dim=1) * valid[..., None]
        labels = torch.randint(0, 3, (2, NUM_ROIS), generator=generator)
        kept = indices * valid if self.teacher.sites.anchors is not None else None
        self.detector = make_teacher(self.teacher.sites, self.boxes, num_outputs)
        self.detector.found = TeacherRois(rois, labels, valid, kept)
        self.frozen = FrozenTeacher(self.detector)
        with torch.no_grad():
            predictions = DensePredictions(self.detector.head(self.boxes), self.boxes)
            self.encoded = scene_of(self.teacher.sites, predictions)

    @property
    def predictions(self):
        return DensePredictions(self.logits, self.student_boxes)

    def distil(self, config):
        return teach(config, self.predictions, self.student.sites, self.frozen, self.encoded)

    def slow_index(self, frame, slot, label):
        """Where the student is asked; None beyond its map."""
        found = self.detector.found
        if self.student.sites.anchors is not None and self.teacher.sites.anchors is not None:
            return int(found.indices[frame, slot])
        position = found.rois[frame, slot, :2].tolist()
        held = [site for site in range(len(self.student.cells)) if self.student.holds(site, position)]
        return max(held, key=lambda site: self.logits[frame, site, label].item()) if held else None

    def slow_gaps(self):
        """List, frame by frame, (site, class, gap) of every RoI that lies on the student's map."""
        found, weight, bias = self.detector.found, *(p.detach() for p in self.detector.head.parameters())
        frames = []
        for frame in range(2):
            frames.append([])
            for slot in range(NUM_ROIS):
                if not found.is_valid[frame, slot]:
                    continue
                theirs = int(found.labels[frame, slot])
                label = NAMES.index(self.names[theirs])
                site = self.slow_index(frame, slot, label)
                row = theirs if len(bias) > 1 else 0
                judged = float(found.rois[frame, slot] @ weight[row] + bias[row])
                if site is not None:
                    frames[-1].append((site, label, self.logits[frame, site, label].item() - judged))
        return frames


@pytest.fixture(params=MAPS)
def pair(request, make_map, make_boxes, make_teacher):
    return Pair(make_map, make_boxes, make_teacher, MAPS[request.param])


def slow_loss(pair, alpha):
    gaps = pair.slow_gaps()
    loss, gradient = 0.0, torch.zeros_like(pair.logits)
    for frame, samples in enumerate(gaps):
        for site, label, gap in samples:
            loss += alpha * gap**2 / len(samples) / 2
            gradient[frame, site, label] += alpha * 2 * gap / len(samples) / 2
    return loss, gradient, [len(samples) for samples in gaps]


def assert_follows_the_formula(pair, config):
    expected, gradient, counts = slow_loss(pair, config.methods[0].weight)
    output = pair.distil(config)
    output.loss.backward()
    assert output.num_representatives.tolist() == counts
    assert min(counts) >= 1
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(pair.logits.grad, gradient, rtol=1e-4, atol=1e-5)


def test_loss_and_gradient_follow_the_formula(pair, make_config):
    assert_follows_the_formula(pair, make_config(method="TKD", alpha=1.5))


@pytest.mark.parametrize("num_outputs", [1, 3], ids=["class_agnostic_teacher", "class_wise_teacher"])
@pytest.mark.parametrize("name", MAPS)
def test_classes_meet_by_name_whatever_their_order(make_map, make_boxes, make_teacher, make_config, name, num_outputs):
    pair = Pair(make_map, make_boxes, make_teacher, MAPS[name], OTHER_ORDER, num_outputs)
    assert_follows_the_formula(pair, make_config(method="TKD"))


def test_rois_beyond_the_students_map_are_asked_about_but_not_compared(make_map, make_boxes, make_teacher, make_config):
    maps = MAPS["both center"]
    pair = Pair(make_map, make_boxes, make_teacher, maps)
    pair.detector.found.rois[0, :3, :2] += 100.0
    before = pair.detector.found.rois.clone()
    assert_follows_the_formula(pair, make_config(method="TKD"))
    assert torch.equal(pair.detector.asked[0], before)


def test_the_second_stage_is_asked_once_about_the_rois_as_they_were_proposed(pair, make_config):
    pair.distil(make_config(method="TKD"))
    (asked,) = pair.detector.asked
    assert torch.equal(asked, pair.detector.found.rois)


def test_thresholds_of_the_students_choice_play_no_part(pair, make_config):
    one, two = (pair.distil(make_config(method="TKD", score_thresh=t, nms_thresh=t)).loss for t in (0.0, 0.9))
    assert torch.equal(one, two)


def test_both_ways_together_are_their_sum(pair, make_config):
    losses, gradients, counts = [], [], []
    for method in ("SKD", "TKD", "TSKD"):
        pair.logits.grad = None
        output = pair.distil(make_config(method=method, alpha=0.7))
        output.loss.backward()
        losses.append(output.loss.item())
        gradients.append(pair.logits.grad.clone())
        counts.append(output.num_representatives)
    assert losses[2] == pytest.approx(losses[0] + losses[1], rel=1e-5)
    assert min(losses) > 0
    torch.testing.assert_close(gradients[2], gradients[0] + gradients[1])
    assert torch.equal(counts[2], counts[0] + counts[1])


def test_without_rois_there_is_a_connected_zero(pair, make_config):
    found = pair.detector.found
    pair.detector.found = replace(found, is_valid=torch.zeros_like(found.is_valid))
    output = pair.distil(make_config(method="TKD"))
    output.loss.backward()
    assert pair.detector.asked == []
    assert output.loss.item() == 0.0
    assert pair.logits.grad.count_nonzero() == 0


def test_what_stands_in_padding_does_not_matter(pair, make_config):
    expected = pair.distil(make_config(method="TKD")).loss
    found = pair.detector.found
    pair.detector.found = replace(found, labels=found.labels.where(found.is_valid, 99))
    assert torch.equal(pair.distil(make_config(method="TKD")).loss, expected)


def test_gradient_reaches_the_students_logits_alone(pair, make_config):
    pair.student_boxes.requires_grad_()
    pair.distil(make_config(method="TSKD")).loss.backward()
    assert pair.student_boxes.grad is None
    assert all(parameter.grad is None for parameter in pair.detector.parameters())


def test_probabilities_are_compared_where_the_yaml_says_so(pair, make_config):
    assert 0 < pair.distil(make_config(method="TKD", space="probability")).loss.item() < 1


def test_what_is_not_finite_is_named(pair, make_config):
    with torch.no_grad():
        pair.logits[0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="student's class logits"):
        pair.distil(make_config(method="TKD"))
    with torch.no_grad():
        pair.logits[0, 0, 0] = 0.0
    pair.detector.found.rois[0, 0, 3] = float("inf")
    with pytest.raises(FloatingPointError, match="teacher's RoIs"):
        pair.distil(make_config(method="TKD"))
    assert pair.detector.asked == []


class Silent(nn.Module):
    """Judges boxes, and proposes none."""

    def __init__(self, sites):
        super().__init__()
        self.sites = sites

    def encode(self, batch):
        raise NotImplementedError

    def refine(self, encoded, rois):
        raise NotImplementedError


@pytest.mark.parametrize("method", ["TKD", "TSKD"])
def test_a_teacher_that_proposes_nothing_can_teach_the_students_way_only(pair, make_config, method):
    pair.frozen = FrozenTeacher(Silent(pair.teacher.sites))
    if method == "TSKD":
        with torch.no_grad():
            pair.logits -= 50.0
    with pytest.raises(ConfigError, match="Silent has no propose.*METHOD SKD"):
        pair.distil(make_config(method=method))


def test_anchors_that_are_not_on_record_are_an_error(make_map, make_boxes, make_teacher, make_config):
    pair = Pair(make_map, make_boxes, make_teacher, MAPS["anchors"])
    pair.detector.found = replace(pair.detector.found, indices=None)
    with pytest.raises(ConfigError, match="does not say which of them its RoIs come from"):
        pair.distil(make_config(method="TKD"))
