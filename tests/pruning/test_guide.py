"""A narrow student begins with its teacher's weights."""

from copy import deepcopy

import pytest
import torch
from pruning_networks import randomize, small_second, voxel_batch

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors import build_detector
from cakdp_ext.pruning import WidthConfig, architecture_fingerprint, channel_graph, guide_weights_, masked, narrow_
from cakdp_ext.types import PruningPlan

HALF = WidthConfig(0.5, 0.5)


@pytest.fixture
def teacher():
    return small_second()


def fresh(teacher, geometry, names=("Car", "Pedestrian", "Cyclist"), **changes):
    """A student of the same architecture but for some keys of its 2D backbone, with weights of its own."""
    cfg = deepcopy(teacher.model_cfg)
    cfg.BACKBONE_2D.update(changes)
    torch.manual_seed(9)
    return randomize(build_detector(cfg, names, geometry), seed=9)


def logits(model, geometry):
    with torch.no_grad():
        return model.predict_dense(voxel_batch(0, 1, geometry.grid_size[::-1], per_frame=300)).cls_logits


def largest(graph, model):
    """The plan by hand: half of each layer's filters, those with the largest sums of absolute weights."""
    modules, keep = dict(model.named_modules()), {}
    for layer in graph.prunable:
        weight = modules[layer.name].weight.detach()
        transposed = type(modules[layer.name]).__name__ == "ConvTranspose2d"
        filters = weight.transpose(0, 1) if transposed else weight
        sums = [float(one.abs().sum()) for one in filters]
        best = sorted(range(len(sums)), key=lambda i, sums=sums: -sums[i])[: len(sums) // 2]
        keep[layer.name] = tuple(sorted(best))
    return keep


def test_the_first_filters_are_those_of_a_teacher_made_narrow(teacher):
    model, geometry = teacher
    student = fresh(model, geometry)
    narrow_(student, HALF, geometry)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    guide_weights_(student, model, "first", geometry)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    cut = deepcopy(model)
    narrow_(cut, HALF, geometry)
    wanted = cut.state_dict()
    assert student.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in student.state_dict().items())


def test_the_largest_filters_compute_what_the_teacher_does_without_the_others(teacher):
    model, geometry = teacher
    student = fresh(model, geometry)
    narrow_(student, HALF, geometry)
    guide_weights_(student, model, "largest", geometry)
    graph = channel_graph(model, geometry)
    keep = largest(graph, model)
    assert any(kept != tuple(range(len(kept))) for kept in keep.values())
    plan = PruningPlan(
        keep, {layer.name: layer.num_filters for layer in graph.prunable}, architecture_fingerprint(graph)
    )
    with masked(model, plan, graph):
        wanted = logits(model, geometry)
    torch.testing.assert_close(logits(student, geometry), wanted, rtol=1e-4, atol=1e-5)


def test_a_student_with_fewer_layers_takes_those_that_it_has(teacher):
    model, geometry = teacher
    student = fresh(model, geometry, LAYER_NUMS=[1, 1])
    narrow_(student, HALF, geometry)
    own = student.state_dict()["backbone_2d.blocks.1.4.weight"].clone()
    guide_weights_(student, model, "first", geometry)
    taken = student.state_dict()["backbone_2d.blocks.1.4.weight"]
    assert torch.equal(taken, model.state_dict()["backbone_2d.blocks.1.4.weight"][:6, :6])
    assert not torch.equal(taken, own)
    assert logits(student, geometry).isfinite().all()


def test_a_head_of_other_classes_stays_as_it_is(teacher):
    model, geometry = teacher
    student = fresh(model, geometry, names=("Pedestrian", "Car", "Cyclist"))
    narrow_(student, HALF, geometry)
    own = {key: value.clone() for key, value in student.state_dict().items()}
    guide_weights_(student, model, "first", geometry)
    changed = {key for key, value in student.state_dict().items() if not torch.equal(value, own[key])}
    assert {key.partition(".")[0] for key in changed} == {"backbone_3d", "backbone_2d"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NUM_FILTERS": [10, 12]}, r"backbone_2d.blocks.0.1 has 10 filters, the teacher's 8; lower MODEL.WIDTH"),
        ({"LAYER_NUMS": [2, 2]}, "backbone_2d.blocks.0.* the teacher has no such tensor; .* TEACHER_WEIGHTS: none"),
    ],
)
def test_a_teacher_without_such_layers_is_refused(teacher, changes, message):
    model, geometry = teacher
    with pytest.raises(ConfigError, match=message):
        guide_weights_(fresh(model, geometry, **changes), model, "largest", geometry)
