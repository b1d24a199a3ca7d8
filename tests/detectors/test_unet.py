from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.registry import BACKBONES_3D
from cakdp_ext.detectors.sparse import InverseBlock, convolve, convolve_back, spconv
from cakdp_ext.detectors.unet import UNetV2, UNetV2Config, sum_of_groups
from cakdp_ext.types import LidarGeometry
from cakdp_ext.voxel_norm import VoxelBatchNorm1d

GEOMETRY = LidarGeometry((0.0, -0.6, -3.0, 1.6, 0.6, 1.0), (0.1, 0.1, 0.1), 4)


@pytest.fixture
def unet() -> UNetV2:
    torch.manual_seed(0)
    model = UNetV2(UNetV2Config(), 4, GEOMETRY)
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
    dense = tensor.features.new_zeros(tensor.batch_size, *tensor.spatial_shape, tensor.features.shape[1])
    return dense.index_put((frame, z, y, x), tensor.features).permute(0, 4, 1, 2, 3)


def at_voxels(dense: torch.Tensor, like) -> torch.Tensor:
    frame, z, y, x = like.indices.long().unbind(1)
    return dense[frame, :, z, y, x]


def dense_conv(conv, features: torch.Tensor, like) -> torch.Tensor:
    """A submanifold convolution by way of a dense one; ``features`` lie on the voxels of ``like``."""
    weight = conv.weight.permute(0, 4, 1, 2, 3)
    return at_voxels(F.conv3d(to_dense(like.replace_feature(features)), weight, padding=1), like)


def dense_back(conv, features: torch.Tensor, like, finer, padding: tuple[int, int, int]) -> torch.Tensor:
    """An inverse convolution by way of the transposed dense one."""
    coarse = to_dense(like.replace_feature(features))
    full = F.conv_transpose3d(coarse, conv.weight.permute(4, 0, 1, 2, 3), stride=2)
    room = [a + 2 * p - b for a, b, p in zip(finer.spatial_shape, full.shape[2:], padding, strict=True)]
    full = F.pad(full, [0, max(room[2], 0), 0, max(room[1], 0), 0, max(room[0], 0)])
    z, y, x = (slice(p, p + size) for p, size in zip(padding, finer.spatial_shape, strict=True))
    return at_voxels(full[:, :, z, y, x], finer)


def reference_decoder(unet: UNetV2, scales) -> torch.Tensor:
    """The way up as section 3.1.1 of the paper says it, every layer dense."""
    current = scales["x_conv4"].features
    for level in (4, 3, 2, 1):
        like = scales[f"x_conv{level}"]
        block, merge = getattr(unet, f"conv_up_t{level}"), getattr(unet, f"conv_up_m{level}")
        hidden = block.bn1(dense_conv(block.conv1, like.features, like)).relu()
        lateral = (block.bn2(dense_conv(block.conv2, hidden, like)) + like.features).relu()
        both = torch.cat([current, lateral], dim=1)
        merged = merge[1](dense_conv(merge[0], both, like)).relu()
        width = merged.shape[1]
        sums = torch.stack([both[:, 2 * group : 2 * group + 2].sum(dim=1) for group in range(width)], dim=1)
        current = merged + sums
        if level > 1:
            conv, norm, _ = getattr(unet, f"inv_conv{level}").children()
            finer = scales[f"x_conv{level - 1}"]
            current = norm(dense_back(conv, current, like, finer, (0, 1, 1) if level == 4 else (1, 1, 1))).relu()
    last = unet.conv5[0]
    return last[1](dense_conv(last[0], current, scales["x_conv1"])).relu()


def test_point_features_agree_with_dense_convolutions_over_active_cells(unet):
    unet.eval()
    features, coords = voxels(150)
    with torch.no_grad():
        found = unet(features, coords, 2)
        expected = reference_decoder(unet, found.multi_scale)
    assert found.points.features.std() > 0.1
    torch.testing.assert_close(found.points.features, expected, rtol=1e-3, atol=1e-4)


def test_points_are_the_centres_of_the_voxels_in_their_order(unet):
    features, coords = voxels(60)
    points = unet.eval()(features, coords, 2).points
    for row, (frame, z, y, x) in enumerate(coords.tolist()):
        assert points.frames[row] == frame
        expected = torch.tensor([0.1 * x + 0.05, 0.1 * y - 0.55, 0.1 * z - 2.95])
        torch.testing.assert_close(points.xyz[row], expected, rtol=0, atol=1e-5)
    assert points.counts(3).tolist() == [int((coords[:, 0] == frame).sum()) for frame in range(3)]
    assert points.features.shape == (len(coords), unet.num_point_features)


def test_the_way_down_is_that_of_the_plain_backbone(unet):
    plain = BACKBONES_3D.build({"BACKBONE_3D": {"NAME": "VoxelBackBone8x"}}, 4, GEOMETRY)
    shared = {name: value for name, value in unet.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(shared)
    given = voxels(80)
    found, expected = unet.eval()(*given, 2), plain.eval()(*given, 2)
    torch.testing.assert_close(found.encoded.features, expected.encoded.features)
    assert found.strides == expected.strides
    assert unet.channels == plain.channels
    assert unet.num_heights == plain.num_heights == 2
    assert expected.points is None


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_voxel_gives_points_and_gradients_for_all(unet, is_training, count):
    unet.train(is_training)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    coords = torch.tensor([[1, 20, 6, 8]], dtype=torch.int32)[:count]
    found = unet(torch.ones(count, 4), coords, 2)
    (found.points.features.sum() + found.encoded.features.sum()).backward()
    assert found.points.features.shape == (count, 16)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())
    if count == 0:
        torch.testing.assert_close(unet.state_dict(), before, rtol=0, atol=0)


def test_other_frames_change_nothing(unet):
    unet.eval()
    features, coords = voxels(100)
    first = coords[:, 0] == 0
    alone = unet(features[first], coords[first], 1).points.features
    torch.testing.assert_close(unet(features, coords, 2).points.features[first], alone)


def test_an_inverse_convolution_without_coarse_voxels_gives_zeros_at_the_fine_ones():
    """A stride-2 kernel of 3 without padding never reads the last of 6 layers."""
    down = spconv.SparseConv3d(3, 4, 3, stride=2, bias=False, indice_key="a")
    back = InverseBlock(4, 5, VoxelBatchNorm1d, "a").eval()
    last_layer = torch.tensor([[0, 5, 2, 2], [1, 5, 3, 3]], dtype=torch.int32)
    finer = spconv.SparseConvTensor(torch.ones(2, 3), last_layer, [6, 7, 7], 2)
    coarse = convolve(down, finer)
    assert len(coarse.features) == 0
    found = convolve_back(back[0], coarse, finer)
    assert torch.equal(found.features, torch.zeros(2, 5))
    assert torch.equal(found.indices, last_layer)
    out = back(coarse, finer)
    out.features.sum().backward()
    assert out.features.shape == (2, 5)
    assert all(p.grad is not None for p in back.parameters())


@pytest.mark.parametrize("is_training", [False, True])
def test_inverse_convolution_and_its_gradient_are_those_of_a_transposed_dense_one(is_training):
    torch.manual_seed(0)
    down = spconv.SparseConv3d(3, 4, 3, stride=2, padding=1, bias=False, indice_key="a")
    back = spconv.SparseInverseConv3d(4, 5, 3, bias=False, indice_key="a").train(is_training)
    _, coords = voxels(90)
    finer = spconv.SparseConvTensor(torch.randn(len(coords), 3), coords, [41, 12, 16], 2)
    coarse = convolve(down, finer)
    rows = coarse.features.detach().requires_grad_()
    expected = dense_back(back, rows, coarse, finer, (1, 1, 1))
    factors = torch.randn(len(coords), 5)
    wanted = torch.autograd.grad((expected * factors).sum(), [rows, back.weight])
    found = convolve_back(back, coarse.replace_feature(rows), finer).features
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for got, want in zip(torch.autograd.grad((found * factors).sum(), [rows, back.weight]), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_groups_are_of_neighbouring_channels():
    assert sum_of_groups(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]), 2).tolist() == [[6.0, 15.0]]


def test_bfloat16_autocast_leaves_the_decoder_in_float32(unet):
    features, coords = voxels(80)
    unet.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = unet(features, coords, 2).points.features
    torch.testing.assert_close(found, unet(features, coords, 2).points.features)


def test_a_backbone_without_a_view_from_above_is_refused():
    section = {"NAME": "UNetV2", "RETURN_ENCODED_TENSOR": False}
    with pytest.raises(ConfigError, match="RETURN_ENCODED_TENSOR must be True"):
        BACKBONES_3D.build({"BACKBONE_3D": section}, 4, GEOMETRY)
