"""SparseKD against plain loops over its formulas, and the objects that it adds."""

import math
from dataclasses import replace

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import EncodedScene
from cakdp_ext.distillation import Distiller, FrozenTeacher, Lesson, SecondStage
from cakdp_ext.taps import BoxCodes, Taps
from cakdp_ext.types import Batch, DensePredictions, Role

LOW, NAMES, OTHER_ORDER = (-4.0, 0.8), ("Car", "Pedestrian", "Cyclist"), ("Cyclist", "Car", "Pedestrian")
MAPS = {
    "anchors": (((0.8, 0.8), (8, 6), 3, True), ((0.8, 0.8), (8, 6), 3, True), 1),
    "centers": (((0.8, 0.8), (8, 6), 1, False), ((0.8, 0.8), (8, 6), 1, False), 1),
    "two parts": (((0.8, 0.8), (8, 6), 1, False), ((0.8, 0.8), (8, 6), 1, False), 2),
    "finer teacher": (((0.8, 0.8), (8, 6), 1, False), ((0.4, 0.4), (16, 12), 1, False), 1),
}
PIVOTS = {
    "confidence": {"pivot": "confidence", "pivot_thresh": 0.6},
    "rank": {"pivot": "rank", "pivot_count": 7},
    "gaussian": {"pivot": "gaussian", "labels": False},
}


class Pair:
    """What a student and a teacher say of two frames with objects; the teacher lists the classes in another order."""

    def __init__(self, make_map, make_boxes, make_teacher, student, teacher, parts):
        generator = torch.Generator().manual_seed(31)
        self.maps = make_map(LOW, *student), make_map(LOW, *teacher)
        self.is_anchor = student[3]
        self.sites = [
            replace(each.sites, class_names=names, stride=round(10 * each.size[0]))
            for each, names in zip(self.maps, (NAMES, OTHER_ORDER), strict=True)
        ]
        counts, width = [len(each.cells) for each in self.maps], 7 if self.is_anchor else 8
        self.logits = [2 * torch.randn(2, count, 3, generator=generator) - 1 for count in counts]
        self.codes = [torch.randn(2, count, parts, width, generator=generator) for count in counts]
        self.parts = ((NAMES,), (OTHER_ORDER,)) if parts == 1 else ((("Car",), NAMES[1:]), (NAMES[1:], ("Car",)))
        self.boxes = make_boxes(2, counts[1], seed=33, spread=5.0)
        self.boxes[..., :2] += self.sites[1].centers
        self.logits[0].requires_grad_()
        self.codes[0].requires_grad_()
        self.detector = make_teacher(self.sites[1], torch.zeros(2, counts[1], 7))
        self.objects = make_boxes(2, 3, seed=34, spread=4.0)
        self.objects[..., 1] += 3
        self.labels = torch.tensor([[0, 2, 0], [1, -1, -1]])

    @property
    def batch(self):
        boxes = self.objects.where(self.labels[..., None] >= 0, 0)
        nothing = torch.zeros(0)
        return Batch(2, nothing, nothing, nothing, boxes, self.labels, ("a", "b"))

    def shown(self, side):
        boxes = torch.zeros(*self.logits[0].shape[:2], 7) if side == 0 else self.boxes
        codes = BoxCodes(self.codes[side], self.parts[side])
        return Taps(self.sites[side], {Role.DENSE: DensePredictions(self.logits[side], boxes), Role.BOXES: codes})

    def distiller(self, config):
        distiller = Distiller(config, FrozenTeacher(self.detector))
        distiller.each["SparseKD"].check(*self.sites)
        return distiller

    def distil(self, config):
        distiller, shown = self.distiller(config), self.shown(1)
        stage = SecondStage(distiller.teacher, EncodedScene(shown))
        return distiller.compare(Lesson(self.batch, self.shown(0), shown, stage))

    def targets(self, config):
        return self.distiller(config).targets(self.batch, EncodedScene(self.shown(1)), self.sites[0])

    def scores(self, slow_candidates):
        """The teacher's scores at the student's places, in the student's order."""
        sites = range(len(self.maps[0].cells))
        candidates = [[site] for site in sites] if self.is_anchor else slow_candidates(*self.maps)
        return [[[max(sigmoid(self.logits[1][frame, cell, OTHER_ORDER.index(name)].item()) for cell in candidates[site])
                  for name in NAMES] for site in sites] for frame in range(2)]  # fmt: skip


@pytest.fixture(params=MAPS)
def pair(request, make_map, make_boxes, make_teacher):
    return Pair(make_map, make_boxes, make_teacher, *MAPS[request.param])


@pytest.fixture
def box_weight(pair):
    return 0.0 if pair.sites[0].stride != pair.sites[1].stride else 0.3


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_weights(pair, frame, scores, pivot):
    """How much each place and class counts."""
    weights = [[0.0] * 3 for _ in scores]
    if pivot == "confidence":
        return [[float(score > 0.6) for score in row] for row in scores]
    if pivot == "rank":
        for site in sorted(range(len(scores)), key=lambda site: -max(scores[site]))[:7]:
            weights[site][scores[site].index(max(scores[site]))] = 1.0
        return weights
    for box, label in zip(pair.objects[frame].tolist(), pair.labels[frame].tolist(), strict=True):
        for site, (x, y) in enumerate(pair.sites[0].centers.tolist()):
            u = (x - box[0]) * math.cos(box[6]) + (y - box[1]) * math.sin(box[6])
            v = (y - box[1]) * math.cos(box[6]) - (x - box[0]) * math.sin(box[6])
            peak = math.exp(-((u / max(box[3] / 4, 0.4)) ** 2 + (v / max(box[4] / 4, 0.4)) ** 2) / 2)
            if label >= 0:
                weights[site][label] = max(weights[site][label], peak)
    return weights


def slow_loss(pair, all_scores, pivot, box_weight):
    total = 0.0
    for frame, scores in enumerate(all_scores):
        weights = slow_weights(pair, frame, scores, pivot)
        terms, divisor = 0.0, 0.0
        for site, row in enumerate(weights):
            divisor += max(row)
            ours = [sigmoid(value) for value in pair.logits[0][frame, site].tolist()]
            terms += 10 * max(row) * sum((a - b) ** 2 for a, b in zip(ours, scores[site], strict=True))
            for number, names in enumerate(pair.parts[0] if box_weight else ()):
                theirs = number if len(pair.parts[0]) == 1 else 1 - number
                gaps = (pair.codes[0][frame, site, number] - pair.codes[1][frame, site, theirs]).tolist()
                if pair.is_anchor:
                    gaps[6] = math.sin(gaps[6])
                smooth = sum(gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5 for gap in gaps)
                terms += box_weight * max(row[NAMES.index(name)] for name in names) * smooth
        total += terms / max(divisor, 1) / len(all_scores)
    return total


@pytest.mark.parametrize("pivot", PIVOTS)
def test_logits_at_pivotal_positions_follow_the_formula(pair, make_config, slow_candidates, pivot, box_weight):
    config = make_config(method="SparseKD", alpha=0.5, box_weight=box_weight, **PIVOTS[pivot])
    taught = pair.distil(config)
    expected = slow_loss(pair, pair.scores(slow_candidates), pivot, box_weight)
    assert taught.loss.item() == pytest.approx(0.5 * expected, rel=1e-4)
    counts = {"gaussian": None, "rank": [7, 7]}
    if pivot in counts:
        assert (None if taught.num_representatives is None else taught.num_representatives.tolist()) == counts[pivot]


@pytest.mark.parametrize("pivot", PIVOTS)
def test_gradients_reach_the_student_alone_and_pivots_only(pair, make_config, slow_candidates, pivot):
    pair.logits[1].requires_grad_()
    pair.distil(make_config(method="SparseKD", box_weight=0, **PIVOTS[pivot])).loss.backward()
    for frame, scores in enumerate(pair.scores(slow_candidates)):
        is_pivot = [max(row) > 0 for row in slow_weights(pair, frame, scores, pivot)]
        assert (pair.logits[0].grad[frame].abs().amax(dim=1) > 0).tolist() == is_pivot
    assert pair.logits[1].grad is None
    assert pair.codes[0].grad is None
    assert all(parameter.grad is None for parameter in pair.detector.parameters())


@pytest.mark.parametrize("pivot", PIVOTS)
@pytest.mark.parametrize("name", ["anchors", "two parts"])
def test_a_student_that_says_what_the_teacher_says_has_no_loss(
    make_map, make_boxes, make_teacher, make_config, name, pivot
):
    pair = Pair(make_map, make_boxes, make_teacher, *MAPS[name])
    pair.logits[1] = pair.logits[0].detach()[:, :, [NAMES.index(n) for n in OTHER_ORDER]]
    pair.codes[1] = pair.codes[0].detach().flip(2)
    loss = pair.distil(make_config(method="SparseKD", **PIVOTS[pivot])).loss
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert pair.logits[0].grad.abs().max() < 1e-6


def test_nothing_pivotal_is_no_loss_but_a_connected_one(pair, make_config):
    loss = pair.distil(make_config(method="SparseKD", pivot_thresh=0.9999, box_weight=0)).loss
    assert loss.item() == 0
    loss.backward()
    assert pair.logits[0].grad.abs().max() == 0
    pair.logits[0].grad = None
    loss = pair.distil(make_config(method="SparseKD", pivot="none")).loss
    assert loss.item() == 0
    loss.backward()
    assert pair.logits[0].grad.abs().max() == 0


def test_confident_detections_of_the_teacher_join_the_objects(pair, make_config, slow_nms):
    keys = {"label_thresh": 0.7, "label_nms_thresh": 0.2, "box_weight": 0}
    found = pair.targets(make_config(method="SparseKD", **keys))
    for frame in range(2):
        scores = [[sigmoid(value) for value in row] for row in pair.logits[1][frame].tolist()]
        best = [max(row) for row in scores]
        sure = [cell for cell, score in enumerate(best) if score > 0.7]
        kept = slow_nms(pair.boxes[frame].tolist(), best, sure, 0.2)
        real = pair.labels[frame] >= 0
        wanted = torch.cat([pair.objects[frame][real], pair.boxes[frame, kept]])
        labels = pair.labels[frame][real].tolist()
        labels += [NAMES.index(OTHER_ORDER[scores[cell].index(best[cell])]) for cell in kept]
        assert len(kept) > 2
        assert torch.equal(found.gt_boxes[frame, : len(wanted)], wanted)
        assert found.gt_labels[frame].tolist() == labels + [-1] * (found.gt_labels.shape[1] - len(labels))
        assert found.gt_boxes[frame, len(wanted) :].count_nonzero() == 0
    most = (found.gt_labels >= 0).sum(dim=1).max()
    assert found.gt_labels.shape[1] == most
    assert pair.batch.gt_boxes.shape[1] == 3, "the data set's own stay as they are"


def test_without_confident_detections_the_objects_stay(pair, make_config):
    found = pair.targets(make_config(method="SparseKD", label_thresh=0.9999, box_weight=0))
    assert torch.equal(found.gt_boxes, pair.batch.gt_boxes)
    assert torch.equal(found.gt_labels, pair.labels)
    off = pair.distiller(make_config(method="SparseKD", labels=False, box_weight=0))
    batch = pair.batch
    assert off.targets(batch, EncodedScene(pair.shown(1)), pair.sites[0]) is batch


def test_gaussians_stand_around_the_teachers_objects_too(pair, make_config):
    config = make_config(method="SparseKD", pivot="gaussian", label_thresh=0.7, box_weight=0)
    grown = pair.targets(config)
    loss = pair.distil(config).loss.item()
    pair.objects, pair.labels = grown.gt_boxes, grown.gt_labels
    alone = pair.distil(make_config(method="SparseKD", pivot="gaussian", labels=False, box_weight=0)).loss.item()
    assert loss == pytest.approx(alone, rel=1e-6)


def test_frames_without_objects_have_no_gaussians(pair, make_config):
    pair.labels = torch.full((2, 3), -1)
    loss = pair.distil(make_config(method="SparseKD", box_weight=0, **PIVOTS["gaussian"])).loss
    assert loss.item() == 0


@pytest.mark.parametrize(("choice", "wanted"), [("largest", "largest"), ("first", "first"), ("none", None)])
def test_the_method_says_where_the_first_weights_come_from(pair, make_config, choice, wanted):
    keys = {"method": ["SKD", {"NAME": "SparseKD", "TEACHER_WEIGHTS": choice, "BOX_WEIGHT": 0.0}]}
    distiller = Distiller(make_config(**keys), _two_stages(pair))
    assert distiller.inherits == wanted


def _two_stages(pair):
    return FrozenTeacher(pair.detector)


def test_heads_that_do_not_fit_are_refused(make_map, make_boxes, make_teacher, make_config):
    mixed = Pair(make_map, make_boxes, make_teacher, MAPS["anchors"][0], MAPS["centers"][1], 1)
    with pytest.raises(ConfigError, match="SparseKD compares heads of one kind"):
        mixed.distil(make_config(method="SparseKD"))
    assert mixed.distil(make_config(method="SparseKD", pivot="none")).loss.item() == 0
    mixed.sites[1] = replace(mixed.sites[1], class_names=("Car", "Van", "Cyclist"))
    with pytest.raises(ConfigError, match="the teacher does not know Pedestrian"):
        mixed.distil(make_config(method="SparseKD", pivot="none"))
    mixed.sites[1] = replace(mixed.sites[1], class_names=())
    with pytest.raises(ConfigError, match="LABELS: True needs heads that tell the classes apart"):
        mixed.distil(make_config(method="SparseKD", pivot="none"))


def test_a_teacher_that_is_not_finite_is_named(pair, make_config):
    pair.logits[1].fill_(float("nan"))
    for act in (pair.distil, pair.targets):
        with pytest.raises(FloatingPointError, match="of the teacher's class logits are NaN"):
            act(make_config(method="SparseKD", box_weight=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pivot": "centre"}, "PIVOT must be one of confidence, rank, gaussian, none, got 'centre'"),
        ({"pivot_count": 0}, "PIVOT_COUNT must be a whole number of at least 1, got 0"),
        ({"labels": "gt"}, "LABELS must be True or False, got 'gt'"),
        ({"label_thresh": 1.0}, r"LABEL_THRESH must lie in \[0, 1\), got 1.0"),
        ({"class_weight": -1.0}, "CLASS_WEIGHT must be a finite number"),
        ({"teacher_weights": "l1"}, "TEACHER_WEIGHTS must be one of largest, first, none"),
        ({"pivot": "none", "labels": False, "teacher_weights": "none"}, "leave nothing of SparseKD"),
        ({"label": True}, "unknown key LABEL .* LABELS, LABEL_THRESH"),
    ],
)
def test_keys_that_make_no_sense_are_refused(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(method="SparseKD", **changes)
