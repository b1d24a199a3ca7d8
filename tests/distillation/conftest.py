import math

import pytest
import torch
from shapely import affinity
from shapely.geometry import box as rectangle
from torch import nn

from cakdp_ext.contract import EncodedScene
from cakdp_ext.distillation import read_config
from cakdp_ext.taps import Taps
from cakdp_ext.types import PREDICTIONS, DensePredictions, PredictionSites, Role

TEACHER = {"CFG": "teacher.yaml", "CKPT": "teacher.pth"}


@pytest.fixture
def make_config():
    def make(**changes):
        return read_config(
            {"TEACHER": TEACHER, **{key.upper(): value for key, value in changes.items()}}, "MODEL.DISTILL"
        )

    return make


@pytest.fixture
def make_boxes():
    def make(*shape, seed=0, spread=12.0):
        generator = torch.Generator().manual_seed(seed)
        centers = (torch.rand(*shape, 3, generator=generator) - 0.5) * torch.tensor([spread, spread, 1.0])
        sizes = 1.5 + 3.0 * torch.rand(*shape, 3, generator=generator)
        headings = (torch.rand(*shape, 1, generator=generator) - 0.5) * 6.0
        return torch.cat([centers, sizes, headings], dim=-1)

    return make


@pytest.fixture
def make_sites(make_boxes):
    def make(num_anchors, num_classes=3, seed=0):
        anchors = make_boxes(num_anchors, seed=seed)
        names = tuple("Car Pedestrian Cyclist Van".split()[:num_classes])
        return PredictionSites(anchors[:, :2], anchors, stride=8, num_classes=num_classes, class_names=names)

    return make


class BevMap:
    """A regular map with a known lower corner; its sites run through y, x and the predictions of a cell."""

    def __init__(self, low, size, shape, per_cell=1, with_anchors=False, stride=8, num_classes=3):
        self.low, self.size, self.shape, self.per_cell = low, size, shape, per_cell
        self.cells = [(column, row) for row in range(shape[1]) for column in range(shape[0]) for _ in range(per_cell)]
        centers = torch.tensor([self.center(site) for site in range(len(self.cells))])
        anchors = torch.cat([centers, torch.ones(len(centers), 5)], dim=1) if with_anchors else None
        self.sites = PredictionSites(centers, anchors, stride, num_classes)

    def center(self, site):
        return tuple(low + (i + 0.5) * size for low, i, size in zip(self.low, self.cells[site], self.size, strict=True))

    def holds(self, site, position):
        """Whether a position lies in the cell behind a site, its lower borders included."""
        offsets = zip(self.low, self.cells[site], self.size, position, strict=True)
        return all(-1e-6 <= (at - low) / size - i < 1 - 1e-6 for low, i, size, at in offsets)


@pytest.fixture
def make_map():
    return BevMap


@pytest.fixture
def slow_candidates():
    """Look at every pair of predictions: those whose cell lies in mine, or else those in whose cell I lie."""

    def find(student, teacher):
        found = []
        for mine in range(len(student.cells)):
            sites = range(len(teacher.cells))
            within = [site for site in sites if student.holds(mine, teacher.center(site))]
            found.append(within or [site for site in sites if teacher.holds(site, student.center(mine))])
        return found

    return find


def footprint(box):
    x, y, _, dx, dy, _, heading = box
    return affinity.rotate(rectangle(x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2), math.degrees(heading))


def greedy_nms(boxes, scores, candidates, threshold):
    shapes, keep = [footprint(box) for box in boxes], []
    for index in sorted(candidates, key=lambda i: -scores[i]):
        overlaps = [shapes[index].intersection(shapes[k]).area / shapes[index].union(shapes[k]).area for k in keep]
        if all(overlap <= threshold for overlap in overlaps):
            keep.append(index)
    return keep


@pytest.fixture
def slow_nms():
    return greedy_nms


@pytest.fixture
def slow_representatives():
    """Select by the rule, one frame after the other, with polygons."""

    def select(predictions, config):
        chosen = []
        config = config.methods[0].options if hasattr(config, "methods") else config
        for boxes, logits in zip(predictions.boxes.tolist(), predictions.cls_logits.tolist(), strict=True):
            scores = [1 / (1 + math.exp(-max(row))) for row in logits]
            candidates = [i for i, score in enumerate(scores) if score > config.score_thresh]
            candidates = sorted(candidates, key=lambda i: -scores[i])[: config.nms_pre_maxsize]
            keep = greedy_nms(boxes, scores, candidates, config.nms_thresh)[: config.nms_post_maxsize]
            chosen.append([(i, logits[i].index(max(logits[i]))) for i in keep])
        return chosen

    return select


class FakeTeacher(nn.Module):
    """A two-stage detector whose second stage judges a RoI by a linear map of its box."""

    def __init__(self, sites, boxes, num_outputs=1):
        super().__init__()
        self.norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, num_outputs)
        self.fixed_sites, self.boxes, self.asked, self.found = sites, boxes, [], None

    @property
    def sites(self):
        return self.fixed_sites

    def encode(self, batch, roles=PREDICTIONS):
        logits = self.head(self.norm(self.boxes.flatten(0, 1))).view(*self.boxes.shape[:2], -1)
        return EncodedScene(Taps(self.sites, {Role.DENSE: DensePredictions(logits, self.boxes)}))

    def propose(self, encoded):
        return self.found

    def refine(self, encoded, rois):
        self.asked.append(rois)
        return self.head(rois)


@pytest.fixture
def make_teacher():
    def make(sites, boxes, num_outputs=1):
        torch.manual_seed(3)
        return FakeTeacher(sites, boxes, num_outputs)

    return make
