"""Two stages with a center head in front: what it detects is judged."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from cakdp_ext.config import ConfigError, load_config
from cakdp_ext.detectors import VoxelRCNN, build_detector
from cakdp_ext.detectors.roi_heads.proposals import as_proposals
from cakdp_ext.types import Detections, LidarGeometry

ROOT = Path(__file__).resolve().parents[2]
WAYMO = LidarGeometry((-75.2, -75.2, -2.0, 75.2, 75.2, 4.0), (0.1, 0.1, 0.15), 5)


@pytest.fixture
def with_centers(center_cfg) -> dict:
    """Voxel R-CNN behind a center head, in full size."""
    teacher = load_config(ROOT / "cfgs" / "kitti" / "voxel_rcnn.yaml")["MODEL"]
    return {**center_cfg, "NAME": "VoxelRCNN", **{key: teacher[key] for key in ("ROI_HEAD", "POST_PROCESSING")}}


@pytest.fixture
def model(with_centers, small_center_cfg, small_geometry, class_names) -> VoxelRCNN:
    """The same with few channels and grid points, and a second stage that tells rois apart."""
    torch.manual_seed(0)
    cfg = {**deepcopy(with_centers), "BACKBONE_2D": small_center_cfg["BACKBONE_2D"]}
    cfg["DENSE_HEAD"] = small_center_cfg["DENSE_HEAD"]
    cfg["DENSE_HEAD"]["POST_PROCESSING"].update(SCORE_THRESH=0.0, MAX_OBJ_PER_SAMPLE=30)
    cfg["ROI_HEAD"]["ROI_GRID_POOL"]["GRID_SIZE"] = 2
    cfg["POST_PROCESSING"] = {"SCORE_THRESH": 0.0, "NMS_CONFIG": {"NMS_THRESH": 1.0}}
    built = build_detector(cfg, class_names, small_geometry)
    torch.nn.init.normal_(built.roi_head.cls_pred_layer.weight)
    return built


def test_checkpoint_is_tensor_for_tensor_that_of_openpcdet(with_centers, class_names):
    data = Path(os.environ.get("CAKDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    path = data.parent / "facts" / "state_dicts" / "voxel_rcnn_centerhead.txt"
    if not path.is_file():
        pytest.skip(f"OpenPCDet's tensor names and shapes are not at {path}; set CAKDP_SHARED_DATA")
    for layer in with_centers["ROI_HEAD"]["ROI_GRID_POOL"]["POOL_LAYERS"].values():
        layer["MLPS"] = [[64, 64]]
    model = build_detector(with_centers, class_names, WAYMO)
    found = [f"{key} {tuple(value.shape)} {str(value.dtype)[6:]}" for key, value in model.state_dict().items()]
    assert sorted(found) == sorted(filter(None, path.read_text(encoding="utf-8").split("\n")))
    assert sum(p.numel() for p in model.parameters()) == 16_749_699


def test_the_rois_are_what_the_center_head_detects(model, make_batch, small_geometry):
    """Without a mask, although this head has an IoU branch: the second stage judges all of them."""
    batch = make_batch(small_geometry, objects=8)
    with torch.no_grad():
        first = model.eval().run_first_stage(batch)
        proposals, found = model.choose_rois(first), model(batch)
        scores = model.refine(model.encode(batch), proposals.rois).sigmoid()
    assert proposals.rois.shape == (2, int(proposals.is_valid.sum(dim=1).max()), 7)
    for frame, detections in enumerate(found):
        is_valid = proposals.is_valid[frame]
        expected, order = scores[frame, is_valid, 0].sort(descending=True, stable=True)
        assert len(expected) > 10
        assert_close(detections.scores, expected)
        assert torch.equal(detections.labels, proposals.labels[frame, is_valid][order])
    assert len(set(proposals.labels[proposals.is_valid].tolist())) > 1


@pytest.mark.parametrize("empty", [(), (1,), (0, 1)], ids=["full", "one frame empty", "all frames empty"])
def test_every_parameter_gets_a_gradient(model, make_batch, small_geometry, device, empty):
    model.train().to(device)
    losses = model(make_batch(small_geometry, objects=8, empty=empty).to(device)).losses
    sum(losses.values()).backward()
    assert {"hm_loss_head_0", "loc_loss_head_1", "iou_loss", "rcnn_cls_loss", "rcnn_reg_loss"} < set(losses)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_frames_in_which_nothing_is_detected_hold_padding():
    boxes = torch.arange(14.0).view(2, 7)
    some = Detections(boxes, torch.tensor([0.9, 0.4]), torch.tensor([2, 0]))
    none = Detections(boxes[:0], some.scores[:0], some.labels[:0])
    proposals = as_proposals([none, some])
    assert proposals.is_valid.tolist() == [[False, False], [True, True]]
    assert torch.equal(proposals.rois, torch.stack([torch.zeros(2, 7), boxes]))
    assert proposals.labels.tolist() == [[0, 0], [2, 0]]
    assert as_proposals([none, none]).rois.shape == (2, 1, 7)


def test_a_score_for_several_classes_is_refused(with_centers, class_names, small_geometry):
    with_centers["POST_PROCESSING"] = {"NMS_CONFIG": {"MULTI_CLASSES_NMS": True}}
    with pytest.raises(ConfigError, match="POST_PROCESSING of a VoxelRCNN knows neither MULTI_CLASSES_NMS"):
        build_detector(with_centers, class_names, small_geometry)
