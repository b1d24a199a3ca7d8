"""OpenPCDet's two-stage detectors say where they look, and teach by it, whatever the order of their classes."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import small_models
import torch
from small_models import CLASSES, batch, build, dataset, stock

from cakdp_ext.config import ConfigError, dump_config
from cakdp_ext.contract import ProposingTeacher
from cakdp_ext.distillation import Distiller, FrozenTeacher, Lesson, SecondStage, read_config
from cakdp_ext.openpcdet.teacher import build_teacher
from cakdp_ext.taps import Taps
from cakdp_ext.types import DensePredictions, Role

sys.path.append(str(Path(__file__).resolve().parent))
from inside_teachers import TEACHERS, WITH_ANCHORS, Evaluation, config_of

TURNED = ["Cyclist", "Car", "Pedestrian"]


@pytest.fixture(autouse=True, scope="module")
def _scatter():
    small_models.provide_scatter()


@pytest.fixture
def frames():
    return batch(1, 2, training=False)


class Watched(Evaluation):
    """An evaluation whose RoIs' labels are kept, too."""

    def keep(self, head, inputs, data):
        super().keep(head, inputs, data)
        self.labels = data["roi_labels"].clone()


@pytest.mark.parametrize("name", TEACHERS)
def test_rois_are_those_of_an_evaluation(name, frames):
    model = build(config_of(name), training=False).eval()
    assert isinstance(model, ProposingTeacher)
    own = Watched(model, frames)
    teacher = FrozenTeacher(model)
    encoded = teacher.encode(frames)
    found = teacher.propose(encoded)
    assert torch.equal(found.rois, own.rois[..., :7])
    assert int(found.is_valid.sum()) >= 10
    assert torch.equal(found.labels[found.is_valid], own.labels[found.is_valid] - 1)
    torch.testing.assert_close(teacher.refine(encoded, found.rois), own.logits, atol=1e-6, rtol=1e-5)
    if name not in WITH_ANCHORS:
        assert found.indices is None
        return
    boxes = torch.take_along_dim(encoded.predictions.boxes, found.indices[..., None], dim=1)
    assert torch.equal(boxes[found.is_valid], found.rois[found.is_valid])
    best = torch.take_along_dim(encoded.predictions.cls_logits.argmax(dim=2), found.indices, dim=1)
    assert torch.equal(best[found.is_valid], found.labels[found.is_valid])


def test_proposals_of_a_training_are_refused(frames):
    model = build(config_of("Voxel R-CNN"), training=False).eval()
    encoded = model.encode(frames)
    with pytest.raises(RuntimeError, match="rois of an evaluation"):
        model.train().propose(encoded)


def turned_anchors(config):
    """List the anchors in another order than the student does."""
    anchors = config.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG
    config.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG = [anchors[2], anchors[0], anchors[1]]
    return config


def write_teacher(folder, name, classes, config, model):
    voxels = {"NAME": "transform_points_to_voxels", "VOXEL_SIZE": small_models.VOXEL}
    data = {"POINT_CLOUD_RANGE": small_models.RANGE, "DATA_PROCESSOR": [voxels]}
    tree = {"CLASS_NAMES": classes, "DATA_CONFIG": data, "MODEL": config}
    (folder / f"{name}.yaml").write_text(dump_config(tree))
    torch.save({"model_state": model.state_dict()}, folder / f"{name}.pth")
    return {"CFG": str(folder / f"{name}.yaml"), "CKPT": str(folder / f"{name}.pth")}


def turn(tensor, groups, size):
    """Move the entries of axis 0, laid out as (groups, 3, size), into the turned order of classes."""
    rows = tensor.view(groups, 3, size, *tensor.shape[1:])
    return rows[:, [CLASSES.index(name) for name in TURNED]].reshape(tensor.shape)


@pytest.mark.parametrize("method", ["SKD", "TKD", "TSKD"])
def test_a_teacher_of_turned_classes_and_anchors_teaches_the_same(method, frames, tmp_path):
    """Its class channels and its anchors are moved by hand; what it teaches must stay."""
    config = config_of("Voxel R-CNN")
    straight = build(config, training=False).eval()
    state = {key: value.clone() for key, value in straight.state_dict().items()}
    for part in ("weight", "bias"):
        for name, per_anchor in (("conv_cls", 3), ("conv_box", 7), ("conv_dir_cls", 2)):
            key = f"dense_head.{name}.{part}"
            state[key] = turn(state[key], 1, 2 * per_anchor)
        key = f"dense_head.conv_cls.{part}"
        state[key] = turn(state[key], 6, 1)
    turned = build(turned_anchors(deepcopy(config)), training=False)
    turned.load_state_dict(state)
    student = build(stock("kitti_models/second"), training=False, seed=3).eval()
    with torch.no_grad():
        said = student.predict_dense(frames)
    predictions = DensePredictions(said.cls_logits.requires_grad_(), said.boxes)
    results = []
    other = turned_anchors(deepcopy(config))
    for name, classes, cfg, model in (("straight", CLASSES, config, straight), ("turned", TURNED, other, turned)):
        source = write_teacher(tmp_path, name, list(classes), cfg, model)
        distill = read_config({"TEACHER": source, "METHOD": method, "SCORE_THRESH": 0.01}, "MODEL.DISTILL")
        teacher = build_teacher(distill, dataset())
        encoded = teacher.encode(frames)
        assert teacher.sites.class_names == tuple(classes)
        shown = Taps(student.sites, {Role.DENSE: predictions})
        lesson = Lesson(frames, shown, encoded.taps, SecondStage(teacher, encoded))
        results.append(Distiller(distill, teacher).compare(lesson))
    assert results[0].num_representatives.min() > 3
    assert results[1].num_representatives.tolist() == results[0].num_representatives.tolist()
    torch.testing.assert_close(results[1].loss, results[0].loss, rtol=1e-5, atol=0)
    assert results[0].loss > 1e-3


def test_classes_that_only_one_knows_are_refused(tmp_path):
    config = config_of("Voxel R-CNN")
    source = write_teacher(tmp_path, "other", ["Car", "Pedestrian", "Van"], config, build(config, training=False))
    with pytest.raises(ConfigError, match=r"other\.yaml does not know Cyclist; the student does not know Van"):
        build_teacher(read_config({"TEACHER": source}, "MODEL.DISTILL"), dataset())
