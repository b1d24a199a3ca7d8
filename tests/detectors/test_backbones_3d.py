from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.backbones_3d import VoxelBackBone8x, VoxelBackBone8xConfig, VoxelResBackBone8x
from cakdp_ext.detectors.map_to_bev import HeightCompression, HeightCompressionConfig, height_to_channels
from cakdp_ext.detectors.registry import BACKBONES_3D
from cakdp_ext.detectors.sparse import SparseResidual, spconv
from cakdp_ext.detectors.voxel_features import MeanVFE, MeanVFEConfig
from cakdp_ext.types import LidarGeometry

GEOMETRY = LidarGeometry((0.0, 0.0, 0.0, 1.6, 1.2, 4.0), (0.1, 0.1, 0.1), 4)


def build(cls=VoxelBackBone8x, **settings):
    return cls(cls.Config(**settings), 4, GEOMETRY)


@pytest.fixture(params=[VoxelBackBone8x, VoxelResBackBone8x])
def backbone(request) -> VoxelBackBone8x:
    torch.manual_seed(0)
    model = build(request.param)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model


def voxels(count: int, frames: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    shape = (frames, *reversed(GEOMETRY.grid_size))
    coords = torch.stack([torch.randint(0, size, (count,), generator=random) for size in shape], dim=1).unique(dim=0)
    return torch.randn(len(coords), 4, generator=random), coords.int()


def to_dense(tensor) -> torch.Tensor:
    frame, z, y, x = tensor.indices.long().unbind(1)
    dense = torch.zeros(tensor.batch_size, *tensor.spatial_shape, tensor.features.shape[1])
    return dense.index_put((frame, z, y, x), tensor.features).permute(0, 4, 1, 2, 3)


def dense_block(block, features: torch.Tensor, active: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(block, SparseResidual):
        hidden, _ = dense_layer(block.conv1, block.bn1, features, active)
        out, _ = dense_layer(block.conv2, block.bn2, hidden.relu(), active)
        return (out + features).relu(), active
    out, active = dense_layer(block[0], block[1], features, active)
    return out.relu(), active


def dense_layer(conv, norm, features: torch.Tensor, active: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer on a dense grid: convolve, decide which cells are active, normalise those alone."""
    weight, how = conv.weight.permute(0, 4, 1, 2, 3), {"stride": tuple(conv.stride), "padding": tuple(conv.padding)}
    out = F.conv3d(features, weight, conv.bias, **how)
    if not conv.subm:
        ones = torch.ones(1, 1, *conv.kernel_size)
        active = F.conv3d(active.float(), ones, stride=tuple(conv.stride), padding=tuple(conv.padding)) > 0
    rows = out.permute(0, 2, 3, 4, 1)
    result = torch.zeros_like(rows)
    where = active[:, 0]
    result[where] = norm(rows[where])
    return result.permute(0, 4, 1, 2, 3), active


@pytest.mark.parametrize("is_training", [False, True])
def test_every_scale_agrees_with_dense_convolutions_over_active_cells(backbone, is_training):
    backbone.train(is_training)
    reference = build(type(backbone))
    reference.load_state_dict(backbone.state_dict())
    reference.train(is_training)
    features, coords = voxels(150)
    frame, z, y, x = coords.long().unbind(1)
    grid = torch.zeros(2, *backbone.spatial_shape, 4).index_put((frame, z, y, x), features).permute(0, 4, 1, 2, 3)
    active = torch.zeros(2, 1, *backbone.spatial_shape, dtype=torch.bool)
    active[frame, 0, z, y, x] = True
    with torch.no_grad():
        found = backbone(features, coords, 2)
        grid, active = dense_block(reference.conv_input, grid, active)
        for name in ("conv1", "conv2", "conv3", "conv4"):
            for block in getattr(reference, name):
                grid, active = dense_block(block, grid, active)
            scale = found.multi_scale[f"x_{name}"]
            assert len(scale.features) == int(active.sum())
            torch.testing.assert_close(to_dense(scale), grid, rtol=1e-3, atol=1e-4)
        grid, _ = dense_block(reference.conv_out, grid, active)
        torch.testing.assert_close(to_dense(found.encoded), grid, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(backbone.state_dict(), reference.state_dict(), rtol=1e-4, atol=1e-5)


def test_strides_and_channels_are_those_of_the_scales(backbone):
    found = backbone.eval()(*voxels(50), 2)
    assert found.strides == {"x_conv1": 1, "x_conv2": 2, "x_conv3": 4, "x_conv4": 8, "encoded": 8}
    tensors = {**found.multi_scale, "encoded": found.encoded}
    assert backbone.channels == {name: tensor.features.shape[1] for name, tensor in tensors.items()}
    assert backbone.num_heights == found.encoded.spatial_shape[0] == 2
    assert found.multi_scale["x_conv4"].spatial_shape == [5, 2, 2]


def test_last_pad_widens_the_last_convolution():
    assert VoxelBackBone8x(VoxelBackBone8xConfig(last_pad=1), 4, GEOMETRY).num_heights == 3


def test_residual_backbone_is_wider_at_the_end_and_has_biases_unless_told_otherwise():
    residual = build(VoxelResBackBone8x)
    assert residual.channels == {"x_conv1": 16, "x_conv2": 32, "x_conv3": 64, "x_conv4": 128, "encoded": 128}
    assert sum(p.numel() for p in residual.parameters()) == 2_695_312 - 16 * 27
    section = {"BACKBONE_3D": {"NAME": "VoxelResBackBone8x", "USE_BIAS": False}}
    without = BACKBONES_3D.build(section, 4, GEOMETRY).state_dict()
    missing = set(residual.state_dict()) - set(without)
    assert len(missing) == 16
    assert all(name.endswith(("conv1.bias", "conv2.bias")) for name in missing)


@pytest.mark.parametrize("is_training", [False, True])
def test_no_voxel_at_all_gives_an_empty_view_and_gradients_for_all(backbone, is_training):
    backbone.train(is_training)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    found = backbone(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int32), 3)
    bev = height_to_channels(found.encoded)
    bev.sum().backward()
    assert bev.shape == (3, 256, 2, 2)
    assert not bev.any()
    assert all(p.grad is not None and not p.grad.any() for p in backbone.parameters())
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


def test_a_single_voxel_trains(backbone):
    found = backbone.train()(torch.ones(1, 4), torch.tensor([[1, 20, 6, 8]], dtype=torch.int32), 2)
    found.encoded.features.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_bfloat16_autocast_leaves_the_sparse_part_in_float32(backbone):
    features, coords = voxels(80)
    backbone.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = backbone(features, coords, 2).encoded.features
    torch.testing.assert_close(found, backbone(features, coords, 2).encoded.features)


def test_height_layers_become_channels_as_in_a_dense_tensor():
    coords = torch.tensor([[0, 1, 2, 3], [0, 0, 2, 3], [1, 1, 0, 4]], dtype=torch.int32)
    features = torch.arange(9.0).view(3, 3)
    bev = height_to_channels(spconv.SparseConvTensor(features, coords, [2, 3, 5], 2))
    expected = torch.zeros(2, 6, 3, 5)
    for (frame, z, y, x), row in zip(coords.tolist(), features, strict=True):
        for channel in range(3):
            expected[frame, channel * 2 + z, y, x] = row[channel]
    torch.testing.assert_close(bev, expected, rtol=0, atol=0)


def test_bev_gradients_reach_the_voxels_they_came_from():
    coords = torch.tensor([[0, 1, 2, 3], [1, 0, 0, 4]], dtype=torch.int32)
    features = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda rows: height_to_channels(spconv.SparseConvTensor(rows, coords, [2, 3, 5], 2)), features
    )


def test_bev_is_channels_last_on_cpu_where_convolutions_are_faster_that_way(backbone):
    bev = height_to_channels(backbone.eval()(*voxels(50), 2).encoded)
    assert bev.is_contiguous(memory_format=torch.channels_last)


def test_wrong_number_of_bev_features_names_the_right_one():
    assert HeightCompression(HeightCompressionConfig(256), 128, 2).num_bev_features == 256
    with pytest.raises(ConfigError, match=r"128 channels x 2 height layers; write 256"):
        HeightCompression(HeightCompressionConfig(128), 128, 2)


def test_voxel_mean_counts_points_not_padding():
    points = torch.zeros(2, 3, 4)
    points[0, :2] = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]])
    mean = MeanVFE(MeanVFEConfig(), GEOMETRY)(points, torch.tensor([2, 0], dtype=torch.int32))
    torch.testing.assert_close(mean, torch.tensor([[2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 0.0, 0.0]]))
