"""VanillaKD against plain loops over its formula."""

import math
from dataclasses import replace

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import EncodedScene
from cakdp_ext.distillation import Distiller, FrozenTeacher, Lesson, SecondStage, soft_target_loss
from cakdp_ext.taps import BoxCodes, Taps
from cakdp_ext.types import DensePredictions, Role

LOW, NAMES, OTHER_ORDER = (-4.0, 0.8), ("Car", "Pedestrian", "Cyclist"), ("Cyclist", "Car", "Pedestrian")
MAPS = {
    "anchors": (((0.8, 0.8), (8, 6), 3, True), ((0.8, 0.8), (8, 6), 3, True)),
    "centers": (((0.8, 0.8), (8, 6), 1, False), ((0.8, 0.8), (8, 6), 1, False)),
    "finer teacher": (((0.8, 0.8), (8, 6), 1, False), ((0.4, 0.4), (16, 12), 1, False)),
    "coarser teacher": (((0.4, 0.4), (8, 6), 1, False), ((0.8, 0.8), (4, 3), 1, False)),
}
SAME = ("anchors", "centers")


class Pair:
    """Raw predictions of a student and a teacher, two frames; the teacher lists the classes in another order."""

    def __init__(self, make_map, make_teacher, maps, parts=1):
        generator = torch.Generator().manual_seed(5)
        self.maps = make_map(LOW, *maps[0]), make_map(LOW, *maps[1])
        self.is_anchor = maps[0][3]
        self.sites = [
            replace(each.sites, class_names=names, stride=round(10 * each.size[0]))
            for each, names in zip(self.maps, (NAMES, OTHER_ORDER), strict=True)
        ]
        counts, width = [len(each.cells) for each in self.maps], 7 if self.is_anchor else 8
        self.logits = [3 * torch.randn(2, count, 3, generator=generator) - 2 for count in counts]
        self.codes = [torch.randn(2, count, parts, width, generator=generator) for count in counts]
        self.parts = ((NAMES,), (OTHER_ORDER,)) if parts == 1 else ((("Car",), NAMES[1:]), (NAMES[1:], ("Car",)))
        self.logits[0].requires_grad_()
        self.codes[0].requires_grad_()
        self.detector = make_teacher(self.sites[1], torch.zeros(2, counts[1], 7))

    def shown(self, side):
        boxes = torch.zeros(*self.logits[side].shape[:2], 7)
        codes = BoxCodes(self.codes[side], self.parts[side])
        given = {Role.DENSE: DensePredictions(self.logits[side], boxes), Role.BOXES: codes}
        return Taps(self.sites[side], given)

    def distil(self, config):
        teacher = FrozenTeacher(self.detector)
        distiller = Distiller(config, teacher)
        for method in distiller.each.values():
            method.check(*self.sites)
        shown = self.shown(1)
        return distiller.compare(Lesson(None, self.shown(0), shown, SecondStage(teacher, EncodedScene(shown)))).loss

    def target(self, candidates, frame, site, name):
        theirs = [self.logits[1][frame, cell, OTHER_ORDER.index(name)].item() for cell in candidates[site]]
        return max(theirs)

    def targets(self, slow_candidates):
        sites = range(len(self.maps[0].cells))
        candidates = [[site] for site in sites] if self.is_anchor else slow_candidates(*self.maps)
        return [[[self.target(candidates, frame, site, n) for n in NAMES] for site in sites] for frame in range(2)]


@pytest.fixture(params=MAPS)
def pair(request, make_map, make_teacher):
    return Pair(make_map, make_teacher, MAPS[request.param])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def divergence(student, teacher, temperature):
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    return temperature**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


def slow_loss(logits, targets, temperature, threshold):
    total, found = 0.0, 0
    for ours, theirs in zip(logits.tolist(), targets, strict=True):
        found += sum(sigmoid(max(row)) > threshold for row in theirs)
        total += sum(
            divergence(s, t, temperature) for a, b in zip(ours, theirs, strict=True) for s, t in zip(a, b, strict=True)
        )
    return total / max(found, 1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_follows_the_formula(pair, make_config, slow_candidates, temperature):
    config = make_config(method="VanillaKD", temperature=temperature, alpha=0.5, positive_thresh=0.3)
    expected = slow_loss(pair.logits[0].detach(), pair.targets(slow_candidates), temperature, 0.3)
    assert pair.distil(config).item() == pytest.approx(0.5 * expected, rel=1e-4)


def test_gradient_is_that_of_the_cross_entropy_and_reaches_the_student_alone(pair, make_config, slow_candidates):
    pair.logits[1].requires_grad_()
    pair.distil(make_config(method="VanillaKD", temperature=2.0, positive_thresh=0.3)).backward()
    targets = torch.tensor(pair.targets(slow_candidates))
    found = (targets.amax(dim=2).sigmoid() > 0.3).sum()
    gaps = (pair.logits[0].detach() / 2).sigmoid() - (targets / 2).sigmoid()
    torch.testing.assert_close(pair.logits[0].grad, 2 * gaps / found, rtol=1e-4, atol=1e-7)
    assert pair.logits[1].grad is None
    assert pair.codes[0].grad is None
    assert all(parameter.grad is None for parameter in pair.detector.parameters())


def test_nothing_found_divides_by_one(pair, make_config, slow_candidates):
    config = make_config(method="VanillaKD", temperature=1.0, positive_thresh=0.9999)
    expected = slow_loss(pair.logits[0].detach(), pair.targets(slow_candidates), 1.0, 0.9999)
    assert pair.distil(config).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", SAME)
def test_a_student_that_says_what_the_teacher_says_has_no_loss(make_map, make_teacher, make_config, name, parts):
    pair = Pair(make_map, make_teacher, MAPS[name], parts)
    pair.logits[1] = pair.logits[0].detach()[:, :, [NAMES.index(name) for name in OTHER_ORDER]]
    pair.codes[1] = pair.codes[0].detach().flip(2)
    loss = pair.distil(make_config(method="VanillaKD", box_weight=1.0))
    assert loss.item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert pair.logits[0].grad.abs().max() < 1e-6
    assert pair.codes[0].grad.abs().max() == 0


def slow_boxes(pair, threshold):
    """The boxes' term: smooth L1, weighted with the best score of the part's classes."""
    total, found = 0.0, 0
    for frame in range(2):
        best = [[pair.logits[1][frame, site, OTHER_ORDER.index(n)].sigmoid().item() for n in NAMES]
                for site in range(len(pair.maps[0].cells))]  # fmt: skip
        found += sum(max(row) > threshold for row in best)
        for site, row in enumerate(best):
            for number, part in enumerate(pair.parts[0]):
                score = max(row[NAMES.index(name)] for name in part)
                ours = pair.codes[0][frame, site, number].tolist()
                theirs = pair.codes[1][frame, site, pair.parts[1].index(part) if len(pair.parts[0]) > 1 else 0].tolist()
                gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
                if pair.is_anchor:
                    gaps[6] = math.sin(gaps[6])
                smooth = sum(gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5 for gap in gaps)
                total += score * smooth if score > threshold else 0.0
    return total / max(found, 1)


@pytest.mark.parametrize(("name", "parts"), [("anchors", 1), ("centers", 1), ("centers", 2)])
def test_boxes_join_where_they_are_asked_for(make_map, make_teacher, make_config, name, parts):
    pair = Pair(make_map, make_teacher, MAPS[name], parts)
    keys = {"method": "VanillaKD", "positive_thresh": 0.3}
    plain, more = pair.distil(make_config(**keys)), pair.distil(make_config(**keys, box_weight=0.7))
    assert (more - plain).item() == pytest.approx(0.7 * slow_boxes(pair, 0.3), rel=1e-3)
    more.backward()
    assert pair.codes[0].grad.count_nonzero() > 0


def test_heads_of_two_kinds_or_parts_are_refused(make_map, make_teacher, make_config):
    mixed = Pair(make_map, make_teacher, (MAPS["anchors"][0], MAPS["centers"][1]))
    with pytest.raises(ConfigError, match="the student has an anchor head, the teacher a center head"):
        mixed.distil(make_config(method="VanillaKD"))
    finer = Pair(make_map, make_teacher, MAPS["finer teacher"])
    with pytest.raises(ConfigError, match="the student's map has stride 8, the teacher's 4"):
        finer.distil(make_config(method="VanillaKD", box_weight=1.0))
    parted = Pair(make_map, make_teacher, MAPS["centers"], 2)
    parted.parts = ((NAMES[:2], ("Cyclist",)), parted.parts[1])
    with pytest.raises(ConfigError, match=r"CLASS_NAMES_EACH_HEAD, or make BOX_WEIGHT 0"):
        parted.distil(make_config(method="VanillaKD", box_weight=1.0))
    larger = Pair(make_map, make_teacher, (MAPS["anchors"][0], ((0.8, 0.8), (8, 5), 3, True)))
    with pytest.raises(ConfigError, match=r"number of anchors \(student 144, teacher 120\)"):
        larger.distil(make_config(method="VanillaKD"))


def test_a_teacher_that_is_not_finite_is_named(pair, make_config):
    pair.logits[1].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="of the teacher's class logits are NaN"):
        pair.distil(make_config(method="VanillaKD"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "TEMPERATURE must be a finite number above 0, got 0"),
        ({"box_weight": -1.0}, "BOX_WEIGHT must be a finite number"),
        ({"positive_thresh": 1.0}, r"POSITIVE_THRESH must lie in \[0, 1\)"),
        ({"temperatur": 1.0}, "unknown key TEMPERATUR .* TEMPERATURE, BOX_WEIGHT, POSITIVE_THRESH"),
    ],
)
def test_keys_that_make_no_sense_are_refused(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(method="VanillaKD", **changes)


def test_half_precision_and_far_logits_stay_finite():
    student = torch.tensor([80.0, -80.0, 0.0]).bfloat16().requires_grad_()
    loss = soft_target_loss(student, torch.tensor([-80.0, 80.0, 0.0]), 1.0)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([80.0, 80.0, 0.0], rel=1e-3)
