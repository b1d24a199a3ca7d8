"""PointDistiller against plain loops over its formula."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation import Distiller, FrozenTeacher, Lesson
from cakdp_ext.taps import SparseFeatures, Taps, VoxelFeatures
from cakdp_ext.types import Role
from cakdp_ext.voxel_rows import find_rows, voxel_keys

GRID, FRAMES = (9, 16, 12), 2
SHAPES = {"x_conv1": (GRID, 1), "x_conv2": ((5, 8, 6), 2), "encoded": ((2, 4, 3), 4)}
KEYS = {"num_voxels": 7, "num_neighbors": 4, "graph_channels": 6, "weight_temperature": 0.3}


def some_cells(generator, shape, share):
    """Give active cells of every frame in no order."""
    grid = torch.rand(FRAMES, *shape, generator=generator) < share
    cells = grid.nonzero()
    return cells[torch.randperm(len(cells), generator=generator)]


def coarser(coords, shape, stride):
    """Cells in which voxels lie, and some around them."""
    cells = {
        (b, z * shape[0] // GRID[0], min(y // stride + dy, shape[1] - 1), x // stride)
        for b, z, y, x in coords.tolist()
        for dy in (0, 1)
    }
    return torch.tensor(sorted(cells, key=hash), dtype=torch.int64)


class Pair:
    """What student and teacher show of two frames; the teacher lists its cells in another order and has more."""

    def __init__(self, make_sites, scale="encoded", share=0.02, without=()):
        generator = torch.Generator().manual_seed(3)
        coords = some_cells(generator, GRID, share)
        coords = coords[[row for row, voxel in enumerate(coords.tolist()) if voxel[0] not in without]]
        counts = torch.randint(1, 6, (len(coords),), generator=generator)
        self.voxels = VoxelFeatures(torch.rand(len(coords), 4, generator=generator), coords, counts)
        self.scale, shape = scale, SHAPES[scale]
        cells = coords if scale == "x_conv1" else coarser(coords, *shape).view(-1, 4)
        order = torch.randperm(len(cells), generator=generator)
        self.coords = cells, cells[order][: max(len(cells) - 3, 0)]
        self.features = [torch.randn(len(each), width, generator=generator)
                         for each, width in zip(self.coords, (5, 8), strict=True)]  # fmt: skip
        self.features[0].requires_grad_()
        self.sites = make_sites(6)

    def shown(self, side):
        shape, stride = SHAPES[self.scale]
        scales = {"x_conv1": SparseFeatures(self.voxels.features, self.voxels.coords, GRID, 1)}
        scales[self.scale] = SparseFeatures(self.features[side], self.coords[side], shape, stride)
        return Taps(self.sites, {Role.VOXELS: self.voxels, Role.SPARSE: scales})

    def distiller(self, config, make_teacher, make_boxes):
        distiller = Distiller(config, FrozenTeacher(make_teacher(self.sites, make_boxes(2, 6))))
        torch.manual_seed(8)
        distiller.each["PointDistiller"].adapt(self.shown(0), self.shown(1))
        return distiller

    def lesson(self):
        return Lesson(SimpleNamespace(batch_size=FRAMES), self.shown(0), self.shown(1), None)


@pytest.fixture
def teach(make_config, make_teacher, make_boxes):
    def run(pair, **keys):
        config = make_config(method="PointDistiller", **{**KEYS, "scale": pair.scale, **keys})
        distiller = pair.distiller(config, make_teacher, make_boxes)
        return distiller, distiller.compare(pair.lesson())

    return run


def slow_points(pair):
    """Count the points of every cell of the scale."""
    shape, stride = SHAPES[pair.scale]
    counts = {}
    for (b, z, y, x), number in zip(pair.voxels.coords.tolist(), pair.voxels.num_points.tolist(), strict=True):
        cell = (b, math.floor(z * shape[0] / GRID[0]), y // stride, x // stride)
        counts[cell] = counts.get(cell, 0) + number
    return counts


def slow_choice(pair, keys):
    """Give, frame by frame, the compared cells with their weights and neighbours."""
    counts, frames = slow_points(pair), []
    both = {tuple(cell) for cell in pair.coords[0].tolist()} & {tuple(cell) for cell in pair.coords[1].tolist()}
    for frame in range(FRAMES):
        cells = sorted(cell for cell in both if cell[0] == frame)
        cells = sorted(cells, key=lambda cell: -counts.get(cell, 0))[: keys["num_voxels"]]
        if not cells:
            continue
        largest = max(max(counts.get(cell, 0) for cell in cells), 1)
        powers = [math.exp(counts.get(cell, 0) / largest / keys["weight_temperature"]) for cell in cells]
        graphs = []
        for cell in cells:
            near = sorted(cells, key=lambda other: sum((a - b) ** 2 for a, b in zip(cell, other, strict=True)))
            near = near[: keys["num_neighbors"]]
            graphs.append(near + [cell] * (keys["num_neighbors"] - len(near)))
        frames.append((cells, [power / sum(powers) for power in powers], graphs))
    return frames


def slow_layer(layer, rows, frames):
    """Give the features of every graph: concatenate, mix, normalise over all pairs, cut off, take the largest."""
    weight = torch.cat([layer.center.weight, layer.neighbor.weight], dim=1).double()
    pairs = [[weight @ torch.cat([rows[cell], rows[other]]) + layer.center.bias.double() for other in near]
             for cells, _, graphs in frames for cell, near in zip(cells, graphs, strict=True)]  # fmt: skip
    every = torch.stack([pair for graph in pairs for pair in graph])
    mean, var = every.mean(dim=0), every.var(dim=0, unbiased=False)
    return [
        torch.stack([((pair - mean) / (var + 1e-5).sqrt()).clamp(min=0) for pair in graph]).amax(dim=0)
        for graph in pairs
    ]


def slow_loss(pair, method, keys):
    frames = slow_choice(pair, keys)
    rows = [dict(zip(map(tuple, coords.tolist()), features.detach().double(), strict=True))
            for coords, features in zip(pair.coords, pair.features, strict=True)]  # fmt: skip
    ours, theirs = (
        slow_layer(layer, each, frames)
        for layer, each in zip((method.student_graphs, method.teacher_graphs), rows, strict=True)
    )
    weights = [weight for _, each, _ in frames for weight in each]
    terms = [((a - b) ** 2).mean() * weight for a, b, weight in zip(ours, theirs, weights, strict=True)]
    return float(sum(terms).detach()) / FRAMES


@pytest.mark.parametrize("scale", SHAPES)
@pytest.mark.parametrize("changes", [{}, {"num_voxels": 3, "num_neighbors": 5}, {"weight_temperature": 2.0}])
def test_loss_follows_the_formula(make_sites, teach, scale, changes):
    pair, keys = Pair(make_sites, scale), {**KEYS, **changes}
    distiller, taught = teach(pair, alpha=0.5, **changes)
    expected = slow_loss(pair, distiller.each["PointDistiller"], keys)
    assert taught.loss.item() == pytest.approx(0.5 * expected, rel=1e-4)
    assert expected > 0.01
    assert taught.num_representatives.tolist() == [len(cells) for cells, _, _ in slow_choice(pair, keys)]


def test_gradient_reaches_the_student_and_both_layers_alone(make_sites, teach):
    pair = Pair(make_sites)
    pair.features[1].requires_grad_()
    distiller, taught = teach(pair)
    taught.loss.backward()
    compared = {cell for cells, _, _ in slow_choice(pair, KEYS) for cell in cells}
    touched = {tuple(cell) for cell, grad in zip(pair.coords[0].tolist(), pair.features[0].grad, strict=True)
               if grad.abs().sum() > 0}  # fmt: skip
    assert touched
    assert touched <= compared
    assert pair.features[1].grad is None
    assert {name.split(".")[2] for name, _ in distiller.named_parameters()} == {"student_graphs", "teacher_graphs"}
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in distiller.named_parameters() if "weight" in name)
    assert all(parameter.grad is None for parameter in distiller.teacher._module.parameters())


def test_the_same_features_under_the_same_layer_have_no_loss(make_sites, make_config, make_teacher, make_boxes):
    pair = Pair(make_sites)
    pair.coords = pair.coords[0], pair.coords[0].flip(0)
    pair.features = [pair.features[0], pair.features[0].detach().flip(0)]
    distiller = pair.distiller(make_config(method="PointDistiller", **KEYS), make_teacher, make_boxes)
    method = distiller.each["PointDistiller"]
    method.teacher_graphs.load_state_dict(method.student_graphs.state_dict())
    assert distiller.compare(pair.lesson()).loss.item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("without", [(0,), (1,), (0, 1)])
def test_frames_without_voxels_count_nothing_and_stay_connected(make_sites, teach, without):
    pair = Pair(make_sites, without=without)
    distiller, taught = teach(pair)
    full = [frame for frame in range(FRAMES) if frame not in without]
    assert [frame for frame, count in enumerate(taught.num_representatives.tolist()) if count] == full
    if full:
        expected = slow_loss(pair, distiller.each["PointDistiller"], KEYS)
        assert taught.loss.item() == pytest.approx(expected, rel=1e-4)
    taught.loss.backward()
    assert taught.loss.isfinite()
    assert pair.features[0].grad is not None
    assert all(parameter.grad is not None for parameter in distiller.parameters())


def test_a_single_voxel_has_no_variance_and_no_nan(make_sites, teach):
    pair = Pair(make_sites)
    keep = pair.coords[1][:1]
    row = find_rows(voxel_keys(pair.coords[0]), voxel_keys(keep))
    pair.coords = pair.coords[0][row], keep
    pair.features = [pair.features[0].detach()[row].requires_grad_(), pair.features[1][:1]]
    distiller, taught = teach(pair, num_neighbors=1)
    taught.loss.backward()
    assert taught.loss.isfinite()
    assert pair.features[0].grad.isfinite().all()
    assert distiller.each["PointDistiller"].student_graphs.norm.num_batches_tracked == 0


def test_voxels_that_only_one_detector_has_are_not_compared(make_sites, teach):
    pair = Pair(make_sites)
    lacking = {tuple(cell) for cell in pair.coords[0].tolist()} - {tuple(cell) for cell in pair.coords[1].tolist()}
    _, taught = teach(pair, num_voxels=1000)
    assert len(lacking) == 3
    assert int(taught.num_representatives.sum()) == len(pair.coords[0]) - 3


def test_scales_that_do_not_fit_are_refused(make_sites, teach, make_config, make_teacher, make_boxes):
    pair = Pair(make_sites)
    with pytest.raises(
        ConfigError, match="unknown SCALE 'x_conv9' of PointDistiller; the student has x_conv1, encoded"
    ):
        teach(pair, scale="x_conv9")
    with pytest.raises(ConfigError, match="SCALE voxels of PointDistiller: the student learns nothing up to there"):
        teach(pair, scale="voxels")
    distiller = pair.distiller(make_config(method="PointDistiller", **KEYS), make_teacher, make_boxes)
    ours, theirs = pair.shown(0), pair.shown(1)
    scale = replace(theirs.sparse["encoded"], spatial_shape=(2, 2, 2), stride=8)
    other = Taps(pair.sites, {**theirs.by_role, Role.SPARSE: {**theirs.sparse, "encoded": scale}})
    with pytest.raises(
        ConfigError, match="student has 2 x 4 x 3 cells of stride 4, that of the teacher 2 x 2 x 2 cells"
    ):
        distiller.each["PointDistiller"].adapt(ours, other)
    coarse = Taps(pair.sites, {**ours.by_role, Role.SPARSE: {"encoded": ours.sparse["encoded"]}})
    with pytest.raises(ConfigError, match="the student's finest scale has stride 4; let its backbone show one"):
        distiller.each["PointDistiller"].adapt(coarse, coarse)


def test_a_teacher_that_is_not_finite_is_named(make_sites, teach):
    pair = Pair(make_sites)
    pair.features[1].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="of the teacher's voxel features are NaN"):
        teach(pair)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_voxels": 0}, "NUM_VOXELS must be a whole number of at least 1, got 0"),
        ({"num_neighbors": 2.5}, "NUM_NEIGHBORS must be a whole number"),
        ({"graph_channels": 0}, "GRAPH_CHANNELS must be a whole number"),
        ({"weight_temperature": 0}, "WEIGHT_TEMPERATURE must be a finite number above 0, got 0"),
        ({"num_neighbours": 3}, "unknown key NUM_NEIGHBOURS .* NUM_VOXELS, NUM_NEIGHBORS, WEIGHT_TEMPERATURE, SCALE"),
    ],
)
def test_keys_that_make_no_sense_are_refused(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(method="PointDistiller", **changes)


def test_rows_are_found_by_coordinates():
    generator = torch.Generator().manual_seed(0)
    coords = some_cells(generator, (3, 4, 5), 0.5)
    asked = some_cells(generator, (3, 4, 5), 0.5)
    rows = {tuple(cell): row for row, cell in enumerate(coords.tolist())}
    expected = [rows.get(tuple(cell), -1) for cell in asked.tolist()]
    assert find_rows(voxel_keys(coords), voxel_keys(asked)).tolist() == expected
    assert find_rows(voxel_keys(coords[:0]), voxel_keys(asked)).tolist() == [-1] * len(asked)
    assert voxel_keys(torch.tensor([[32767, 65535, 65535, 65535]])) == 2**63 - 1
