"""Several methods under one teacher, what each is shown, and the parts that are trained."""

import pytest
import torch
from teaching import teach
from torch import nn

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import EncodedScene, TrainingOutput
from cakdp_ext.distillation import (
    DistillMethod,
    DistillOutput,
    FrozenTeacher,
    MapProjector,
    RowProjector,
    register_method,
)
from cakdp_ext.distillation import methods as methods_module
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.looking import example_frame
from cakdp_ext.taps import BevFeatures, Taps
from cakdp_ext.types import DensePredictions, LidarGeometry, Role

GEOMETRY = LidarGeometry((0, -4, -3, 8, 4, 1), (0.5, 0.5, 0.5))


@pytest.fixture(autouse=True)
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

    return Hint


class Network(nn.Module):
    """A map of the mean of a frame's voxels; as student and as teacher."""

    geometry = GEOMETRY

    def __init__(self, sites, channels, size=4):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, channels), nn.BatchNorm2d(channels)
        self.sites, self.size, self.asked = sites, size, []

    def shown(self, batch, roles):
        self.asked.append(roles)
        means = batch.voxels[:, 0].mean(dim=0, keepdim=True)
        maps = self.norm(self.layer(means)[:, :, None, None].expand(-1, -1, self.size, self.size))
        return Taps(self.sites, {Role.BEV: BevFeatures(maps, maps)})

    def encode(self, batch, roles):
        return EncodedScene(self.shown(batch, roles))

    def forward(self, batch):
        return TrainingOutput({"task": self.layer.weight.square().sum()}, tap=lambda roles: self.shown(batch, roles))


@pytest.fixture
def networks(make_sites):
    torch.manual_seed(4)
    return Network(make_sites(6), 3, 8), Network(make_sites(6), 5)


def test_a_projector_is_trained_with_the_student_and_the_teacher_sees_what_is_asked_for(networks, make_config):
    student, teacher = networks
    step = TrainingStep(student.train(), FrozenTeacher(teacher), make_config(method="Hint"))
    assert student.training
    assert student.norm.num_batches_tracked == 0
    names = [name for name, _ in step.named_parameters()]
    assert [name for name in names if not name.startswith("student.")] == [
        "distiller.methods.Hint.projector.mix.weight",
        "distiller.methods.Hint.projector.mix.bias",
    ]
    assert names[:2] == ["student.layer.weight", "student.layer.bias"]
    losses = step(example_frame(GEOMETRY, torch.device("cpu")))
    assert set(losses) == {"task", "distill_loss"}
    losses["distill_loss"].backward()
    assert all(parameter.grad is not None for parameter in step.distiller.parameters())
    assert student.norm.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert set(teacher.asked) == {frozenset({Role.BEV})}
    assert set(step.distiller.state_dict()) == {name.removeprefix("distiller.") for name in names[4:]}


def test_several_methods_are_weighed_and_named(make_sites, make_boxes, make_teacher, make_config):
    sites, boxes = make_sites(6), make_boxes(2, 6)
    teacher = FrozenTeacher(make_teacher(sites, boxes, 3))
    predictions = DensePredictions(torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1)), boxes)
    encoded = teacher.encode(None)

    def run(**keys):
        return teach(make_config(score_thresh=0.1, **keys), predictions, sites, teacher, encoded)

    both = run(method=[{"NAME": "SKD", "WEIGHT": 2.0}, {"NAME": "VanillaKD", "TEMPERATURE": 3.0}], alpha=0.5)
    one, two = run(method="SKD"), run(method="VanillaKD", temperature=3.0)
    assert set(one.losses) == set(two.losses) == {"distill_loss"}
    assert set(both.losses) == {"distill_loss_SKD", "distill_loss_VanillaKD"}
    assert both.losses["distill_loss_SKD"].item() == pytest.approx(2 * one.loss.item())
    assert both.losses["distill_loss_VanillaKD"].item() == pytest.approx(0.5 * two.loss.item())
    assert both.loss.item() == pytest.approx(2 * one.loss.item() + 0.5 * two.loss.item())
    assert torch.equal(both.num_representatives, one.num_representatives)
    assert two.num_representatives is None


def test_a_student_that_does_not_show_what_is_asked_for_is_refused(networks, make_config):
    class Silent(nn.Module):
        sites = networks[0].sites

        def forward(self, batch):
            return TrainingOutput({}, DensePredictions(torch.zeros(1, 6, 3), torch.zeros(1, 6, 7)))

    with pytest.raises(ConfigError, match="Hint must see what Silent computes before the training; give it sites and"):
        TrainingStep(Silent(), FrozenTeacher(networks[1]), make_config(method="Hint"))
    boxes = TrainingStep(Silent(), FrozenTeacher(networks[1]), make_config(method="VanillaKD", box_weight=1.0))
    with pytest.raises(ConfigError, match="Silent gives no boxes in training, which VanillaKD asks for"):
        boxes(example_frame(GEOMETRY, torch.device("cpu")))


def test_what_was_not_asked_for_is_not_there(networks):
    shown = networks[0].shown(example_frame(GEOMETRY, torch.device("cpu")), frozenset({Role.BEV}))
    for name in ("voxels", "sparse", "dense", "boxes"):
        with pytest.raises(LookupError, match=rf"Role.{name.upper()} was not asked for; name it in the method's taps"):
            getattr(shown, name)


@pytest.mark.parametrize("sizes", [((6, 8), (3, 4)), ((3, 4), (6, 8)), ((6, 8), (6, 8)), ((5, 7), (3, 4))])
def test_maps_are_mixed_pixel_by_pixel_and_laid_over_each_other(sizes):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, *sizes[0]), torch.zeros(1, 5, *sizes[1])
    projector = MapProjector(student, teacher)
    found = projector(student)
    assert found.shape == (2, 5, *sizes[1])
    weight, bias = projector.mix.weight[:, :, 0, 0], projector.mix.bias
    mixed = torch.stack([torch.stack([weight @ student[b, :, i, j] + bias for i in range(sizes[0][0]) for j in
                         range(sizes[0][1])], dim=1).view(5, *sizes[0]) for b in range(2)])  # fmt: skip
    if sizes[0] == sizes[1]:
        torch.testing.assert_close(found, mixed)
    if sizes[0] == (6, 8) and sizes[1] == (3, 4):
        torch.testing.assert_close(found, mixed.view(2, 5, 3, 2, 4, 2).mean(dim=(3, 5)))
    if sizes[1] == (6, 8) and sizes[0] == (3, 4):
        torch.testing.assert_close(found[:, :, 1, 1], (9 * mixed[:, :, 0, 0] + 3 * mixed[:, :, 0, 1]
                                   + 3 * mixed[:, :, 1, 0] + mixed[:, :, 1, 1]) / 16)  # fmt: skip


def test_what_fits_is_left_alone():
    maps, rows = torch.randn(1, 3, 4, 4), torch.randn(7, 3)
    assert torch.equal(MapProjector(maps, maps)(maps), maps)
    assert torch.equal(RowProjector(rows, rows)(rows), rows)
    assert not list(MapProjector(maps, maps).parameters())
    assert RowProjector(rows, torch.zeros(2, 5))(rows).shape == (7, 5)
    assert len(list(MapProjector(maps, torch.zeros(1, 3, 2, 2)).parameters())) == 2
