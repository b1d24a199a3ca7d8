"""Student and teacher list the same classes, and the same anchors of a cell, each in its own order."""

from dataclasses import replace

import pytest
import torch
from teaching import scene_of, teach

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import TeacherRois
from cakdp_ext.distillation import FrozenTeacher, class_order, match_sites, to_student, to_teacher
from cakdp_ext.types import DensePredictions, PredictionSites

OURS, THEIRS = ("Car", "Pedestrian", "Cyclist"), ("Cyclist", "Car", "Pedestrian")
PLACES = [2, 0, 1, 3]
"""Where the teacher has the anchors of a student's cell."""


def sites_of(names, places=(0, 1, 2, 3), cells=6):
    """Four anchors a cell, along y."""
    kinds = torch.tensor([[3.9, 1.6, 1.5, 0.0], [3.9, 1.6, 1.5, 1.57], [0.8, 0.6, 1.7, 0.0], [1.7, 0.6, 1.7, 0.0]])
    ordered = torch.empty(4, 4)
    ordered[list(places)] = kinds
    rows = [[0.4, 0.8 * cell, -1.0, *kind] for cell in range(cells) for kind in ordered.tolist()]
    anchors = torch.tensor(rows)
    return PredictionSites(anchors[:, :2], anchors, 8, len(names), names)


def test_labels_go_there_and_back():
    order = class_order(sites_of(OURS), sites_of(THEIRS))
    labels = torch.tensor([[0, 1, 2, 2]])
    assert [THEIRS[i] for i in to_teacher(labels, order)[0]] == [OURS[i] for i in labels[0]]
    assert torch.equal(to_student(to_teacher(labels, order), order), labels)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (("Car", "Pedestrian", "Van"), "the teacher does not know Cyclist; the student does not know Van"),
        (("Car", "Pedestrian"), "the teacher does not know Cyclist: .*in any order"),
        ((*OURS, "Van"), "the student does not know Van"),
    ],
)
@pytest.mark.parametrize("has_anchors", [True, False])
def test_a_class_that_only_one_knows_is_an_error(theirs, message, has_anchors):
    student, teacher = sites_of(OURS), replace(sites_of(OURS), class_names=theirs)
    if not has_anchors:
        teacher = replace(teacher, anchors=None)
    with pytest.raises(ConfigError, match=message):
        match_sites(student, teacher)


def test_heads_without_names_go_by_number():
    student, teacher = replace(sites_of(OURS), class_names=()), sites_of(THEIRS)
    assert class_order(student, teacher) == (0, 1, 2)
    with pytest.raises(ConfigError, match="tells 3 classes apart, the teacher 1"):
        class_order(student, replace(teacher, class_names=(), num_classes=1))


def test_the_same_anchors_in_another_order_answer_for_each_other():
    student, teacher = sites_of(OURS), sites_of(THEIRS, PLACES)
    match = match_sites(student, teacher)
    found = match.teacher_indices(torch.arange(24)[None], torch.zeros(1, 24, 3))[0]
    torch.testing.assert_close(teacher.anchors[found], student.anchors)
    assert found[:5].tolist() == [2, 0, 1, 3, 6]


def test_anchors_that_are_others_in_one_cell_are_refused():
    teacher = sites_of(THEIRS, PLACES)
    teacher.anchors[9, 3] += 0.5
    with pytest.raises(ConfigError, match="anchors of student and teacher must be the same"):
        match_sites(sites_of(OURS), teacher)


@pytest.mark.parametrize("method", ["SKD", "TKD"])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_a_teacher_in_another_order_teaches_the_same(make_config, make_boxes, make_teacher, method, num_outputs):
    """Reordering the teacher's anchors, classes and class-wise answers together must change nothing."""
    generator = torch.Generator().manual_seed(4)
    logits, boxes = torch.randn(2, 24, 3, generator=generator), make_boxes(2, 24, seed=5)
    row = torch.tensor([4 * cell + place for cell in range(6) for place in PLACES])  # ours -> theirs
    class_row = torch.tensor([THEIRS.index(name) for name in OURS])
    chosen = torch.tensor([[3, 9, 20], [1, 2, 11]])
    labels = torch.tensor([[0, 1, 2], [2, 2, 0]])
    losses = []
    for sites, move, rename in (
        (sites_of(OURS), torch.arange(24), torch.arange(3)),
        (sites_of(THEIRS, PLACES), row, class_row),
    ):
        theirs, answers = torch.empty_like(boxes), make_teacher(sites, boxes, num_outputs)
        theirs[:, move] = boxes
        if num_outputs == 3:
            weight, bias = (parameter.detach().clone() for parameter in answers.head.parameters())
            answers.head.weight.data[rename], answers.head.bias.data[rename] = weight, bias
        rois = torch.take_along_dim(boxes, chosen[..., None], dim=1)
        answers.found = TeacherRois(rois, rename[labels], torch.ones_like(chosen, dtype=torch.bool), move[chosen])
        teacher = FrozenTeacher(answers)
        encoded = scene_of(sites, DensePredictions(torch.zeros(2, 24, 3), theirs))
        config = make_config(method=method)
        losses.append(teach(config, DensePredictions(logits, boxes), sites_of(OURS), teacher, encoded).loss)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert losses[0].item() > 0.1
