"""What both engines show of a batch is the same, methods teach alike, and projectors are trained and not saved."""

from __future__ import annotations

import logging
from copy import deepcopy

import pytest
import torch
import yaml
from both_engines import UNTIED, assert_same_gradients, tensors_of
from easydict import EasyDict
from random_cut import randomize_norms
from torch import nn

from cakdp_ext.checkpoint import PROJECTORS, read_checkpoint, write_checkpoint
from cakdp_ext.config import ConfigError, dump_config
from cakdp_ext.datasets import collate
from cakdp_ext.distillation import DistillMethod, DistillOutput, MapProjector, register_method
from cakdp_ext.distillation import methods as methods_module
from cakdp_ext.engine.build import build_full, build_student, build_teacher, distill_config
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.openpcdet.batches import to_batch_dict
from cakdp_ext.openpcdet.build import as_dataset
from cakdp_ext.openpcdet.guards import LoadingGuard
from cakdp_ext.types import Role

LOG = logging.getLogger("test")
SHOWN = frozenset(Role) - {Role.SECOND_STAGE}
METHOD = "MODEL.DISTILL.METHOD"


@pytest.fixture
def hint(monkeypatch):
    """A method with a projector, for as long as a test runs."""
    monkeypatch.setattr(methods_module, "_METHODS", dict(methods_module._METHODS))

    @register_method("Hint")
    class Hint(DistillMethod):
        taps = frozenset({Role.BEV})

        def adapt(self, student, teacher):
            self.projector = MapProjector(student.bev.features, teacher.bev.features)

        def forward(self, lesson):
            gap = self.projector(lesson.student.bev.features) - lesson.teacher.bev.features
            return DistillOutput(gap.square().mean())


def assert_same_taps(theirs, ours, exact):
    assert theirs.sites.class_names == ours.sites.class_names
    close = {"rtol": 1e-5, "atol": 1e-5}
    for name in ("features", "num_points"):
        torch.testing.assert_close(getattr(theirs.voxels, name), getattr(ours.voxels, name), **close)
    assert torch.equal(theirs.voxels.coords, ours.voxels.coords)
    assert set(theirs.sparse) == set(ours.sparse)
    for name, wanted in ours.sparse.items():
        found = theirs.sparse[name]
        assert (found.stride, found.spatial_shape) == (wanted.stride, wanted.spatial_shape)
        places = [_order(each.coords, each.spatial_shape) for each in (found, wanted)]
        assert torch.equal(found.coords[places[0]], wanted.coords[places[1]])
        torch.testing.assert_close(found.features[places[0]], wanted.features[places[1]], **close)
    for role, name in (("bev", "map"), ("bev", "features"), ("dense", "cls_logits"), ("dense", "boxes"),
                       ("boxes", "values"), *exact):  # fmt: skip
        torch.testing.assert_close(*(getattr(getattr(each, role), name) for each in (theirs, ours)), **close)
    assert theirs.boxes.parts == ours.boxes.parts


def _order(coords, shape):
    batch, z, y, x = coords.unbind(1)
    return (((batch * shape[0] + z) * shape[1] + y) * shape[2] + x).argsort()


@pytest.mark.parametrize("name", ["second", "voxel_rcnn"])
def test_anchor_detectors_show_the_same(both, name):
    theirs, ours = both.pair(name)
    with torch.no_grad():
        shown = [model.encode(both.batch(), SHOWN).taps for model in (theirs, ours)]
    assert_same_taps(*shown, exact=[("boxes", "dir_logits")])


def test_center_detectors_show_the_same(both, openpcdet):
    from pcdet.models import detectors

    from cakdp_ext.openpcdet.faces import with_faces

    config = both.config("centerpoint")
    torch.manual_seed(0)
    ours = build_full(config, both.geometry).eval()
    detector = with_faces(detectors.__all__[config.MODEL.NAME])
    theirs = detector(model_cfg=deepcopy(config.MODEL), num_class=3, dataset=both.dataset(False)).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        shown = [model.encode(both.batch(), SHOWN).taps for model in (theirs, ours)]
    assert_same_taps(*shown, exact=[])
    assert len(shown[0].boxes.parts) == 2
    assert shown[0].boxes.dir_logits is None


def test_a_teacher_runs_no_module_that_is_not_asked_for(both):
    theirs, _ = both.pair("voxel_rcnn")
    ran, stages = [], ["vfe", "backbone_3d", "map_to_bev_module", "backbone_2d"]
    for name in (*stages, "roi_head"):
        getattr(theirs, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    for role, count in ((Role.VOXELS, 1), (Role.SPARSE, 2), (Role.BEV, 4), (Role.DENSE, 4)):
        ran.clear()
        theirs.encode(both.batch(), frozenset({role}))
        assert ran == stages[:count], role


METHODS = {
    "VanillaKD": "{NAME: VanillaKD}",
    "VanillaKD with boxes": "{NAME: VanillaKD, BOX_WEIGHT: 0.5}",
    "GID": "{NAME: GID, FEATURE_WEIGHT: 0.1}",
    "GID without maps": "{NAME: GID, FEATURE_WEIGHT: 0.0, RELATION_WEIGHT: 0.0}",
    "SparseKD": "{NAME: SparseKD, PIVOT_THRESH: 0.022, LABEL_THRESH: 0.026, TEACHER_WEIGHTS: none}",
    "SparseKD around objects": "{NAME: SparseKD, PIVOT: gaussian, LABEL_THRESH: 0.026, TEACHER_WEIGHTS: none}",
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_others_teach_alike_in_both_engines(both, name):
    changes = ("MODEL.DISTILL", f"{{METHOD: [{METHODS[name]}]}}")
    theirs = both.student(*changes)
    step, ours = both.step(theirs, *changes)
    if step.distiller.is_trained:
        step.distiller.load_state_dict(theirs.projectors.module.state_dict())
    losses, logged, _ = theirs(both.batch_dict(*UNTIED))
    wanted = step(both.batch(*UNTIED))
    assert logged["distill_loss"] == pytest.approx(wanted["distill_loss"].item(), rel=1e-4)
    assert logged["distill_loss"] > 1e-4
    assert ("num_representatives" in logged) == (name in ("GID", "GID without maps", "SparseKD"))
    losses["loss"].backward()
    sum(wanted.values()).backward()
    if step.distiller.is_trained:
        del theirs.projectors
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("scale", ["encoded", "x_conv2"])
def test_graphs_of_voxels_teach_alike_in_both_engines(both, scale):
    changes = ("MODEL.DISTILL", f"{{METHOD: PointDistiller, SCALE: {scale}, NUM_VOXELS: 60, NUM_NEIGHBORS: 5}}")
    theirs = both.student(*changes)
    step, ours = both.step(theirs, *changes)
    step.distiller.load_state_dict(theirs.projectors.module.state_dict())
    losses, logged, _ = theirs(both.batch_dict(*UNTIED))
    wanted = step(both.batch(*UNTIED))
    assert logged["distill_loss"] == pytest.approx(wanted["distill_loss"].item(), rel=1e-4)
    assert logged["distill_loss"] > 1e-2
    assert logged["num_representatives"] == 60
    losses["loss"].backward()
    sum(wanted.values()).backward()
    made = dict(theirs.projectors.module.named_parameters())
    for name, parameter in step.distiller.named_parameters():
        torch.testing.assert_close(made[name].grad, parameter.grad, rtol=1e-3, atol=1e-6)
    del theirs.projectors
    assert_same_gradients(theirs, ours)


PILLARS = {
    "VFE": {"NAME": "PillarVFE", "WITH_DISTANCE": False, "USE_ABSLOTE_XYZ": True, "USE_NORM": True, "NUM_FILTERS": [8]},
    "BACKBONE_3D": None,
    "MAP_TO_BEV": {"NAME": "PointPillarScatter", "NUM_BEV_FEATURES": 8},
}
SIZE = [0.4, 0.4, 4]


def pillars_of(both, name, width=8):
    """Make a YAML's networks of pillars, whose features stand for the points."""
    config = both.config(name)
    config.MODEL.pop("PRUNING", None)
    config.DATA_CONFIG.DATA_PROCESSOR[-1].VOXEL_SIZE = SIZE
    config.MODEL.update(deepcopy(EasyDict(PILLARS)))
    config.MODEL.VFE.NUM_FILTERS = [width]
    config.MODEL.MAP_TO_BEV.NUM_BEV_FEATURES = width
    config.MODEL.BACKBONE_2D.LAYER_STRIDES = [1, 2]
    for anchors in config.MODEL.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG:
        anchors.feature_map_stride = 1
    return config


def test_pillars_are_taught_by_graphs_of_pillars(both, openpcdet, tmp_path):
    from pcdet.models import build_network

    teacher = pillars_of(both, "second", width=12)
    frames = build_split(teacher, "val")
    dataset = as_dataset(teacher.CLASS_NAMES, frames.geometry)
    torch.manual_seed(0)
    network = build_network(model_cfg=teacher.MODEL, num_class=3, dataset=dataset)
    torch.save({"model_state": network.state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "teacher.yaml").write_text(dump_config(teacher), encoding="utf-8")
    student = pillars_of(both, "second_cakdp")
    source = {"CFG": str(tmp_path / "teacher.yaml"), "CKPT": str(tmp_path / "teacher.pth")}
    student.MODEL.DISTILL = {"TEACHER": source, "METHOD": "PointDistiller", "SCALE": "voxels", "NUM_VOXELS": 30}
    dataset.training = True
    model = build_network(model_cfg=student.MODEL, num_class=3, dataset=dataset).train()
    batch = collate([frames[0], frames[1]])
    losses, logged, _ = model(to_batch_dict(batch))
    assert logged["num_representatives"] == 30
    assert logged["distill_loss"] > 1e-2
    losses["loss"].backward()
    method = model.projectors.module.methods["PointDistiller"]
    assert [layer.center.in_features for layer in (method.student_graphs, method.teacher_graphs)] == [8, 12]
    assert model.vfe.pfn_layers[0].linear.weight.grad.abs().sum() > 0
    with torch.no_grad():
        shown = model.eval().encode(batch, frozenset({Role.VOXELS})).taps.voxels
    assert torch.equal(shown.num_points, batch.voxel_num_points.long())
    assert torch.equal(shown.coords, batch.voxel_coords.long())
    assert shown.features.shape == (len(batch.voxels), 8)


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_others_teach_center_heads_alike(both, openpcdet, name, tmp_path):
    config = both.config("centerpoint")
    torch.manual_seed(0)
    model = build_full(config, both.geometry)
    randomize_norms(model)
    write_checkpoint(tmp_path / "ckpt" / "checkpoint_epoch_1.pth", model, {"epoch": 1})
    config.MODEL.NAME = "CenterPointCaKDP"
    config.MODEL.DISTILL = {
        "TEACHER": {"CFG": both.world.cfg("centerpoint"), "CKPT": str(tmp_path)},
        "METHOD": [yaml.safe_load(METHODS[name])],
    }
    torch.manual_seed(1)
    theirs = both.theirs(config, training=True)
    ours = build_student(config, both.geometry, None).model
    ours.load_state_dict(tensors_of(theirs))
    teacher = build_teacher(config, both.geometry, torch.device("cpu"))
    step = TrainingStep(ours.train(), teacher, distill_config(config))
    losses, logged, _ = theirs(both.batch_dict(*UNTIED))
    wanted = step(both.batch(*UNTIED))
    assert logged["distill_loss"] == pytest.approx(wanted["distill_loss"].item(), rel=1e-3)
    assert logged["distill_loss"] > 1e-4
    losses["loss"].backward()
    sum(wanted.values()).backward()
    assert_same_gradients(theirs, ours, tolerance=1e-3)


@pytest.mark.parametrize("with_velocities", [False, True])
def test_the_teachers_detections_join_the_objects_in_both_engines(both, with_velocities):
    found = []
    for labels in (True, False):
        method = f"{{NAME: SparseKD, PIVOT: none, LABELS: {labels}, LABEL_THRESH: 0.026}}"
        changes = ("MODEL.DISTILL", f"{{METHOD: [{method}]}}")
        theirs = both.student(*changes)
        step, _ = both.step(theirs, *changes)
        batch, data = both.batch(*UNTIED), both.batch_dict(*UNTIED)
        if with_velocities:
            boxes = data["gt_boxes"]
            data["gt_boxes"] = torch.cat([boxes[..., :7], torch.ones_like(boxes[..., :2]), boxes[..., 7:]], dim=2)
        grown = step.distiller.targets(batch, step.distiller.look(batch), step.student.sites)
        assert ((grown.gt_labels >= 0).sum() > (batch.gt_labels >= 0).sum()) == labels
        given = []
        theirs.dense_head.register_forward_pre_hook(lambda _, seen, given=given: given.append(seen[0]["gt_boxes"]))
        losses, logged, _ = theirs(data)
        assert torch.equal(given[0][..., :7], grown.gt_boxes)
        assert torch.equal(given[0][..., -1], (grown.gt_labels + 1).float())
        assert given[0].shape[2] == data["gt_boxes"].shape[2]
        assert losses["loss"].item() == pytest.approx(sum(step(batch).values()).item(), rel=1e-4)
        assert logged["distill_loss"] == 0
        found.append(losses["loss"].item())
    assert abs(found[0] - found[1]) > 1e-3


@pytest.mark.parametrize("choice", ["largest", "first", "none"])
def test_a_narrow_student_starts_from_its_teacher_alike_in_both_engines(both, choice):
    config = both.config(
        "second_cakdp", "MODEL.DISTILL", f"{{METHOD: [{{NAME: SparseKD, TEACHER_WEIGHTS: {choice}}}]}}"
    )
    config.MODEL.WIDTH = 0.5
    del config.MODEL["PRUNING"]
    torch.manual_seed(1)
    theirs = both.theirs(config, training=True)
    torch.manual_seed(2)
    ours = build_student(config, both.geometry, None).model
    step = TrainingStep(ours.train(), build_teacher(config, both.geometry, torch.device("cpu")), distill_config(config))
    step.start_from_teacher(both.geometry)
    same = {key for key, value in theirs.state_dict().items() if torch.equal(value, ours.state_dict()[key])}
    weights = {key for key in theirs.state_dict() if key.startswith("backbone") and key.endswith("weight")}
    convolutions = {key for key in weights if theirs.state_dict()[key].dim() > 1}
    assert convolutions <= same if choice != "none" else not convolutions & same


def test_a_student_that_inherited_its_weights_keeps_them(both):
    weights = [both.student("MODEL.DISTILL", f"{{METHOD: [{{NAME: SparseKD, TEACHER_WEIGHTS: {choice}}}]}}")
               for choice in ("largest", "none")]  # fmt: skip
    one, other = (tensors_of(model) for model in weights)
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_teacher_of_one_stage_teaches_whoever_does_not_ask_for_the_second(both):
    source = ("MODEL.DISTILL.TEACHER.CFG", both.world.cfg("second"), "MODEL.DISTILL.TEACHER.CKPT")
    theirs = both.student(*source, both.world.run("second").path, METHOD, "VanillaKD")
    losses, logged, _ = theirs(both.batch_dict())
    assert logged["distill_loss"] > 0
    assert losses["loss"].isfinite()


def test_several_methods_are_logged_by_name(both):
    theirs = both.student("MODEL.DISTILL", "{METHOD: [SKD, {NAME: VanillaKD, WEIGHT: 0.5}]}")
    losses, logged, _ = theirs(both.batch_dict())
    parts = [logged["distill_loss_SKD"], logged["distill_loss_VanillaKD"]]
    assert min(parts) > 0
    assert logged["distill_loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert logged["num_representatives"] > 10


def test_projectors_are_trained_and_in_no_state_dict(both, hint):
    theirs, plain = both.student(METHOD, "Hint"), both.student()
    assert list(theirs.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(plain.state_dict(), strict=True)
    leaves = [module for module in theirs.modules() if not list(module.children())]
    names = {name for name, _ in theirs.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert names == {f"projectors.module.methods.Hint.projector.mix.{part}" for part in ("weight", "bias")}
    found = {id(parameter) for leaf in leaves for parameter in leaf.parameters(recurse=False)}
    assert {id(parameter) for parameter in theirs.parameters()} == found, "OpenPCDet's optimizer looks at leaves alone"
    losses, logged, _ = theirs(both.batch_dict())
    losses["loss"].backward()
    projector = theirs.projectors.module.methods["Hint"].projector.mix
    assert projector.weight.grad.abs().sum() > 0
    assert "num_representatives" not in logged
    assert tensors_of(deepcopy(theirs)).keys() == tensors_of(theirs).keys()


def test_a_parameter_that_no_optimizer_of_openpcdets_would_find_is_refused(both, monkeypatch):
    monkeypatch.setattr(methods_module, "_METHODS", dict(methods_module._METHODS))

    @register_method("Scaled")
    class Scaled(DistillMethod):
        taps = frozenset({Role.BEV})

        def __init__(self, config):
            super().__init__(config)
            self.scale = nn.Parameter(torch.ones(()))
            self.mix = nn.Linear(1, 1)

    with pytest.raises(ConfigError, match="Scaled of MODEL.DISTILL.METHOD holds scale beside modules of its own"):
        both.student(METHOD, "Scaled")


def test_the_method_with_a_projector_teaches_alike_in_both_engines(both, hint):
    theirs = both.student(METHOD, "Hint")
    step, ours = both.step(theirs, METHOD, "Hint")
    step.distiller.load_state_dict(theirs.projectors.module.state_dict())
    losses, logged, _ = theirs(both.batch_dict(*UNTIED))
    wanted = step(both.batch(*UNTIED))
    assert logged["distill_loss"] == pytest.approx(wanted["distill_loss"].item(), rel=1e-4)
    losses["loss"].backward()
    sum(wanted.values()).backward()
    gap = theirs.projectors.module.methods["Hint"].projector.mix.weight.grad
    torch.testing.assert_close(gap, step.distiller.methods["Hint"].projector.mix.weight.grad, rtol=1e-3, atol=1e-7)
    del theirs.projectors
    assert_same_gradients(theirs, ours)


@pytest.fixture
def saved(both, hint, tmp_path):
    """A student with a projector, saved as OpenPCDet's script saves it under our guard, and by itself."""
    guard = LoadingGuard(is_strict=False)
    guard.model = both.student(METHOD, "Hint")
    nn.init.constant_(guard.model.projectors.module.methods["Hint"].projector.mix.weight, 0.25)
    state = {"model_state": guard.model.state_dict(), "optimizer_state": None, "epoch": 1, "it": 3}
    save = guard.save_checkpoint(lambda state, filename: torch.save(state, f"{filename}.pth"))
    save(state, filename=tmp_path / "whole")
    torch.save(state, tmp_path / "bare.pth")
    return guard.model, tmp_path


def test_a_resume_finds_the_projector_beside_the_network(both, saved, caplog):
    before, folder = saved
    content = read_checkpoint(folder / "whole.pth")
    assert [key.rpartition(".")[2] for key in content[PROJECTORS]] == ["weight", "bias"]
    assert not [key for key in content["model_state"] if "projector" in key]
    geometry = both.geometry
    plain = build_student(both.student_config(), geometry, both.plan).model
    plain.load_state_dict(content["model_state"], strict=True)

    again = both.student(METHOD, "Hint", seed=7)
    again.load_params_with_optimizer(str(folder / "whole.pth"), to_cpu=True, optimizer=None, logger=LOG)
    for one, two in zip(before.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not [record for record in caplog.records if "start anew" in record.message]


def test_a_checkpoint_of_openpcdets_own_script_lets_the_projector_start_anew_and_says_so(both, saved, caplog):
    _, folder = saved
    again = both.student(METHOD, "Hint", seed=7)
    weight = again.projectors.module.methods["Hint"].projector.mix.weight.clone()
    with caplog.at_level(logging.WARNING, "cakdp_ext"):
        again.load_params_with_optimizer(str(folder / "bare.pth"), to_cpu=True, optimizer=None, logger=LOG)
    assert torch.equal(again.projectors.module.methods["Hint"].projector.mix.weight, weight)
    assert "bare.pth holds no projectors of MODEL.DISTILL, which start anew" in caplog.text
