from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.detectors.roi_heads.roi_config import GridPoolConfig, PoolLayerConfig
from cakdp_ext.detectors.roi_heads.voxel_pooling import GridPoints, NeighborVoxelPooling, VoxelSource
from cakdp_ext.types import LidarGeometry

NODE = {
    "MLPS": [[8, 6], [5, 7]],
    "QUERY_RANGES": [[1, 2, 3], [4, 4, 4]],
    "POOL_RADIUS": [0.9, 1.6],
    "NSAMPLE": [4, 16],
    "POOL_METHOD": "max_pool",
}
GEOMETRY = LidarGeometry((30.0, -2.0, -3.0, 34.0, 2.0, 1.0), (0.1, 0.1, 0.2))
STRIDE, SHAPE, CHANNELS = 2, (10, 20, 20), 3


def sparse_map(voxels_of_frames: list[int], seed: int = 0) -> SimpleNamespace:
    """What pooling needs of a ``SparseConvTensor``; the voxels are in no order."""
    random = torch.Generator().manual_seed(seed)
    coords = torch.zeros(0, 4, dtype=torch.int64)
    for frame, count in enumerate(voxels_of_frames):
        cells = torch.randperm(int(np.prod(SHAPE)), generator=random)[:count]
        z, y, x = np.unravel_index(cells.numpy(), SHAPE)
        own = torch.stack([torch.full((count,), frame), *map(torch.from_numpy, (z, y, x))], dim=1)
        coords = torch.cat([coords, own])
    coords = coords[torch.randperm(len(coords), generator=random)].int()
    features = torch.randn(len(coords), CHANNELS, generator=random)
    return SimpleNamespace(
        features=features, indices=coords, spatial_shape=list(SHAPE), batch_size=len(voxels_of_frames)
    )


def grid_points(count: int, frames: int, seed: int = 1) -> GridPoints:
    """Points in and around the range, so that some have no neighbour at all."""
    random = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(GEOMETRY.point_cloud_range[:3]), torch.tensor(GEOMETRY.point_cloud_range[3:])
    xyz = low - 1.5 + torch.rand(count, 3, generator=random) * (high - low + 3)
    return GridPoints(xyz, torch.arange(count) % frames)


def pooling(**changes) -> NeighborVoxelPooling:
    torch.manual_seed(2)
    layer = NeighborVoxelPooling(CHANNELS, from_node(PoolLayerConfig, {**NODE, **changes}, "POOL_LAYERS.x"))
    for norm in (m for m in layer.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, std=0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias, std=0.5)
    return layer


def source_of(sparse: SimpleNamespace) -> VoxelSource:
    return VoxelSource.from_sparse(sparse, STRIDE, GEOMETRY)


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def lift(rows: np.ndarray, layers: nn.Sequential, training: bool) -> np.ndarray:
    """A 1x1 convolution and its norm on rows ``(..., C)``."""
    conv, norm = layers[0], layers[1]
    rows = rows @ numpy_of(conv.weight).reshape(conv.out_channels, -1).T
    axes = tuple(range(rows.ndim - 1))
    mean = rows.mean(axes) if training else numpy_of(norm.running_mean)
    variance = rows.var(axes) if training else numpy_of(norm.running_var)
    return (rows - mean) / np.sqrt(variance + norm.eps) * numpy_of(norm.weight) + numpy_of(norm.bias)


def neighbours_by_looking_at_every_cell(sparse, points, scale) -> tuple[np.ndarray, np.ndarray]:
    """Voxel rows ``(Q, S)``, -1 for none, and positions seen from the point ``(Q, S, 3)``, by three nested loops."""
    rows = {tuple(coords): row for row, coords in enumerate(sparse.indices.tolist())}
    size, low = np.array(GEOMETRY.voxel_size) * STRIDE, np.array(GEOMETRY.point_cloud_range[:3])
    num_samples, radius = NODE["NSAMPLE"][scale], NODE["POOL_RADIUS"][scale]
    index = np.full((len(points.xyz), num_samples), -1)
    offsets = np.zeros((*index.shape, 3))
    for query, (xyz, frame) in enumerate(zip(numpy_of(points.xyz), points.frames.tolist(), strict=True)):
        x0, y0, z0 = np.floor((xyz - low) / size).astype(int)
        found = []
        rz, ry, rx = NODE["QUERY_RANGES"][scale]
        for z in range(z0 - rz, z0 + rz + 1):
            for y in range(y0 - ry, y0 + ry + 1):
                for x in range(x0 - rx, x0 + rx + 1):
                    offset = (np.array([x, y, z]) + 0.5) * size + low - xyz
                    if (frame, z, y, x) in rows and offset @ offset <= radius**2:
                        found.append((rows[frame, z, y, x], offset))
        if found:
            taken = (found[:num_samples] + [found[0]] * num_samples)[:num_samples]
            index[query], offsets[query] = [row for row, _ in taken], [offset for _, offset in taken]
    return index, offsets


def slow_pooling(layer: NeighborVoxelPooling, sparse, points) -> np.ndarray:
    method = np.max if layer.config.pool_method == "max_pool" else np.mean
    outputs = []
    for scale in range(len(layer.mlps_in)):
        index, offsets = neighbours_by_looking_at_every_cell(sparse, points, scale)
        features = lift(numpy_of(sparse.features), layer.mlps_in[scale], layer.training)
        grouped = np.where(index[..., None] >= 0, features[index], 0.0)
        responses = np.maximum(grouped + lift(offsets, layer.mlps_pos[scale], layer.training), 0.0)
        pooled = lift(method(responses, axis=1), layer.mlps_out[scale], layer.training)
        outputs.append(np.maximum(pooled, 0.0))
    return np.concatenate(outputs, axis=1)


@pytest.mark.parametrize("method", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_pooling_is_what_nested_loops_find(training, method):
    sparse, points = sparse_map([250, 120]), grid_points(120, frames=2)
    layer = pooling(POOL_METHOD=method).train(training)
    expected = slow_pooling(layer, sparse, points)
    empty = (neighbours_by_looking_at_every_cell(sparse, points, 0)[0][:, 0] < 0).mean()
    assert 0.2 < empty < 0.8
    assert_close(numpy_of(layer(source_of(sparse), points)), expected, rtol=1e-4, atol=2e-5)


def test_evaluation_far_from_the_origin_is_as_exact_as_beside_it():
    """Positions of voxels and grid points are lifted apart, and nearly cancel."""
    far = LidarGeometry((1000.0, -2.0, -3.0, 1004.0, 2.0, 1.0), GEOMETRY.voxel_size)
    sparse, points, layer = sparse_map([300]), grid_points(100, frames=1), pooling().eval()
    moved = GridPoints(points.xyz + torch.tensor([970.0, 0.0, 0.0]), points.frames)
    near = layer(source_of(sparse), points)
    assert_close(layer(VoxelSource.from_sparse(sparse, STRIDE, far), moved), near, rtol=1e-3, atol=2e-3)


def test_gradients_in_evaluation_are_those_of_the_plain_form():
    """Pooling by the mean lays every sample out; with one sample a grid point the largest is the mean."""
    sparse, points = sparse_map([250]), grid_points(60, frames=1)
    gradients = []
    for method in ("max_pool", "avg_pool"):
        layer = pooling(POOL_METHOD=method, NSAMPLE=[1, 1]).eval()
        sparse.features = sparse.features.detach().requires_grad_()
        layer(source_of(sparse), points).square().sum().backward()
        gradients.append({"features": sparse.features.grad, **{n: p.grad for n, p in layer.named_parameters()}})
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("voxels", [[0, 0], [1, 0]], ids=["no voxel", "one voxel"])
def test_hardly_any_voxels_are_pooled_and_leave_the_statistics_of_features_alone(voxels, training):
    sparse, points, layer = sparse_map(voxels), grid_points(40, frames=2), pooling().train(training)
    before = [norm.running_mean.clone() for _, norm in layer.mlps_in]
    pooled = layer(source_of(sparse), points)
    pooled.sum().backward()
    assert pooled.shape == (40, 13)
    assert pooled.isfinite().all()
    assert_close([norm.running_mean for _, norm in layer.mlps_in], before)
    if training:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_grid_point_without_neighbours_pools_nothing_at_no_distance():
    layer, nowhere = pooling().eval(), GridPoints(torch.full((1, 3), 500.0), torch.zeros(1, dtype=torch.int64))
    expected = []
    for scale in range(2):
        position = lift(np.zeros((1, 3)), layer.mlps_pos[scale], training=False)
        expected.append(np.maximum(lift(np.maximum(position, 0), layer.mlps_out[scale], training=False), 0))
    pooled = layer(source_of(sparse_map([100])), nowhere)
    assert_close(numpy_of(pooled), np.concatenate(expected, axis=1), rtol=1e-5, atol=1e-5)


def test_no_grid_points_pool_nothing():
    points = GridPoints(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert pooling()(source_of(sparse_map([5])), points).shape == (0, 13)


def test_voxels_and_points_are_located_in_the_same_cells():
    source = source_of(sparse_map([50, 50]))
    points = GridPoints(source.centers, source.coords[:, 0].long())
    assert torch.equal(source.locate(points), source.coords.long())
    corner = GridPoints(torch.tensor([[29.99, -2.01, -3.01]]), torch.tensor([0]))
    assert source.locate(corner).tolist() == [[0, -1, -1, -1]]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MLPS", [[8, 6]], "one entry a scale each"),
        ("MLPS", [[8], [5]], r"each entry of MLPS must be two widths, got \[\[8\], \[5\]\]"),
        ("QUERY_RANGES", [4, 4], r"each entry of QUERY_RANGES must be a reach in z, y and x, got \[4, 4\]"),
        ("POOL_METHOD", "sum_pool", "POOL_METHOD must be max_pool or avg_pool, got 'sum_pool'"),
    ],
)
def test_unusable_settings_are_refused(key, value, message):
    grid = {"FEATURES_SOURCE": ["x_conv3"], "GRID_SIZE": 6, "POOL_LAYERS": {"x_conv3": {**NODE, key: value}}}
    with pytest.raises(ConfigError, match=message):
        from_node(GridPoolConfig, grid, "ROI_GRID_POOL")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FEATURES_SOURCE", ["x_conv3", "x_conv4"], "POOL_LAYERS has no entry for x_conv4 of FEATURES_SOURCE"),
        ("FEATURES_SOURCE", [], "FEATURES_SOURCE must name at least one"),
        ("GRID_SIZE", 0, "GRID_SIZE must be at least 1"),
    ],
)
def test_a_grid_without_sources_is_refused(key, value, message):
    grid = {"FEATURES_SOURCE": ["x_conv3"], "GRID_SIZE": 6, "POOL_LAYERS": {"x_conv3": NODE}, key: value}
    with pytest.raises(ConfigError, match=message):
        from_node(GridPoolConfig, grid, "ROI_GRID_POOL")
