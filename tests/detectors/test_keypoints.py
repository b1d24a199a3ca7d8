"""Keypoints and what they gather, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext import ops
from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.keypoints.aggregation_config import BallPoolingConfig, VectorGroupConfig, VectorPoolingConfig
from cakdp_ext.detectors.keypoints.ball_pooling import BallPooling
from cakdp_ext.detectors.keypoints.sampling import SectorSamplingConfig, near_rois, sample_farthest, sample_sectors
from cakdp_ext.detectors.keypoints.vector_pooling import VectorPooling
from cakdp_ext.detectors.keypoints.voxel_set_abstraction import interpolate_map
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.row_layers import GroupedRowConv1d, RowBatchNorm1d, RowConv2d
from cakdp_ext.types import LidarGeometry

COUNTS = torch.tensor([60, 0, 40])
QUERIES = torch.tensor([7, 2, 5])


@pytest.fixture
def cloud() -> PointFeatures:
    random = torch.Generator().manual_seed(3)
    xyz = 6 * torch.rand(100, 3, generator=random) - 3
    frames = torch.arange(3).repeat_interleave(COUNTS)
    return PointFeatures(xyz, frames, torch.randn(100, 4, generator=random))


@pytest.fixture
def queries() -> torch.Tensor:
    places = 6 * torch.rand(14, 3, generator=torch.Generator().manual_seed(4)) - 3
    places[3] = 50.0  # far from everything
    return places


@pytest.fixture
def rois() -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    boxes = torch.cat([4 * torch.rand(3, 5, 3, generator=random) - 2, torch.rand(3, 5, 4, generator=random)], dim=2)
    boxes[0, 3:], boxes[2] = 0, 0
    return boxes


def frames_of(counts):
    return torch.arange(len(counts)).repeat_interleave(counts).tolist()


def is_near(point, boxes, radius):
    boxes = [box for box in boxes if box.abs().sum() > 0]
    if not boxes:
        return False
    nearest = min(boxes, key=lambda box: float((point - box[:3]).norm()))
    return float((point - nearest[:3]).norm()) < float(nearest[3:6].norm() / 2) + radius


def test_points_are_near_the_roi_whose_center_is_nearest(cloud, rois):
    found = near_rois(cloud.xyz, COUNTS, rois, 0.8)
    expected = [is_near(p, rois[f], 0.8) for p, f in zip(cloud.xyz, cloud.frames, strict=True)]
    assert found.tolist() == expected
    assert 0 < found.sum() < 60
    assert not found[60:].any()


def test_every_sector_gives_its_share_of_the_points_near_rois(cloud, rois):
    config = SectorSamplingConfig(num_sectors=4, sample_radius_with_roi=0.8)
    found = sample_sectors(cloud.xyz, COUNTS, rois, 10, config)
    near = [row for row in range(60) if is_near(cloud.xyz[row], rois[0], 0.8)]
    expected = []
    for sector in range(4):
        held = [
            row
            for row in near
            if sector <= (math.atan2(cloud.xyz[row, 1], cloud.xyz[row, 0]) + math.pi) / (math.pi / 2) < sector + 1
        ]
        number = min(len(held), math.ceil(len(held) / len(near) * 10))
        chosen = ops.farthest_point_sampling(cloud.xyz[held][None], number)[0] if held else []
        expected += [held[index] for index in chosen]
    assert found.tolist() == [*expected, 60]  # the frame without rois keeps its first point
    assert 10 <= len(expected) <= 14


def test_farthest_points_are_chosen_frame_by_frame_and_repeat_where_there_are_few(cloud):
    rows = sample_farthest(cloud.xyz, COUNTS, 50)
    assert cloud.frames[rows].tolist() == [0] * 50 + [2] * 50
    assert len(rows[:50].unique()) == 50
    assert torch.equal(rows[90:], rows[50:60])


def test_a_map_is_interpolated_between_the_lower_corners_of_its_cells():
    random = torch.Generator().manual_seed(0)
    bev = torch.randn(2, 3, 4, 5, generator=random, requires_grad=True)
    x, y = 7 * torch.rand(40, generator=random) - 1, 6 * torch.rand(40, generator=random) - 1
    frames = torch.arange(40) % 2
    found = interpolate_map(bev, frames, x, y)
    for row, (frame, u, v) in enumerate(zip(frames.tolist(), x.tolist(), y.tolist(), strict=True)):
        i, j = math.floor(u), math.floor(v)
        expected = torch.zeros(3)
        if 0 <= i < 4 and 0 <= j < 3:
            corners = bev[frame, :, j : j + 2, i : i + 2]
            weights = torch.outer(torch.tensor([1 - v + j, v - j]), torch.tensor([1 - u + i, u - i]))
            expected = (corners * weights).sum(dim=(1, 2))
        assert_close(found[row], expected)
    found.sum().backward()
    assert bev.grad.sum() > 0
    assert interpolate_map(bev, frames[:0], x[:0], y[:0]).shape == (0, 3)


def gather(module, cloud, queries):
    return module.eval()(cloud, queries, QUERIES)


def test_balls_pool_the_largest_response_of_their_points(cloud, queries):
    torch.manual_seed(0)
    module = BallPooling(4, BallPoolingConfig(((6, 5), (4,)), (1.0, 2.0), (3, 8)))
    found = gather(module, cloud, queries)
    assert found.shape == (14, module.out_channels) == (14, 9)
    for row, frame in enumerate(frames_of(QUERIES)):
        pooled = []
        for mlp, radius, size in zip(module.mlps, (1.0, 2.0), (3, 8), strict=True):
            held = [
                i for i in range(100) if cloud.frames[i] == frame and (cloud.xyz[i] - queries[row]).norm() < radius
            ][:size]
            rows = [torch.cat([cloud.xyz[i] - queries[row], cloud.features[i]]) for i in held] or [torch.zeros(7)]
            pooled.append(mlp(torch.stack(rows)).amax(dim=0))
        assert_close(found[row], torch.cat(pooled), atol=1e-5, rtol=1e-5)


def vectors(kind, samples=-1):
    torch.manual_seed(0)
    groups = (VectorGroupConfig((2, 1, 3), 1.5, (6,), samples), VectorGroupConfig((2, 2, 2), 2.5, (5, 4), samples))
    return VectorPooling(4, VectorPoolingConfig(2, kind, 3, (7,), groups, num_reduced_channels=2), "here")


@pytest.mark.parametrize("kind", ["local_interpolation", "voxel_avg_pool", "voxel_random_choice"])
@pytest.mark.parametrize("samples", [-1, 9])
def test_cells_describe_the_surroundings(cloud, queries, kind, samples):
    module = vectors(kind, samples).eval()
    read = {
        "local_interpolation": by_nearest,
        "voxel_avg_pool": lambda *args: by_cell(*args[:3], args[3], None),
        "voxel_random_choice": lambda *args: by_cell(*args[:3], None, 1),
    }[kind]
    found = gather(module, cloud, queries)
    folded = cloud.features[:, :2] + cloud.features[:, 2:]
    for row, frame in enumerate(frames_of(QUERIES)):
        own = cloud.frames == frame
        points, features = cloud.xyz[own] - queries[row], folded[own]
        described = [queries[row]]
        for space in (module.layer_0, module.layer_1):
            cells = read(points, features, space.group, samples if samples > 0 else None)
            described.append(space.post_mlps(space.separate_local_aggregation_layer(cells[None]))[0])
        assert_close(found[row], module.msg_post_mlps(torch.cat(described)[None])[0], atol=1e-4, rtol=1e-4)


def centers_of(group):
    reach = group.max_neighbor_distance
    axes = [[(2 * i + 1) * reach / n - reach for i in range(n)] for n in group.num_local_voxel]
    return [torch.tensor([x, y, z]) for x in axes[0] for y in axes[1] for z in axes[2]]


def by_nearest(points, features, group, samples):
    held = [i for i in range(len(points)) if points[i].abs().max() <= 2 * group.max_neighbor_distance][:samples]
    cells = []
    for center in centers_of(group):
        near = sorted(held, key=lambda i: float((points[i] - center).norm()))[:3]
        if not near:
            cells.append(torch.zeros(11))
            continue
        near += near[:1] * (3 - len(near))
        closeness = torch.stack([1 / ((points[i] - center).norm() + 1e-8) for i in near])
        value = sum(w * features[i] for w, i in zip(closeness / closeness.sum(), near, strict=True))
        cells.append(torch.cat([value, *(center - points[i] for i in near)]))
    return torch.stack(cells)


def by_cell(points, features, group, samples, most):
    reach, shape = group.max_neighbor_distance, group.num_local_voxel
    held = [i for i in range(len(points)) if points[i].abs().max() <= reach][:samples]
    members = {}
    for i in held:
        cell = tuple(min(int((points[i, a] + reach) / (2 * reach / n)), n - 1) for a, n in enumerate(shape))
        members.setdefault(cell, []).append(i)
    cells = []
    for cell in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        rows = members.get(tuple(cell), [])[:most]
        both = [torch.cat([points[i], features[i]]) for i in rows]
        cells.append(torch.stack(both).mean(dim=0) if both else torch.zeros(5))
    return torch.stack(cells)


@pytest.mark.parametrize("kind", ["balls", "local_interpolation", "voxel_avg_pool", "voxel_random_choice"])
def test_nothing_may_be_gathered_and_nothing_asked(cloud, queries, kind):
    module = BallPooling(4, BallPoolingConfig(((5,),), (1.0,), (3,))) if kind == "balls" else vectors(kind)
    nothing = cloud.where(cloud.frames < 0)
    found = gather(module, nothing, queries)
    assert found.isfinite().all()
    assert module(cloud, queries[:0], torch.zeros(3, dtype=torch.int64)).shape == (0, module.out_channels)
    features = cloud.features.clone().requires_grad_()
    module.train()(PointFeatures(cloud.xyz, cloud.frames, features), queries, QUERIES).square().sum().backward()
    assert features.grad.abs().sum() > 0


def test_channels_that_cannot_be_folded_are_refused():
    config = VectorPoolingConfig(1, "voxel_avg_pool", 3, (7,), (VectorGroupConfig((1, 1, 1), 1.0, (6,)),), 2)
    with pytest.raises(ConfigError, match="NUM_REDUCED_CHANNELS 2 of here must divide the source's 5 channels"):
        VectorPooling(5, config, "here")


def test_rows_are_convolved_as_pixels_are():
    torch.manual_seed(0)
    rows = torch.randn(9, 6)
    flat, grouped = RowConv2d(6, 4), GroupedRowConv1d(3, 2, 5)
    expected = torch.nn.functional.conv2d(rows.t()[None, :, :, None], flat.weight)[0, :, :, 0].t()
    assert_close(flat(rows), expected)
    expected = torch.nn.functional.conv1d(rows.t()[None], grouped.weight, groups=3)[0].t()
    assert_close(grouped(rows.view(9, 3, 2)), expected)


def test_norm_of_many_rows_keeps_its_precision():
    """PyTorch's own over the rows of a matrix is wrong by 5e-3 here."""
    torch.manual_seed(0)
    rows = torch.zeros(100_000, 8)
    rows[:2000] = torch.randn(2000, 8) / 2 + 3
    norm = RowBatchNorm1d(8)
    expected = torch.nn.functional.batch_norm(rows.double(), None, None, training=True)
    assert_close(norm(rows).double(), expected, atol=1e-5, rtol=0)
    assert norm.eval()(rows[:1]).shape == (1, 8)
    assert norm.train()(rows[:1]).isfinite().all()


def test_voxels_become_points_at_their_centers_frame_after_frame():
    geometry = LidarGeometry((0.0, -8.0, -3.0, 16.0, 8.0, 1.0), (0.5, 0.5, 0.25))
    coords = torch.tensor([[1, 0, 1, 2], [0, 3, 2, 1], [1, 0, 0, 0]])
    points = PointFeatures.of_voxels(coords, torch.arange(3.0)[:, None], 2, geometry)
    assert points.frames.tolist() == [0, 1, 1]
    assert points.features.flatten().tolist() == [1, 0, 2]
    assert_close(points.xyz, torch.tensor([[1.5, -5.5, -1.25], [2.5, -6.5, -2.75], [0.5, -7.5, -2.75]]))
