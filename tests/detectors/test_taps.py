"""What a detector shows while it computes, against its own modules run one by one."""

import pytest
import torch

from cakdp_ext.detectors import build_detector
from cakdp_ext.types import Role

SHOWN = frozenset(Role) - {Role.SECOND_STAGE}
STRIDES = {"x_conv1": 1, "x_conv2": 2, "x_conv3": 4, "x_conv4": 8, "encoded": 8}


@pytest.fixture(params=["small_cfg", "small_center_cfg"])
def model(request, small_geometry, class_names):
    torch.manual_seed(2)
    return build_detector(request.getfixturevalue(request.param), class_names, small_geometry)


def test_taps_are_what_the_modules_give(model, make_batch, small_geometry):
    batch = make_batch(small_geometry)
    with torch.no_grad():
        shown = model.eval().encode(batch, SHOWN).taps
        features = model.vfe(batch.voxels, batch.voxel_num_points)
        backbone = model.backbone_3d(features, batch.voxel_coords, batch.batch_size)
        bev_map = model.map_to_bev_module(backbone.encoded)
        bev = model.backbone_2d(bev_map)
        head = model.dense_head(bev)
        predictions = model.dense_head.decode(head)
    assert torch.equal(shown.voxels.features, features)
    assert torch.equal(shown.voxels.coords, batch.voxel_coords.long())
    assert torch.equal(shown.voxels.num_points, batch.voxel_num_points.long())
    assert {name: scale.stride for name, scale in shown.sparse.items()} == STRIDES
    for name, scale in {**backbone.multi_scale, "encoded": backbone.encoded}.items():
        assert torch.equal(shown.sparse[name].features, scale.features)
        assert torch.equal(shown.sparse[name].coords, scale.indices.long())
        assert shown.sparse[name].spatial_shape == tuple(scale.spatial_shape)
        assert (shown.sparse[name].coords[:, 1:] < torch.tensor(scale.spatial_shape)).all()
    assert torch.equal(shown.bev.map, bev_map)
    assert torch.equal(shown.bev.features, bev)
    assert torch.equal(shown.dense.cls_logits, predictions.cls_logits)
    assert torch.equal(shown.dense.boxes, predictions.boxes)
    assert shown.sites.centers is model.sites.centers


def test_boxes_are_made_of_the_codes(model, make_batch, small_geometry):
    with torch.no_grad():
        shown = model.eval().encode(make_batch(small_geometry), SHOWN).taps
    values, head = shown.boxes.values, model.dense_head
    assert values.shape[:2] == shown.dense.boxes.shape[:2]
    if shown.sites.anchors is not None:
        found = head.coder.decode(values[:, :, 0], shown.sites.anchors)[..., :6]
        assert torch.equal(found, shown.dense.boxes[..., :6])
        assert shown.boxes.dir_logits.shape == (*values.shape[:2], 2)
        return
    assert sorted(name for part in shown.boxes.parts for name in part) == sorted(shown.sites.class_names)
    assert shown.boxes.dir_logits is None
    best = [shown.sites.class_names[label] for label in shown.dense.cls_logits[0].argmax(dim=1)]
    for site in range(0, values.shape[1], 7):
        part = next(number for number, names in enumerate(shown.boxes.parts) if best[site] in names)
        code = values[0, site, part]
        heading = torch.atan2(code[7], code[6])
        torch.testing.assert_close(shown.dense.boxes[0, site, 2:], torch.stack([code[2], *code[3:6].exp(), heading]))


@pytest.mark.parametrize("role", sorted(SHOWN, key=lambda role: role.value))
def test_taps_of_a_training_step_carry_its_gradient(model, make_batch, small_geometry, role):
    batch = make_batch(small_geometry)
    output = model.train()(batch)
    shown = output.tap(frozenset({role}))
    assert set(shown.by_role) == {role}
    if role is Role.VOXELS:
        assert not shown.voxels.features.requires_grad  # nothing is learned so far
        return
    tensors = {
        Role.SPARSE: lambda: [scale.features for scale in shown.sparse.values()],
        Role.BEV: lambda: [shown.bev.map, shown.bev.features],
        Role.DENSE: lambda: [shown.dense.cls_logits],
        Role.BOXES: lambda: [shown.boxes.values],
    }[role]()
    sum(value.square().sum() for value in tensors).backward()
    assert model.backbone_3d.conv_input[0].weight.grad.abs().sum() > 0
    if role is Role.DENSE:
        assert shown.dense.cls_logits is output.predictions.cls_logits
