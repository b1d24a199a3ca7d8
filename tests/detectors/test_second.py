from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from easydict import EasyDict

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import OneStageStudent
from cakdp_ext.detectors import SECONDNet, build_detector
from cakdp_ext.detectors.post_processing import detect
from cakdp_ext.detectors.registry import BACKBONES_2D, DETECTORS, Registry
from cakdp_ext.types import LidarGeometry

ROOT = Path(__file__).resolve().parents[2]
IOU_LOSSES = {"cls_loss", "loc_loss", "dir_loss", "iou_loss"}


def state_dict_facts(name: str) -> list[str]:
    data = Path(os.environ.get("CAKDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    path = data.parent / "facts" / "state_dicts" / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"OpenPCDet's tensor names and shapes are not at {path}; set CAKDP_SHARED_DATA")
    return path.read_text(encoding="utf-8").split("\n")


@pytest.fixture
def student(small_cfg, small_geometry, class_names) -> SECONDNet:
    torch.manual_seed(0)
    return build_detector(small_cfg, class_names, small_geometry)


@pytest.mark.parametrize(
    ("name", "geometry"),
    [
        ("second", LidarGeometry((0.0, -40.0, -3.0, 70.4, 40.0, 1.0), (0.05, 0.05, 0.1), 4)),
        ("second_waymo", LidarGeometry((-75.2, -75.2, -2.0, 75.2, 75.2, 4.0), (0.1, 0.1, 0.15), 5)),
    ],
)
def test_checkpoint_is_tensor_for_tensor_that_of_openpcdet(second_cfg, class_names, name, geometry):
    facts = state_dict_facts(name)
    model = build_detector(second_cfg, class_names, geometry)
    found = [f"{key} {tuple(value.shape)} {str(value.dtype)[6:]}" for key, value in model.state_dict().items()]
    assert sorted(found) == sorted(filter(None, facts))


def test_parameters_are_as_many_as_published(second_cfg, class_names, kitti_geometry):
    model = build_detector(second_cfg, class_names, kitti_geometry)
    counts = {
        part: sum(p.numel() for p in module.parameters())
        for part, module in {"all": model, **dict(model.named_children())}.items()
    }
    assert counts == {
        "all": 5_325_576,
        "vfe": 0,
        "backbone_3d": 711_872,
        "map_to_bev_module": 0,
        "backbone_2d": 4_576_768,
        "dense_head": 36_936,
    }


def test_the_grid_is_openpcdets_200_by_176_cells_of_6_anchors(second_cfg, class_names, kitti_geometry):
    model = build_detector(second_cfg, class_names, kitti_geometry)
    assert model.backbone_3d.spatial_shape == [41, 1600, 1408]
    assert len(model.sites.anchors) == 200 * 176 * 6


@pytest.mark.parametrize("empty", [(), (1,), (0, 1)], ids=["full", "one frame empty", "all frames empty"])
def test_every_parameter_gets_a_gradient(student, make_batch, small_geometry, device, empty):
    """Without one, a distributed run waits for ever for the rank that saw nothing."""
    student.train().to(device)
    batch = make_batch(small_geometry, objects=8, empty=empty).to(device)
    output = student(batch)
    sum(output.losses.values()).backward()
    assert set(output.losses) == IOU_LOSSES
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in output.losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert all(value.isfinite().all() for value in student.state_dict().values())


@pytest.mark.parametrize("empty", [(), (1,), (0, 1)])
def test_evaluation_gives_detections_for_every_frame(student, make_batch, small_geometry, device, empty):
    student.eval().to(device)
    with torch.no_grad():
        student.dense_head.conv_cls.bias.fill_(1.0)
        student.dense_head.conv_iou.bias.fill_(1.0)
        found = student(make_batch(small_geometry, empty=empty).to(device))
    assert len(found) == 2
    for detections in found:
        assert 0 < len(detections.scores) <= 500
        assert (detections.scores.diff() <= 0).all()
        assert set(detections.labels.tolist()) <= {0, 1, 2}


def test_dense_predictions_in_training_are_those_of_the_losses(student, make_batch, small_geometry):
    assert isinstance(student, OneStageStudent)
    batch = make_batch(small_geometry)
    student.train()
    state = deepcopy(student.state_dict())
    from_losses = student(batch).predictions
    student.load_state_dict(state)
    alone = student.predict_dense(batch)
    for name in ("cls_logits", "boxes", "iou_logits"):
        torch.testing.assert_close(getattr(from_losses, name), getattr(alone, name))
    assert alone.cls_logits.requires_grad
    assert not alone.boxes.requires_grad


def test_evaluation_is_postprocessing_of_dense_predictions(student, make_batch, small_geometry):
    batch = make_batch(small_geometry)
    student.eval()
    with torch.no_grad():
        student.dense_head.conv_cls.bias.fill_(1.0)
        student.dense_head.conv_iou.bias.fill_(1.0)
        expected = detect(student.predict_dense(batch), student.post_processing)
        found = student(batch)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes)
        torch.testing.assert_close(one.scores, other.scores)


def test_a_frame_does_not_depend_on_those_beside_it(student, make_batch, small_geometry):
    both = make_batch(small_geometry)
    only_second = both.voxel_coords[:, 0] == 1
    coords = both.voxel_coords[only_second].clone()
    coords[:, 0] = 0
    alone = type(both)(
        1,
        both.voxels[only_second],
        coords,
        both.voxel_num_points[only_second],
        both.gt_boxes[1:],
        both.gt_labels[1:],
        both.frame_ids[1:],
    )
    student.eval()
    with torch.no_grad():
        together, single = student.predict_dense(both), student.predict_dense(alone)
    torch.testing.assert_close(together.boxes[1], single.boxes[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.cls_logits[1], single.cls_logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
def test_autocast_runs_and_leaves_predictions_and_losses_in_float32(
    student, make_batch, small_geometry, device, is_training
):
    student.train(is_training).to(device)
    batch = make_batch(small_geometry, objects=8).to(device)
    dtype = torch.bfloat16 if device == "cpu" else torch.float16
    with torch.autocast(device, dtype=dtype):
        predictions = student.predict_dense(batch)
        output = student(batch)
    assert predictions.cls_logits.dtype == predictions.boxes.dtype == predictions.iou_logits.dtype == torch.float32
    if is_training:
        sum(output.losses.values()).backward()
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in output.losses.values())
        assert all(p.grad is not None for p in student.parameters())


def test_training_on_one_batch_brings_the_loss_down(student, make_batch, small_geometry):
    batch = make_batch(small_geometry, objects=5, voxels=200)
    optimizer = torch.optim.Adam(student.train().parameters(), lr=3e-3)
    history = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sum(student(batch).losses.values())
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


def test_the_configuration_is_neither_changed_nor_shared(small_cfg, small_geometry, class_names):
    cfg = EasyDict(small_cfg)
    before = deepcopy(cfg)
    model = build_detector(cfg, class_names, small_geometry)
    assert cfg == before
    cfg.DENSE_HEAD.NUM_DIR_BINS = 7
    assert model.model_cfg.DENSE_HEAD.NUM_DIR_BINS == 2


def test_sections_of_the_engine_change_nothing_in_the_detector(small_cfg, small_geometry, class_names):
    plain = build_detector(small_cfg, class_names, small_geometry)
    small_cfg.update(NAME="SECONDNetCaKDP", DISTILL={"ALPHA": 1.0}, PRUNING={"KEEP_RATIO": 0.5})
    named = build_detector(small_cfg, class_names, small_geometry)
    assert type(named) is type(plain) is SECONDNet
    named.load_state_dict(plain.state_dict())


def test_checkpoints_hold_the_step_counter(student):
    assert student.state_dict()["global_step"].shape == (1,)
    assert student.state_dict()["global_step"].dtype == torch.int64


def change(cfg: dict, dotted: str, value) -> dict:
    *parents, leaf = dotted.split(".")
    node = cfg
    for name in parents:
        node = node[name]
    node[leaf] = value
    return cfg


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("NAME", "SECOND", "unknown MODEL NAME 'SECOND'; known names: .*SECONDNet, SECONDNetCaKDP"),
        ("VFE", None, "MODEL needs a section VFE with a NAME, got None"),
        ("BACKBONE_3D.NAME", "VoxelResBackBone", "unknown BACKBONE_3D NAME 'VoxelResBackBone'; known.*VoxelBackBone8x"),
        ("BACKBONE_2D.LAYER_NUM", [1], "unknown key LAYER_NUM in MODEL.BACKBONE_2D; valid keys: LAYER_NUMS"),
        ("MAP_TO_BEV.NUM_BEV_FEATURES", 128, "write 256"),
        ("BACKBONE_2D.LAYER_STRIDES", [2, 2], "feature_map_stride of the dense head is 8, .* stride 16"),
        ("POINT_HEAD", {"NAME": "PointHeadSimple"}, "SECONDNet has no use for MODEL.POINT_HEAD"),
        ("POST_PROCESSING.NMS_CONFIG.NMS_TYPE", "soft", "NMS_TYPE must be one of"),
        ("DENSE_HEAD.NAME", "AnchorHeadSingle", "unknown key IOU_HEAD"),
    ],
)
def test_what_cannot_be_built_is_refused(small_cfg, small_geometry, class_names, dotted, value, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(change(small_cfg, dotted, value), class_names, small_geometry)


def test_refinement_without_an_iou_branch_is_refused(second_cfg, small_geometry, class_names):
    second_cfg["POST_PROCESSING"]["IOU_REFINEMENT"] = {"MODE": "mask", "DELTA": 0.1}
    with pytest.raises(ConfigError, match="AnchorHeadSingle predicts no IoU; use AnchorHeadSingleIoU or CenterH"):
        build_detector(second_cfg, class_names, small_geometry)
    second_cfg["POST_PROCESSING"]["IOU_REFINEMENT"] = {"MODE": "none"}
    build_detector(second_cfg, class_names, small_geometry)


def test_a_detector_without_classes_is_refused(small_cfg, small_geometry):
    with pytest.raises(ConfigError, match="CLASS_NAMES is empty"):
        build_detector(small_cfg, (), small_geometry)


def test_keys_are_read_in_either_case(small_cfg, small_geometry, class_names):
    """OpenPCDet itself reads ``last_pad`` in lower case from a section that is otherwise in upper case."""
    small_cfg["BACKBONE_3D"]["last_pad"] = 1
    small_cfg["MAP_TO_BEV"]["NUM_BEV_FEATURES"] = None
    with pytest.raises(ConfigError, match="unknown key LASTPAD"):
        build_detector(change(deepcopy(small_cfg), "BACKBONE_3D.lastpad", 1), class_names, small_geometry)
    model = build_detector(small_cfg, class_names, small_geometry)
    assert model.backbone_3d.conv_out[0].padding == [1, 1, 1]


def test_a_registered_name_is_not_taken_over():
    registry = Registry("SLOT")

    @registry.register("Mine")
    class Mine:
        pass

    assert registry.register("Mine")(Mine) is Mine
    with pytest.raises(ValueError, match="SLOT 'Mine' is .*Mine already"):
        registry.register("Mine")(type("Other", (), {}))
    assert registry.find("Mine") is Mine


def test_modules_from_outside_are_built_by_name(monkeypatch, small_cfg, small_geometry, class_names):
    monkeypatch.setattr(BACKBONES_2D, "_classes", dict(BACKBONES_2D._classes))

    @BACKBONES_2D.register("HalvedBackbone")
    class HalvedBackbone(BACKBONES_2D.find("BaseBEVBackbone")):
        def forward(self, bev):
            return super().forward(bev) / 2

    small_cfg["BACKBONE_2D"]["NAME"] = "HalvedBackbone"
    model = DETECTORS.find("SECONDNet")(small_cfg, class_names, small_geometry)
    assert type(model.backbone_2d) is HalvedBackbone
