from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext.config import ConfigError, load_config
from cakdp_ext.contract import TwoStageTeacher
from cakdp_ext.detectors import PartA2Net, build_detector
from cakdp_ext.detectors.roi_heads import part_a2_head
from cakdp_ext.types import LidarGeometry

ROOT = Path(__file__).resolve().parents[2]
WAYMO = LidarGeometry((-75.2, -75.2, -2.0, 75.2, 75.2, 4.0), (0.1, 0.1, 0.15), 5)
LOSSES = {"cls_loss", "loc_loss", "dir_loss", "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_corner_loss"} | {
    "point_cls_loss",
    "point_part_loss",
}


@pytest.fixture
def cfg() -> dict:
    """MODEL of the YAML that ships."""
    return load_config(ROOT / "cfgs" / "kitti" / "PartA2.yaml")["MODEL"]


@pytest.fixture
def small_cfg(cfg) -> dict:
    """The same with few rois, cells and widths."""
    cfg["BACKBONE_2D"].update(LAYER_NUMS=[1, 1], NUM_FILTERS=[16, 24], NUM_UPSAMPLE_FILTERS=[16, 16])
    cfg["ROI_HEAD"].update(SHARED_FC=[16, 16, 16], CLS_FC=[16, 12], REG_FC=[16, 16])
    cfg["ROI_HEAD"]["ROI_AWARE_POOL"].update(POOL_SIZE=3, NUM_FEATURES=16)
    cfg["ROI_HEAD"]["TARGET_CONFIG"]["ROI_PER_IMAGE"] = 16
    cfg["ROI_HEAD"]["NMS_CONFIG"]["TRAIN"]["NMS_POST_MAXSIZE"] = 64
    cfg["ROI_HEAD"]["NMS_CONFIG"]["TEST"]["NMS_POST_MAXSIZE"] = 20
    return cfg


@pytest.fixture
def teacher(small_cfg, small_geometry, class_names) -> PartA2Net:
    """A fresh detector whose second stage tells rois apart."""
    torch.manual_seed(0)
    model = build_detector(small_cfg, class_names, small_geometry)
    torch.nn.init.normal_(model.roi_head.cls_layers[-1].weight, std=10)
    torch.nn.init.normal_(model.roi_head.reg_layers[-1].weight, std=0.1)
    return model


def filled_rois(batch) -> torch.Tensor:
    """Rois about voxels of every frame that has one, others in the air, and one of padding."""
    rois = torch.zeros(batch.batch_size, 9, 7)
    rois[:, :8, 3:6] = torch.tensor([3.9, 2.6, 2.56])
    rois[:, :8, 6] = torch.linspace(0, 3, 8)
    for frame in range(batch.batch_size):
        coords = batch.voxel_coords[batch.voxel_coords[:, 0] == frame][:: max(1, len(batch.voxel_coords) // 16)][:8]
        rois[frame, : len(coords), :3] = coords[:, [3, 2, 1]] * 0.1 + torch.tensor([0.3, -6.5, -2.8])
    return rois


@pytest.mark.parametrize("name", ["PartA2", "PartA2_waymo"])
def test_checkpoint_is_tensor_for_tensor_that_of_openpcdet(cfg, kitti_geometry, class_names, name):
    data = Path(os.environ.get("CAKDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    path = data.parent / "facts" / "state_dicts" / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"OpenPCDet's tensor names and shapes are not at {path}; set CAKDP_SHARED_DATA")
    if name == "PartA2_waymo":
        cfg["ROI_HEAD"]["ROI_AWARE_POOL"]["POOL_SIZE"] = 10
    model = build_detector(cfg, class_names, WAYMO if name == "PartA2_waymo" else kitti_geometry)
    found = [f"{key} {tuple(value.shape)} {str(value.dtype)[6:]}" for key, value in model.state_dict().items()]
    assert found == list(filter(None, path.read_text(encoding="utf-8").split("\n")))


def test_parameters_are_as_many_as_published(cfg, kitti_geometry, class_names):
    """The paper prints 63.6 M."""
    model = build_detector(cfg, class_names, kitti_geometry)
    parts = (model, model.backbone_3d, model.point_head, model.roi_head)
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [63_814_772, 1_922_784, 68, 57_278_216]


@pytest.mark.parametrize("empty", [(), (1,), (0, 1)], ids=["full", "one frame empty", "all frames empty"])
def test_every_parameter_gets_a_gradient(teacher, make_batch, small_geometry, device, empty):
    teacher.train().to(device)
    output = teacher(make_batch(small_geometry, voxels=1500, objects=8, empty=empty).to(device))
    sum(output.losses.values()).backward()
    assert set(output.losses) == LOSSES
    assert output.predictions is None
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in output.losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in teacher.parameters())
    assert all(value.isfinite().all() for value in teacher.state_dict().values())
    assert (output.losses["point_part_loss"] > 0) == (len(empty) < 2)


def test_the_second_stage_teaches_where_parts_are_but_not_what_is_an_object(teacher, make_batch, small_geometry):
    """The score masks part locations and is pooled, without gradient; the part location is pooled with it."""
    batch = make_batch(small_geometry, voxels=1500)
    teacher.roi_head.config = replace(teacher.roi_head.config, seg_mask_score_thresh=0.0)
    view = teacher.train().look(teacher.run_first_stage(batch), batch)
    output = teacher.roi_head(view, filled_rois(batch))
    output.deltas.square().sum().backward()
    assert all(p.grad is None for p in teacher.point_head.cls_layers.parameters())
    assert all(p.grad.any() for p in teacher.point_head.part_reg_layers.parameters())
    assert teacher.backbone_3d.conv5[0][0].weight.grad.any()


def test_what_hardly_is_an_object_has_no_part(teacher, make_batch, small_geometry):
    batch = make_batch(small_geometry, voxels=1500)
    head, config, rois = teacher.eval().roi_head, teacher.roi_head.config, filled_rois(batch)
    with torch.no_grad():
        view = teacher.look(teacher.run_first_stage(batch), batch)
        median = view.said.scores.median().item()
        head.config = replace(config, seg_mask_score_thresh=median)
        parts = head._parts(view)
        masked = head(view, rois).cls_logits
        head.config = replace(config, seg_mask_score_thresh=0.0)
        assert (head(view, rois).cls_logits - masked).abs().max() > 1e-4
        head.config = replace(config, seg_mask_score_thresh=0.0, disable_part=True)
        assert_close(head._parts(view)[:, :3], view.points.xyz)
    hardly = view.said.scores < median
    assert hardly.any()
    assert not parts[hardly, :3].any()
    assert_close(parts[~hardly, :3], view.said.parts[~hardly])
    assert_close(parts[:, 3], view.said.scores)


@pytest.mark.parametrize("empty", [(), (1,), (0, 1)], ids=["full", "one frame empty", "all frames empty"])
def test_refine_says_of_the_proposals_what_detection_says(teacher, make_batch, small_geometry, device, empty):
    """Without threshold and NMS every proposal is detected, with the sigmoid of the logit that refine gives."""
    assert isinstance(teacher, TwoStageTeacher)
    teacher.eval().to(device)
    post = teacher.post_processing
    teacher.post_processing = replace(post, score_thresh=0.0, nms_config=replace(post.nms_config, nms_thresh=1.0))
    batch = make_batch(small_geometry, voxels=1500, empty=empty).to(device)
    with torch.no_grad():
        found, encoded = teacher(batch), teacher.encode(batch)
        proposals = teacher.roi_head.propose(encoded.predictions)
        scores = teacher.refine(encoded, proposals.rois).sigmoid()
    for frame, detections in enumerate(found):
        is_valid = proposals.is_valid[frame]
        expected, order = scores[frame, is_valid, 0].sort(descending=True, stable=True)
        assert len(expected) > 5
        assert_close(detections.scores, expected)
        assert_close(detections.labels, proposals.labels[frame, is_valid][order])


@pytest.mark.parametrize("at_once", [1, 5, 1000])
def test_logits_of_a_roi_do_not_depend_on_those_beside_it(teacher, make_batch, small_geometry, monkeypatch, at_once):
    teacher.eval()
    batch = make_batch(small_geometry, voxels=1500)
    with torch.no_grad():
        encoded, rois = teacher.encode(batch), filled_rois(batch)
        logits = teacher.refine(encoded, rois)
        monkeypatch.setattr(part_a2_head, "AT_ONCE", at_once)
        picked = torch.tensor([[3, 0, 7], [1, 1, 5]])
        frames = torch.arange(2)[:, None]
        padded = torch.cat([rois[frames, picked], torch.zeros(2, 2, 7)], dim=1)
        assert logits[:, :8].std() > 1e-2
        assert_close(teacher.refine(encoded, padded)[:, :3], logits[frames, picked])
        assert_close(teacher.refine(encoded, padded)[:, 3:], logits[:, 8:].expand(-1, 2, -1))
        assert teacher.refine(encoded, torch.zeros(2, 0, 7)).shape == (2, 0, 1)


def test_a_frame_alone_is_judged_as_in_company(teacher, make_batch, small_geometry):
    teacher.eval()
    batch = make_batch(small_geometry, voxels=1500)
    first = batch.voxel_coords[:, 0] == 0
    names = ("voxels", "voxel_coords", "voxel_num_points")
    alone = replace(
        batch, batch_size=1, frame_ids=batch.frame_ids[:1], gt_boxes=batch.gt_boxes[:1], gt_labels=batch.gt_labels[:1],
        **{name: getattr(batch, name)[first] for name in names},
    )  # fmt: skip
    rois = filled_rois(batch)
    with torch.no_grad():
        together = teacher.refine(teacher.encode(batch), rois)
        assert_close(teacher.refine(teacher.encode(alone), rois[:1]), together[:1], rtol=1e-4, atol=1e-5)


def test_training_on_one_batch_brings_the_losses_down_and_is_repeatable(
    small_cfg, make_batch, small_geometry, class_names
):
    small_cfg["ROI_HEAD"]["DP_RATIO"] = 0.0
    batch, histories = make_batch(small_geometry, voxels=500, objects=8), []
    for _ in range(2):
        torch.manual_seed(0)
        model = build_detector(small_cfg, class_names, small_geometry).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        history = []
        for _ in range(6):
            optimizer.zero_grad()
            losses = model(batch).losses
            sum(losses.values()).backward()
            optimizer.step()
            history.append({name: loss.item() for name, loss in losses.items()})
        histories.append(history)
    assert histories[0] == histories[1]
    first, last = histories[0][0], histories[0][-1]
    assert sum(last.values()) < 0.6 * sum(first.values())
    assert last["point_cls_loss"] < first["point_cls_loss"]
    assert last["point_part_loss"] < first["point_part_loss"]


@pytest.mark.parametrize("is_training", [True, False])
def test_autocast_leaves_logits_and_losses_in_float32(teacher, make_batch, small_geometry, device, is_training):
    teacher.train(is_training).to(device)
    batch = make_batch(small_geometry, voxels=800, objects=8).to(device)
    with torch.autocast(device, dtype=torch.bfloat16 if device == "cpu" else torch.float16):
        output = teacher(batch)
        if not is_training:
            logits = teacher.refine(teacher.encode(batch), filled_rois(batch.to("cpu")).to(device))
    if is_training:
        sum(output.losses.values()).backward()
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in output.losses.values())
        return
    assert logits.dtype == torch.float32
    assert all(detections.boxes.dtype == torch.float32 for detections in output)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("BACKBONE_3D", {"NAME": "VoxelBackBone8x"}, r"gives no point features.*MODEL.BACKBONE_3D.NAME UNetV2"),
        ("POINT_HEAD", {"NAME": "PointHead"}, "unknown POINT_HEAD NAME 'PointHead'; known.*PointIntraPartOffsetHead"),
        (
            "ROI_HEAD",
            {"NAME": "VoxelRCNNHead"},
            "VoxelRCNNHead looks at BackboneFeatures, but a PartA2Net shows PartSc",
        ),
        ("ROI_HEAD", {"CLASS_AGNOSTIC": False}, "CLASS_AGNOSTIC must be True"),
        ("ROI_HEAD", {"DISABLE_PARTS": True}, "unknown key DISABLE_PARTS in MODEL.ROI_HEAD; valid keys: "),
        ("ROI_HEAD", {"ROI_AWARE_POOL": {"POOL_SIZE": 3, "NUM_FEATURES": 5}}, "NUM_FEATURES must be even"),
    ],
)
def test_what_cannot_be_built_is_refused(small_cfg, small_geometry, class_names, section, changes, message):
    small_cfg[section].update(changes)
    with pytest.raises(ConfigError, match=message):
        build_detector(small_cfg, class_names, small_geometry)


def test_a_missing_point_head_is_named(small_cfg, small_geometry, class_names):
    del small_cfg["POINT_HEAD"]
    with pytest.raises(ConfigError, match="MODEL needs a section POINT_HEAD with a NAME"):
        build_detector(small_cfg, class_names, small_geometry)
