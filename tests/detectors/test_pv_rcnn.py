"""PV-RCNN and PV-RCNN++ as detectors and as teachers."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext.config import ConfigError, load_config, merge
from cakdp_ext.contract import TwoStageTeacher
from cakdp_ext.detectors import build_detector
from cakdp_ext.types import Batch, LidarGeometry

ROOT = Path(__file__).resolve().parents[2]
WAYMO = LidarGeometry((-75.2, -75.2, -2.0, 75.2, 75.2, 4.0), (0.1, 0.1, 0.15), 5)
NAMES = ("PVRCNN", "PVRCNNPlusPlus")
EMPTY = pytest.mark.parametrize("empty", [(), (1,), (0, 1)], ids=["full", "one frame empty", "all frames empty"])


def full_cfg(name: str, classes=("Car", "Pedestrian", "Cyclist")) -> dict:
    """MODEL of the YAMLs that ship."""
    if name == "PVRCNN":
        return load_config(ROOT / "cfgs" / "kitti" / "pv_rcnn.yaml")["MODEL"]
    cfg = load_config(ROOT / "cfgs" / "models" / "pv_rcnn_plusplus.yaml")
    del cfg["CONFIG_FILE"]
    cfg.DENSE_HEAD.CLASS_NAMES_EACH_HEAD = [list(classes)]
    return cfg


def small_cfg(name: str) -> dict:
    """The same with few keypoints, rois, grid points and widths."""
    changes = {
        "BACKBONE_2D": {"LAYER_NUMS": [1, 1], "NUM_FILTERS": [16, 24], "NUM_UPSAMPLE_FILTERS": [16, 16]},
        "PFE": {"NUM_KEYPOINTS": 64, "NUM_OUTPUT_FEATURES": 30},
        "POINT_HEAD": {"CLS_FC": [16]},
        "ROI_HEAD": {
            "SHARED_FC": [16, 16],
            "CLS_FC": [16, 12],
            "REG_FC": [16, 16],
            "ROI_GRID_POOL": {"GRID_SIZE": 2},
            "TARGET_CONFIG": {"ROI_PER_IMAGE": 16},
            "NMS_CONFIG": {"TRAIN": {"NMS_POST_MAXSIZE": 64}, "TEST": {"NMS_POST_MAXSIZE": 20}},
        },
        "POST_PROCESSING": {"SCORE_THRESH": 0.0, "NMS_CONFIG": {"NMS_THRESH": 1.0}},
    }
    if name == "PVRCNNPlusPlus":
        limits = {"SCORE_THRESH": 0.0, "MAX_OBJ_PER_SAMPLE": 25, "POST_CENTER_LIMIT_RANGE": [0, -6.4, -3, 16, 6.4, 1]}
        changes["DENSE_HEAD"] = {"SHARED_CONV_CHANNEL": 12, "POST_PROCESSING": limits}
        changes["PFE"]["SA_LAYER"] = {"raw_points": {"NUM_REDUCED_CHANNELS": 1}}
    return merge(full_cfg(name), changes)


@pytest.fixture(params=NAMES)
def model(request, small_geometry, class_names):
    """A fresh detector whose second stage tells rois apart."""
    torch.manual_seed(0)
    built = build_detector(small_cfg(request.param), class_names, small_geometry)
    torch.nn.init.normal_(built.roi_head.cls_layers[-1].weight)
    torch.nn.init.normal_(built.roi_head.reg_layers[-1].weight, std=0.1)
    return built


@pytest.fixture
def frames(make_batch, small_geometry):
    """Make a batch with points in its objects and anywhere; frames named in ``empty`` hold nothing."""

    def make(empty=(), objects=8, seed=0) -> Batch:
        batch = make_batch(small_geometry, objects=objects, empty=empty, seed=seed)
        random = torch.Generator().manual_seed(seed)
        low, high = torch.tensor(small_geometry.point_cloud_range).split(3)
        points = [torch.zeros(0, 5)]
        for frame in set(range(2)) - set(empty):
            boxes = batch.gt_boxes[frame, batch.gt_labels[frame] >= 0]
            inside = boxes[:, None, :3] + (torch.rand(len(boxes), 30, 3, generator=random) - 0.5) * boxes[:, None, 3:6]
            anywhere = low + torch.rand(300, 3, generator=random) * (high - low)
            xyz = torch.cat([inside.flatten(0, 1), anywhere])
            index, strength = torch.full((len(xyz), 1), float(frame)), torch.rand(len(xyz), 1, generator=random)
            points.append(torch.cat([index, xyz, strength], dim=1))
        return replace(batch, points=torch.cat(points))

    return make


def rois_of(batch: Batch) -> torch.Tensor:
    """Boxes near the objects of the batch, ``(B, 6, 7)``, none of them zero."""
    moved = batch.gt_boxes[:, :6] + 0.1
    moved[..., 3:6] += 0.3
    return moved


@pytest.mark.parametrize(
    ("name", "changes", "file", "count"),
    [
        ("PVRCNN", {}, "pv_rcnn", 13_115_697),
        ("PVRCNN", {"PFE": {"FEATURES_SOURCE": ["bev", "x_conv3", "x_conv4", "raw_points"]}}, "pv_rcnn_waymo", None),
        ("PVRCNNPlusPlus", {}, "pv_rcnn_plusplus", 14_114_680),
        (
            "PVRCNNPlusPlus",
            {"BACKBONE_3D": {"NAME": "VoxelResBackBone8x"}},
            "pv_rcnn_plusplus_resnet",
            16_097_688,
        ),
    ],
)
def test_checkpoint_is_tensor_for_tensor_that_of_openpcdet(name, changes, file, count, kitti_geometry, class_names):
    geometry = kitti_geometry if file == "pv_rcnn" else WAYMO
    model = build_detector(merge(full_cfg(name), changes), class_names, geometry)
    assert count in (None, sum(p.numel() for p in model.parameters()))
    data = Path(os.environ.get("CAKDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    path = data.parent / "facts" / "state_dicts" / f"{file}.txt"
    if not path.is_file():
        pytest.skip(f"OpenPCDet's tensor names and shapes are not at {path}; set CAKDP_SHARED_DATA")
    found = [f"{key} {tuple(value.shape)} {str(value.dtype)[6:]}" for key, value in model.state_dict().items()]
    assert found == list(filter(None, path.read_text(encoding="utf-8").split("\n")))


@EMPTY
def test_every_parameter_gets_a_gradient(model, frames, device, empty):
    model.train().to(device)
    losses = model(frames(empty).to(device)).losses
    sum(losses.values()).backward()
    assert {"point_cls_loss", "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_corner_loss"} < set(losses)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in model.state_dict().values())


@EMPTY
def test_refine_says_of_the_proposals_what_detection_says(model, frames, device, empty):
    """Without threshold and NMS every proposal is detected, with the sigmoid of the logit that refine gives."""
    model.eval().to(device)
    batch = frames(empty).to(device)
    with torch.no_grad():
        found, encoded = model(batch), model.encode(batch)
        proposals = model.propose(encoded)
        scores = model.refine(encoded, proposals.rois).sigmoid()
    for frame, detections in enumerate(found):
        is_valid = proposals.is_valid[frame]
        expected, order = scores[frame, is_valid, 0].sort(descending=True, stable=True)
        assert len(expected) > 5
        assert_close(detections.scores, expected)
        assert_close(detections.labels, proposals.labels[frame, is_valid][order])


def test_padding_does_no_harm(model, frames):
    assert isinstance(model.eval(), TwoStageTeacher)
    batch = frames()
    rois = rois_of(batch)
    with torch.no_grad():
        encoded = model.encode(batch)
        logits = model.refine(encoded, rois)
        padded = model.refine(encoded, torch.cat([rois, torch.zeros(2, 3, 7)], dim=1))
        assert logits.std() > 1e-3
        assert_close(padded[:, :6], logits)
        assert padded.isfinite().all()
        assert model.refine(encoded, torch.zeros(2, 4, 7)).isfinite().all()
        assert model.refine(encoded, rois[:, :0]).shape == (2, 0, 1)


def test_other_frames_do_not_matter(model, frames):
    batch = frames()
    alone = replace(
        frames(empty=(1,)), gt_boxes=batch.gt_boxes, gt_labels=batch.gt_labels
    )  # frame 0 has the same voxels and points
    rois = rois_of(batch)
    model.eval()
    with torch.no_grad():
        together, single = (model.refine(model.encode(each), rois) for each in (batch, alone))
    assert torch.equal(batch.points[batch.points[:, 0] == 0], alone.points)
    assert_close(together[0], single[0], atol=1e-4, rtol=1e-4)
    assert (together[1] - single[1]).abs().max() > 1e-3


def test_logits_depend_on_the_rois_beside_them_only_where_keypoints_do(model, frames):
    batch = frames()
    rois = rois_of(batch)
    model.eval()
    with torch.no_grad():
        encoded = model.encode(batch)
        logits, few = model.refine(encoded, rois), model.refine(encoded, rois[:, :1])
    assert_close(model.refine(encoded, rois.flip(1)).flip(1), logits, atol=1e-5, rtol=1e-4)
    is_alone = torch.allclose(few, logits[:, :1], atol=1e-5)
    assert is_alone == (type(model).__name__ == "PVRCNN")


@pytest.mark.parametrize("is_training", [True, False])
def test_autocast_runs_and_leaves_logits_and_losses_in_float32(model, frames, is_training):
    model.train(is_training)
    batch = frames()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if is_training:
            losses = model(batch).losses
        else:
            logits = model.refine(model.encode(batch), rois_of(batch))
    if is_training:
        sum(losses.values()).backward()
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        return
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def train(model, batch, steps):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(model(batch).losses.values())
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_training_brings_the_loss_down_and_repeats_itself(model, frames):
    again, batch = deepcopy(model), frames()
    history = train(model, batch, 8)
    assert min(history[-2:]) < 0.8 * history[0]
    assert train(again, batch, 2) == history[:2]


def test_point_head_finds_the_points_of_objects(model, frames):
    batch = frames()
    history = [out["point_cls_loss"].item() for out in point_losses(model, batch)]
    assert history[-1] < 0.6 * history[0]


def point_losses(model, batch):
    optimizer = torch.optim.Adam([*model.pfe.parameters(), *model.point_head.parameters()], lr=2e-2)
    first = model.eval().run_first_stage(batch)
    model.train()
    for _ in range(12):
        optimizer.zero_grad()
        losses = model.view_losses(model.focus(model.look(detached(first), batch), rois_of(batch)), batch)
        losses["point_cls_loss"].backward()
        optimizer.step()
        yield losses


def detached(first):
    scales = {k: v.replace_feature(v.features.detach()) for k, v in first.backbone.multi_scale.items()}
    backbone = replace(first.backbone, multi_scale=scales)
    return SimpleNamespace(backbone=backbone, bev_map=first.bev_map.detach())


def test_a_batch_without_its_points_is_refused(model, make_batch, small_geometry):
    with pytest.raises(ValueError, match=r"batch has none; set DATA_CONFIG\.KEEP_POINTS: True"):
        model.eval()(make_batch(small_geometry))


def test_voxel_centers_may_stand_for_raw_points(make_batch, small_geometry, class_names):
    cfg = small_cfg("PVRCNN")
    cfg["PFE"].update(POINT_SOURCE="voxel_centers", FEATURES_SOURCE=["x_conv3", "x_conv4"])
    model = build_detector(cfg, class_names, small_geometry)
    found = model.eval()(make_batch(small_geometry, empty=(1,)))
    assert [len(each.scores) > 5 for each in found] == [True, True]
    assert not hasattr(model.pfe, "SA_rawpoints")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("PVRCNN", {"PFE": {"SAMPLE_METHOD": "SPC"}}, "SAMPLE_METHOD SPC needs SPC_SAMPLING"),
        ("PVRCNN", {"PFE": {"SAMPLE_METHOD": "RANDOM"}}, "SAMPLE_METHOD must be one of FPS, SPC"),
        ("PVRCNN", {"PFE": {"POINT_SOURCE": "images"}}, "POINT_SOURCE must be one of raw_points, voxel_centers"),
        (
            "PVRCNN",
            {"PFE": {"FEATURES_SOURCE": ["x_conv5"]}},
            r"names x_conv5; this detector has x_conv1, .*raw_points",
        ),
        ("PVRCNN", {"PFE": {"SA_LAYER": {"x_conv3": {"DOWNSAMPLE_FACTOR": 2}}}}, "the backbone's stride there is 4"),
        (
            "PVRCNN",
            {"PFE": {"SA_LAYER": {"x_conv3": {"RADIUS": 2}}}},
            "unknown key RADIUS in MODEL.PFE.SA_LAYER.x_conv3",
        ),
        ("PVRCNN", {"PFE": {"SA_LAYER": {"x_conv3": {"NSAMPLE": [16]}}}}, "one entry a radius each"),
        ("PVRCNN", {"PFE": {"SA_LAYER": {"x_conv3": {"NAME": "Attention"}}}}, "known names: StackSAModuleMSG, Vector"),
        (
            "PVRCNN",
            {"PFE": {"SA_LAYER": {"x_conv3": {"FILTER_NEIGHBOR_WITH_ROI": True, "RADIUS_OF_NEIGHBOR_WITH_ROI": 2.0}}}},
            "PVRCNN cannot depend on rois; make MODEL.NAME PVRCNNPlusPlus",
        ),
        (
            "PVRCNN",
            {"ROI_HEAD": {"NAME": "VoxelRCNNHead"}},
            "VoxelRCNNHead looks at BackboneFeatures, but a PVRCNN shows",
        ),
        ("PVRCNN", {"POINT_HEAD": {"CLS_FCS": []}}, "unknown key CLS_FCS in MODEL.POINT_HEAD"),
        ("PVRCNN", {"PFE": None}, "MODEL needs a section PFE with a NAME"),
        (
            "PVRCNNPlusPlus",
            {"PFE": {"SA_LAYER": {"x_conv3": {"LOCAL_AGGREGATION_TYPE": "max"}}}},
            "LOCAL_AGGREGATION_TYPE must be one of local_interpolation, voxel_avg_pool, voxel_random_choice",
        ),
        ("PVRCNNPlusPlus", {"PFE": {"SA_LAYER": {"x_conv3": {"NUM_GROUPS": 3}}}}, "NUM_GROUPS is 3, but 2 GROUP_CFG"),
        ("PVRCNNPlusPlus", {"PFE": {"SA_LAYER": {"x_conv3": {"GROUP_CFG_7": {}}}}}, "number them GROUP_CFG_0, "),
        (
            "PVRCNNPlusPlus",
            {"ROI_HEAD": {"ROI_GRID_POOL": {"NUM_REDUCED_CHANNELS": 7}}},
            "NUM_REDUCED_CHANNELS 7 of MODEL.ROI_HEAD.ROI_GRID_POOL must divide",
        ),
        (
            "PVRCNNPlusPlus",
            {"ROI_HEAD": {"ROI_GRID_POOL": {"GROUP_CFG_0": {"NEIGHBOR_NSAMPLE": 8}}}},
            "NEIGHBOR_NSAMPLE 8 would leave some of the 27 cells out",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(name, changes, said, small_geometry, class_names):
    with pytest.raises(ConfigError, match=said):
        build_detector(merge(small_cfg(name), changes), class_names, small_geometry)
