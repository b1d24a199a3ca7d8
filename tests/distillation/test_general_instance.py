"""GID against plain loops over its formulas."""

import math
from dataclasses import replace

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import EncodedScene
from cakdp_ext.distillation import Distiller, FrozenTeacher, Lesson, SecondStage
from cakdp_ext.taps import BevFeatures, BoxCodes, Taps
from cakdp_ext.types import DensePredictions, Role

LOW, NAMES, OTHER_ORDER = (-4.0, 0.8), ("Car", "Pedestrian", "Cyclist"), ("Cyclist", "Car", "Pedestrian")
MAPS = {
    "anchors": (((0.8, 0.8), (8, 6), 3, True), ((0.8, 0.8), (8, 6), 3, True)),
    "centers": (((0.8, 0.8), (8, 6), 1, False), ((0.8, 0.8), (8, 6), 1, False)),
    "finer teacher": (((0.8, 0.8), (8, 6), 1, False), ((0.4, 0.4), (16, 12), 1, False)),
}
WITHOUT = {"method": "GID", "feature_weight": 0, "relation_weight": 0, "response_weight": 0}
KEYS = {"num_instances": 4, "instance_nms_thresh": 0.2, "roi_grid": 3, "instance_iou": 0.1}


class Pair:
    """What a student and a teacher show of two frames; the teacher lists the classes in another order."""

    def __init__(self, make_map, make_boxes, make_teacher, maps, channels=(5, 7), parts=1):
        generator = torch.Generator().manual_seed(11)
        self.maps = make_map(LOW, *maps[0]), make_map(LOW, *maps[1])
        self.is_anchor = maps[0][3]
        self.sites = [
            replace(each.sites, class_names=names, stride=round(10 * each.size[0]))
            for each, names in zip(self.maps, (NAMES, OTHER_ORDER), strict=True)
        ]
        counts, width = [len(each.cells) for each in self.maps], 7 if self.is_anchor else 8
        self.logits = [2 * torch.randn(2, count, 3, generator=generator) - 1 for count in counts]
        self.boxes = [make_boxes(2, count, seed=12 + count, spread=5.0) for count in counts]
        for boxes, sites in zip(self.boxes, self.sites, strict=True):
            boxes[..., :2] += sites.centers
        self.bev = [
            torch.randn(2, c, each.shape[1], each.shape[0], generator=generator)
            for c, each in zip(channels, self.maps, strict=True)
        ]
        self.codes = [torch.randn(2, count, parts, width, generator=generator) for count in counts]
        self.parts = ((NAMES,), (OTHER_ORDER,)) if parts == 1 else ((("Car",), NAMES[1:]), (NAMES[1:], ("Car",)))
        for values in (self.logits[0], self.bev[0], self.codes[0]):
            values.requires_grad_()
        self.detector = make_teacher(self.sites[1], torch.zeros(2, counts[1], 7))

    def shown(self, side):
        given = {
            Role.DENSE: DensePredictions(self.logits[side], self.boxes[side]),
            Role.BEV: BevFeatures(self.bev[side], self.bev[side]),
            Role.BOXES: BoxCodes(self.codes[side], self.parts[side]),
        }
        return Taps(self.sites[side], given)

    def distil(self, config):
        """Give what one step of the method gives, and the weights of its adaption."""
        teacher = FrozenTeacher(self.detector)
        distiller = Distiller(config, teacher)
        method = distiller.each["GID"]
        method.check(*self.sites)
        torch.manual_seed(4)
        method.adapt(self.shown(0), self.shown(1))
        shown = self.shown(1)
        taught = distiller.compare(Lesson(None, self.shown(0), shown, SecondStage(teacher, EncodedScene(shown))))
        return taught, dict(method.named_parameters())

    def rows(self, candidates, site):
        return [site] if self.is_anchor else candidates[site]

    def target(self, candidates, frame, site):
        """The teacher's logits at a place of the student, in the student's order."""
        cells = self.rows(candidates, site)
        return [max(self.logits[1][frame, cell, OTHER_ORDER.index(n)].item() for cell in cells) for n in NAMES]

    def instances(self, candidates, frame, slow_nms, most, threshold):
        """Equations 1 to 3 in plain Python: place, class and box of each."""
        differences, labels, boxes = [], [], []
        for site in range(len(self.maps[0].cells)):
            ours = [sigmoid(v) for v in self.logits[0][frame, site].tolist()]
            theirs = [sigmoid(v) for v in self.target(candidates, frame, site)]
            gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
            best = max(self.rows(candidates, site), key=lambda cell: self.logits[1][frame, cell].max().item())
            differences.append(max(gaps))
            labels.append(gaps.index(max(gaps)))
            boxes.append(
                (self.boxes[1][frame, best] if max(theirs) > max(ours) else self.boxes[0][frame, site]).tolist()
            )
        kept = slow_nms(boxes, differences, range(len(boxes)), threshold)[:most]
        return [(site, labels[site], boxes[site]) for site in kept]


@pytest.fixture(params=MAPS)
def pair(request, make_map, make_boxes, make_teacher):
    return Pair(make_map, make_boxes, make_teacher, MAPS[request.param])


@pytest.fixture
def find(slow_candidates, slow_nms):
    def instances(pair, frame):
        candidates = None if pair.is_anchor else slow_candidates(*pair.maps)
        return pair.instances(candidates, frame, slow_nms, 4, 0.2)

    return instances


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_sample(bev, grid_map, box, size):
    """Read a map at the points of a box, cell by cell."""
    found = []
    for i in range(size):
        for j in range(size):
            u, v = ((i + 0.5) / size - 0.5) * box[3], ((j + 0.5) / size - 0.5) * box[4]
            x = box[0] + u * math.cos(box[6]) - v * math.sin(box[6])
            y = box[1] + u * math.sin(box[6]) + v * math.cos(box[6])
            column, row = (x - grid_map.low[0]) / grid_map.size[0] - 0.5, (y - grid_map.low[1]) / grid_map.size[1] - 0.5
            value = torch.zeros(len(bev))
            for c in (math.floor(column), math.floor(column) + 1):
                for r in (math.floor(row), math.floor(row) + 1):
                    if 0 <= c < grid_map.shape[0] and 0 <= r < grid_map.shape[1]:
                        value = value + (1 - abs(column - c)) * (1 - abs(row - r)) * bev[:, r, c]
            found.append(value)
    return found


def slow_features(pair, found, adaption):
    """Features of both sides for the instances of both frames."""
    both = [[], []]
    for frame, instances in enumerate(found):
        for side in (0, 1):
            rows = []
            for _, _, box in instances:
                points = slow_sample(pair.bev[side][frame].detach(), pair.maps[side], box, 3)
                if side == 0 and adaption:
                    points = [adaption["adaption.mix.weight"] @ p + adaption["adaption.mix.bias"] for p in points]
                rows.append(torch.cat(points).detach())
            both[side].append(rows)
    return both


def test_instances_are_those_of_the_largest_difference(pair, find, make_config):
    taught, _ = pair.distil(make_config(**{**WITHOUT, **KEYS, "feature_weight": 1.0}))
    assert taught.num_representatives.tolist() == [len(find(pair, frame)) for frame in (0, 1)]


def test_features_follow_the_formula(pair, find, make_config):
    taught, adaption = pair.distil(make_config(**{**WITHOUT, **KEYS, "feature_weight": 0.5}))
    ours, theirs = slow_features(pair, [find(pair, frame) for frame in (0, 1)], adaption)
    expected = sum(
        sum((b - a).norm().item() for a, b in zip(*rows, strict=True)) / len(rows[0])
        for rows in zip(ours, theirs, strict=True)
    )
    assert taught.loss.item() == pytest.approx(0.5 * expected / 2, rel=1e-4)
    taught.loss.backward()
    assert pair.bev[0].grad.count_nonzero() > 0
    assert pair.logits[0].grad is None


def test_relations_follow_the_formula(pair, find, make_config):
    taught, adaption = pair.distil(make_config(**{**WITHOUT, **KEYS, "relation_weight": 3.0}))
    expected = 0.0
    for rows in zip(*slow_features(pair, [find(pair, frame) for frame in (0, 1)], adaption), strict=True):
        pairs = [(i, j) for i in range(len(rows[0])) for j in range(len(rows[0])) if i != j]
        distances = [[(side[i] - side[j]).norm().item() for i, j in pairs] for side in rows]
        ours, theirs = ([value * len(pairs) / sum(side) for value in side] for side in distances)
        gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        expected += sum(gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps) / len(pairs)
    assert taught.loss.item() == pytest.approx(3 * expected / 2, rel=1e-3)
    taught.loss.backward()
    assert pair.bev[0].grad.isfinite().all()
    assert pair.bev[0].grad.count_nonzero() > 0


def nearest_iou(one, two):
    """Overlap of the upright rectangles that two boxes become, their headings turned to the next right angle."""
    edges = []
    for x, y, _, dx, dy, _, heading in (one, two):
        turn = abs((heading + math.pi / 2) % math.pi - math.pi / 2)
        dx, dy = (dx, dy) if turn < math.pi / 4 else (dy, dx)
        edges.append((x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2))
    width = min(e[2] for e in edges) - max(e[0] for e in edges)
    height = min(e[3] for e in edges) - max(e[1] for e in edges)
    overlap = max(width, 0) * max(height, 0)
    return overlap / (sum((e[2] - e[0]) * (e[3] - e[1]) for e in edges) - overlap)


def holds(box, x, y):
    u = (x - box[0]) * math.cos(box[6]) + (y - box[1]) * math.sin(box[6])
    v = -(x - box[0]) * math.sin(box[6]) + (y - box[1]) * math.cos(box[6])
    return abs(u) <= box[3] / 2 and abs(v) <= box[4] / 2


def slow_owner(pair, instances, site):
    """Which instance a place belongs to, or None."""
    for number, (place, _, _) in enumerate(instances):
        if place == site:
            return number
    if pair.is_anchor:
        overlaps = [nearest_iou(pair.sites[0].anchors[site].tolist(), box) for _, _, box in instances]
        return overlaps.index(max(overlaps)) if max(overlaps) >= 0.1 else None
    center = pair.sites[0].centers[site].tolist()
    return next((number for number, (_, _, box) in enumerate(instances) if holds(box, *center)), None)


def divergence(student, teacher):
    p, q = sigmoid(teacher), sigmoid(student)
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def slow_response(pair, found, candidates, box_weight):
    total = 0.0
    for frame, instances in enumerate(found):
        terms = []
        for site in range(len(pair.maps[0].cells)):
            owner = slow_owner(pair, instances, site)
            if owner is None:
                continue
            ours, theirs = pair.logits[0][frame, site].tolist(), pair.target(candidates, frame, site)
            term = sum(divergence(s, t) for s, t in zip(ours, theirs, strict=True))
            if box_weight:
                part = next(i for i, names in enumerate(pair.parts[0]) if NAMES[instances[owner][1]] in names)
                theirs_part = part if len(pair.parts[0]) == 1 else 1 - part
                gaps = (pair.codes[0][frame, site, part] - pair.codes[1][frame, site, theirs_part]).tolist()
                if pair.is_anchor:
                    gaps[6] = math.sin(gaps[6])
                term += box_weight * sum(gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5 for gap in gaps)
            terms.append(term)
        assert len(terms) > len(instances), "only the instances' own places"
        total += sum(terms) / len(terms) / len(found)
    return total


def test_responses_follow_the_formula(pair, find, make_config, slow_candidates):
    candidates = None if pair.is_anchor else slow_candidates(*pair.maps)
    taught, adaption = pair.distil(make_config(**{**WITHOUT, **KEYS, "response_weight": 2.0, "box_weight": 0}))
    expected = slow_response(pair, [find(pair, frame) for frame in (0, 1)], candidates, 0)
    assert taught.loss.item() == pytest.approx(2 * expected, rel=1e-4)
    assert not adaption
    taught.loss.backward()
    assert pair.logits[0].grad.count_nonzero() > 0
    assert pair.bev[0].grad is None
    assert pair.codes[0].grad is None


@pytest.mark.parametrize(("name", "parts"), [("anchors", 1), ("centers", 1), ("centers", 2)])
def test_boxes_join_the_responses(make_map, make_boxes, make_teacher, make_config, find, slow_candidates, name, parts):
    pair = Pair(make_map, make_boxes, make_teacher, MAPS[name], parts=parts)
    candidates = None if pair.is_anchor else slow_candidates(*pair.maps)
    taught, _ = pair.distil(make_config(**{**WITHOUT, **KEYS, "response_weight": 1.0, "box_weight": 0.7}))
    expected = slow_response(pair, [find(pair, frame) for frame in (0, 1)], candidates, 0.7)
    assert taught.loss.item() == pytest.approx(expected, rel=1e-4)
    taught.loss.backward()
    assert pair.codes[0].grad.count_nonzero() > 0


def test_gradients_reach_the_student_and_the_adaption_alone(pair, make_config):
    for values in (pair.logits[1], pair.bev[1], pair.codes[1]):
        values.requires_grad_()
    box_weight = 0.0 if pair.sites[0].stride != pair.sites[1].stride else 1.0
    taught, adaption = pair.distil(make_config(method="GID", box_weight=box_weight, **KEYS))
    taught.loss.backward()
    assert all(values.grad.count_nonzero() > 0 for values in (pair.logits[0], pair.bev[0]))
    assert all(values.grad is None for values in (pair.logits[1], pair.bev[1], pair.codes[1]))
    assert set(adaption) == {"adaption.mix.weight", "adaption.mix.bias"}
    assert all(parameter.grad.count_nonzero() > 0 for parameter in adaption.values())
    assert all(parameter.grad is None for parameter in pair.detector.parameters())


@pytest.mark.parametrize(("name", "parts"), [("anchors", 1), ("centers", 2)])
def test_a_student_that_shows_what_the_teacher_shows_has_no_loss(
    make_map, make_boxes, make_teacher, make_config, name, parts
):
    pair = Pair(make_map, make_boxes, make_teacher, MAPS[name], (5, 5), parts)
    pair.logits[1] = pair.logits[0].detach()[:, :, [NAMES.index(n) for n in OTHER_ORDER]]
    pair.codes[1], pair.bev[1] = pair.codes[0].detach().flip(2), pair.bev[0].detach()
    taught, adaption = pair.distil(make_config(method="GID", feature_weight=1.0, **KEYS))
    assert not adaption
    assert taught.loss.item() == pytest.approx(0, abs=1e-5)
    taught.loss.backward()
    for values in (pair.logits[0], pair.bev[0], pair.codes[0]):
        assert values.grad.abs().max() < 1e-5, "and nothing that is not finite"


def test_a_single_instance_has_no_relations_but_a_gradient(pair, make_config):
    taught, adaption = pair.distil(make_config(**{**WITHOUT, "relation_weight": 1.0, "num_instances": 1}))
    assert taught.num_representatives.tolist() == [1, 1]
    assert taught.loss.item() == 0
    taught.loss.backward()
    assert pair.bev[0].grad.abs().max() == 0
    assert all(parameter.grad is not None for parameter in adaption.values()), "other processes would wait for it"


def test_boxes_without_end_are_read_as_far_as_the_map_goes(pair, make_config):
    for boxes in pair.boxes:
        boxes[..., 3:6] = math.inf
    taught, _ = pair.distil(make_config(**{**WITHOUT, **KEYS, "feature_weight": 1.0}))
    assert taught.loss.isfinite()


def test_heads_that_do_not_fit_are_refused(make_map, make_boxes, make_teacher, make_config):
    mixed = Pair(make_map, make_boxes, make_teacher, (MAPS["anchors"][0], MAPS["centers"][1]))
    with pytest.raises(ConfigError, match="GID compares heads of one kind, the student has an anchor head"):
        mixed.distil(make_config(method="GID"))
    finer = Pair(make_map, make_boxes, make_teacher, MAPS["finer teacher"])
    with pytest.raises(ConfigError, match="stride 8, the teacher's 4; .* make BOX_WEIGHT 0"):
        finer.distil(make_config(method="GID"))


@pytest.mark.parametrize("side", [0, 1])
def test_logits_that_are_not_finite_are_named(pair, make_config, side):
    pair.logits[side].data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=f"of the {('student', 'teacher')[side]}'s class logits are NaN"):
        pair.distil(make_config(method="GID", box_weight=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_instances": 0}, "NUM_INSTANCES must be a whole number of at least 1, got 0"),
        ({"instance_iou": 1.5}, r"INSTANCE_IOU must lie in \[0, 1\], got 1.5"),
        ({"relation_weight": -1.0}, "RELATION_WEIGHT must be a finite number"),
        ({"feature_weight": 0, "relation_weight": 0, "response_weight": 0}, "are all 0; give one a weight"),
        ({"instances": 3}, "unknown key INSTANCES .* NUM_INSTANCES, INSTANCE_NMS_THRESH"),
    ],
)
def test_keys_that_make_no_sense_are_refused(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(method="GID", **changes)
