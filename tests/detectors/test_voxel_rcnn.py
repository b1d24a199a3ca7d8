from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from easydict import EasyDict
from torch.testing import assert_close

from cakdp_ext import ops
from cakdp_ext.config import ConfigError
from cakdp_ext.contract import TwoStageTeacher
from cakdp_ext.detectors import VoxelRCNN, build_detector
from cakdp_ext.detectors.roi_heads import Proposals, RoiOutput, RoiTargets, VoxelRCNNHead
from cakdp_ext.detectors.roi_heads.roi_frame import at_origin
from cakdp_ext.types import Batch

ROOT = Path(__file__).resolve().parents[2]
LOSSES = {"cls_loss", "loc_loss", "dir_loss", "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_corner_loss"}


def roi_head_cfg() -> dict:
    """ROI_HEAD as OpenPCDet's KITTI configuration of Voxel R-CNN has it."""
    layer = {"MLPS": [[32, 32]], "QUERY_RANGES": [[4, 4, 4]], "NSAMPLE": [16], "POOL_METHOD": "max_pool"}
    nms = {"NMS_TYPE": "nms_gpu", "MULTI_CLASSES_NMS": False}
    return {
        "NAME": "VoxelRCNNHead",
        "CLASS_AGNOSTIC": True,
        "SHARED_FC": [256, 256],
        "CLS_FC": [256, 256],
        "REG_FC": [256, 256],
        "DP_RATIO": 0.3,
        "NMS_CONFIG": {
            "TRAIN": {**nms, "NMS_PRE_MAXSIZE": 9000, "NMS_POST_MAXSIZE": 512, "NMS_THRESH": 0.8},
            "TEST": {
                **nms,
                "USE_FAST_NMS": False,
                "SCORE_THRESH": 0.0,
                "NMS_PRE_MAXSIZE": 2048,
                "NMS_POST_MAXSIZE": 100,
                "NMS_THRESH": 0.7,
            },
        },
        "ROI_GRID_POOL": {
            "FEATURES_SOURCE": ["x_conv2", "x_conv3", "x_conv4"],
            "PRE_MLP": True,
            "GRID_SIZE": 6,
            "POOL_LAYERS": {
                "x_conv2": {**layer, "POOL_RADIUS": [0.4]},
                "x_conv3": {**layer, "POOL_RADIUS": [0.8]},
                "x_conv4": {**layer, "POOL_RADIUS": [1.6]},
            },
        },
        "TARGET_CONFIG": {
            "BOX_CODER": "ResidualCoder",
            "ROI_PER_IMAGE": 128,
            "FG_RATIO": 0.5,
            "SAMPLE_ROI_BY_EACH_CLASS": True,
            "CLS_SCORE_TYPE": "roi_iou",
            "CLS_FG_THRESH": 0.75,
            "CLS_BG_THRESH": 0.25,
            "CLS_BG_THRESH_LO": 0.1,
            "HARD_BG_RATIO": 0.8,
            "REG_FG_THRESH": 0.55,
        },
        "LOSS_CONFIG": {
            "CLS_LOSS": "BinaryCrossEntropy",
            "REG_LOSS": "smooth-l1",
            "CORNER_LOSS_REGULARIZATION": True,
            "GRID_3D_IOU_LOSS": False,
            "LOSS_WEIGHTS": {
                "rcnn_cls_weight": 1.0,
                "rcnn_reg_weight": 1.0,
                "rcnn_corner_weight": 1.0,
                "rcnn_iou3d_weight": 1.0,
                "code_weights": [1.0] * 7,
            },
        },
    }


@pytest.fixture
def voxel_rcnn_cfg(second_cfg) -> dict:
    """Three classes on SECOND's wide 2D backbone: the teacher of the paper."""
    second_cfg.update(NAME="VoxelRCNN", ROI_HEAD=roi_head_cfg())
    return second_cfg


@pytest.fixture
def small_teacher_cfg(small_cfg) -> dict:
    """The same second stage with few rois, grid points and widths, on a small first stage without IoU branch."""
    head = roi_head_cfg()
    head.update(SHARED_FC=[16, 16], CLS_FC=[16, 12], REG_FC=[16, 16])
    head["ROI_GRID_POOL"]["GRID_SIZE"] = 2
    head["TARGET_CONFIG"]["ROI_PER_IMAGE"] = 16
    head["NMS_CONFIG"]["TRAIN"]["NMS_POST_MAXSIZE"] = 64
    head["NMS_CONFIG"]["TEST"]["NMS_POST_MAXSIZE"] = 20
    small_cfg["DENSE_HEAD"]["NAME"] = "AnchorHeadSingle"
    del small_cfg["DENSE_HEAD"]["IOU_HEAD"]
    small_cfg.update(NAME="VoxelRCNN", ROI_HEAD=head)
    return small_cfg


@pytest.fixture
def teacher(small_teacher_cfg, small_geometry, class_names) -> VoxelRCNN:
    """A fresh detector whose second stage tells rois apart."""
    torch.manual_seed(0)
    model = build_detector(small_teacher_cfg, class_names, small_geometry)
    torch.nn.init.normal_(model.roi_head.cls_pred_layer.weight)
    torch.nn.init.normal_(model.roi_head.reg_pred_layer.weight, std=0.1)
    return model


def shift_detections(model: VoxelRCNN, score_thresh: float, nms_thresh: float) -> None:
    post = model.post_processing
    model.post_processing = replace(
        post, score_thresh=score_thresh, nms_config=replace(post.nms_config, nms_thresh=nms_thresh)
    )


def test_checkpoint_is_tensor_for_tensor_that_of_openpcdet(voxel_rcnn_cfg, kitti_geometry):
    data = Path(os.environ.get("CAKDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    path = data.parent / "facts" / "state_dicts" / "voxel_rcnn_car.txt"
    if not path.is_file():
        pytest.skip(f"OpenPCDet's tensor names and shapes are not at {path}; set CAKDP_SHARED_DATA")
    model = build_detector(car_only(voxel_rcnn_cfg), ("Car",), kitti_geometry)
    found = [f"{key} {tuple(value.shape)} {str(value.dtype)[6:]}" for key, value in model.state_dict().items()]
    assert sorted(found) == sorted(filter(None, path.read_text(encoding="utf-8").split("\n")))


def car_only(cfg: dict) -> dict:
    cfg["BACKBONE_2D"].update(NUM_FILTERS=[64, 128], NUM_UPSAMPLE_FILTERS=[128, 128])
    cfg["DENSE_HEAD"]["ANCHOR_GENERATOR_CONFIG"] = cfg["DENSE_HEAD"]["ANCHOR_GENERATOR_CONFIG"][:1]
    return cfg


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_as_many_as_published(voxel_rcnn_cfg, class_names, kitti_geometry):
    """The paper prints 11.0 M for three classes; OpenPCDet's detector of cars has 7,586,620."""
    three = build_detector(voxel_rcnn_cfg, class_names, kitti_geometry)
    assert count(three) == 10_975_856
    one = build_detector(car_only(voxel_rcnn_cfg), ("Car",), kitti_geometry)
    assert (count(one), count(one.roi_head)) == (7_586_620, 5_650_280)


@pytest.mark.parametrize("empty", [(), (1,), (0, 1)], ids=["full", "one frame empty", "all frames empty"])
def test_every_parameter_gets_a_gradient(teacher, make_batch, small_geometry, device, empty):
    teacher.train().to(device)
    output = teacher(make_batch(small_geometry, objects=8, empty=empty).to(device))
    sum(output.losses.values()).backward()
    assert set(output.losses) == LOSSES
    assert output.predictions is None
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in output.losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in teacher.parameters())
    assert all(value.isfinite().all() for value in teacher.state_dict().values())


def test_frames_without_objects_have_no_box_losses(teacher, make_batch, small_geometry):
    batch = make_batch(small_geometry)
    nothing = replace(batch, gt_boxes=torch.zeros(2, 0, 7), gt_labels=torch.zeros(2, 0, dtype=torch.int64))
    losses = teacher.train()(nothing).losses
    assert losses["rcnn_reg_loss"] == losses["rcnn_corner_loss"] == 0
    assert losses["rcnn_cls_loss"] > 0


def test_frames_without_rois_have_no_second_stage_losses(teacher, make_batch, small_geometry):
    phases = teacher.roi_head.config.nms_config
    strict = replace(phases, train=replace(phases.train, score_thresh=1.0))
    teacher.roi_head.config = replace(teacher.roi_head.config, nms_config=strict)
    losses = teacher.train()(make_batch(small_geometry)).losses
    assert all(losses[name] == 0 for name in LOSSES if name.startswith("rcnn"))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in teacher.parameters())


@pytest.mark.parametrize("empty", [(), (1,), (0, 1)], ids=["full", "one frame empty", "all frames empty"])
def test_refine_says_of_the_proposals_what_detection_says(teacher, make_batch, small_geometry, device, empty):
    """Without threshold and NMS every proposal is detected, with the sigmoid of the logit that refine gives."""
    teacher.eval().to(device)
    shift_detections(teacher, score_thresh=0.0, nms_thresh=1.0)
    batch = make_batch(small_geometry, empty=empty).to(device)
    with torch.no_grad():
        found = teacher(batch)
        encoded = teacher.encode(batch)
        proposals = teacher.roi_head.propose(encoded.predictions)
        scores = teacher.refine(encoded, proposals.rois).sigmoid()
    for frame, detections in enumerate(found):
        is_valid = proposals.is_valid[frame]
        expected, order = scores[frame, is_valid, 0].sort(descending=True, stable=True)
        assert len(expected) > 5
        assert_close(detections.scores, expected)
        assert_close(detections.labels, proposals.labels[frame, is_valid][order])


def test_logits_of_a_roi_do_not_depend_on_those_beside_it(teacher, make_batch, small_geometry):
    teacher.eval()
    with torch.no_grad():
        encoded = teacher.encode(make_batch(small_geometry))
        rois = teacher.roi_head.propose(encoded.predictions).rois
        logits = teacher.refine(encoded, rois)
        picked = torch.tensor([[3, 0, 7], [1, 1, 9]])
        frames = torch.arange(2)[:, None]
        padded = torch.cat([rois[frames, picked], torch.zeros(2, 2, 7)], dim=1)
        assert logits.std() > 1e-3
        assert_close(teacher.refine(encoded, padded)[:, :3], logits[frames, picked])
        assert teacher.refine(encoded, padded).isfinite().all()


def test_no_rois_give_no_logits(teacher, make_batch, small_geometry):
    teacher.eval()
    encoded = teacher.encode(make_batch(small_geometry))
    assert teacher.refine(encoded, torch.zeros(2, 0, 7)).shape == (2, 0, 1)


def test_encoding_a_scene_does_not_propose(teacher, make_batch, small_geometry, monkeypatch):
    """Distillation needs neither proposals nor NMS, which cost more than the rest of the second stage."""
    assert isinstance(teacher, TwoStageTeacher)
    monkeypatch.setattr(ops, "nms", lambda *_, **__: pytest.fail("encode ran NMS"))
    teacher.eval()
    batch = make_batch(small_geometry)
    encoded = teacher.encode(batch)
    assert_close(encoded.predictions.boxes, teacher.predict_dense(batch).boxes)
    assert encoded.predictions.boxes.shape[1] == len(teacher.sites.anchors)


def test_its_own_rois_are_those_of_an_evaluation_and_know_their_anchors(teacher, make_batch, small_geometry):
    batch, judged = make_batch(small_geometry), []
    teacher.eval().roi_head.register_forward_hook(lambda _, args, output: judged.append((args[1], output.cls_logits)))
    with torch.no_grad():
        teacher(batch)
        encoded = teacher.encode(batch)
        found = teacher.propose(encoded)
        logits = teacher.refine(encoded, found.rois)
    (rois, expected), _ = judged
    assert_close(found.rois, rois)
    assert_close(logits, expected)
    assert found.is_valid.sum() > 5
    for frame, slot in found.is_valid.nonzero().tolist():
        anchor = found.indices[frame, slot]
        assert_close(found.rois[frame, slot], encoded.predictions.boxes[frame, anchor])
        assert found.labels[frame, slot] == encoded.predictions.cls_logits[frame, anchor].argmax()
    with pytest.raises(RuntimeError, match="rois of an evaluation"):
        teacher.train().propose(encoded)


def test_refined_boxes_move_with_the_roi(teacher):
    """A residual of one BEV diagonal along the roi's x axis and a quarter turn, at a roi that looks along +y."""
    head = teacher.roi_head
    roi = torch.tensor([[[10.0, 5.0, -1.0, 4.0, 3.0, 1.5, torch.pi / 2]]])
    deltas = torch.tensor([[[1.0, 0.0, 2.0, 0.0, 0.6931472, 0.0, 0.5]]])
    output = RoiOutput(torch.zeros(1, 1, 1), deltas)
    expected = torch.tensor([[[10.0, 10.0, 2.0, 4.0, 6.0, 1.5, torch.pi / 2 + 0.5]]])
    assert_close(head.decode(output, roi), expected)


def jittered_objects(head: VoxelRCNNHead, batch: Batch) -> tuple[RoiOutput, RoiTargets]:
    """Targets of rois that lie about the objects, and an output that knows nothing."""
    jitter = 0.05 * torch.randn(batch.gt_boxes.shape, generator=torch.Generator().manual_seed(0))
    labels = batch.gt_labels
    proposals = Proposals(batch.gt_boxes + jitter, torch.ones(labels.shape), labels.clamp(min=0), labels >= 0)
    torch.manual_seed(0)
    targets = head.sample(proposals, batch)
    assert targets.is_foreground.any()
    return RoiOutput(torch.zeros(2, 16, 1), torch.zeros(2, 16, 7)), targets


def test_losses_vanish_for_a_second_stage_that_is_right(teacher, make_batch, small_geometry):
    head, batch = teacher.roi_head, make_batch(small_geometry, objects=6)
    _, targets = jittered_objects(head, batch)
    deltas = head.coder.encode(targets.boxes, at_origin(targets.rois))
    right = RoiOutput(torch.logit(targets.cls_targets, 1e-6).unsqueeze(-1), deltas)
    losses = head.losses(right, targets)
    assert losses["rcnn_reg_loss"].item() == pytest.approx(0, abs=1e-9)
    assert losses["rcnn_corner_loss"].item() == pytest.approx(0, abs=1e-9)
    refined = head.decode(right, targets.rois)
    for boxes, is_foreground, objects in zip(refined, targets.is_foreground, batch.gt_boxes, strict=True):
        overlaps = ops.iou_3d(boxes[is_foreground], objects[:4]).amax(dim=1)
        assert_close(overlaps, torch.ones_like(overlaps), rtol=1e-4, atol=1e-4)


def test_weights_scale_their_losses(teacher, make_batch, small_geometry):
    batch, head, config = make_batch(small_geometry, objects=8), teacher.roi_head, teacher.roi_head.config
    output, targets = jittered_objects(head, batch)
    losses = []
    for factor in (1.0, 3.0):
        weights = replace(
            config.loss_config.loss_weights,
            rcnn_cls_weight=factor,
            rcnn_reg_weight=2 * factor,
            rcnn_corner_weight=4 * factor,
        )
        head.config = replace(config, loss_config=replace(config.loss_config, loss_weights=weights))
        losses.append(head.losses(output, targets))
    for name, loss in losses[0].items():
        assert loss > 0
        assert_close(losses[1][name], 3 * loss)


def test_padding_is_never_detected(teacher, make_batch, small_geometry):
    """Zero-sized rois get scores too, maybe the best."""
    teacher.eval()
    shift_detections(teacher, score_thresh=0.0, nms_thresh=1.0)
    phases = teacher.roi_head.config.nms_config
    few = replace(phases, test=replace(phases.test, nms_pre_maxsize=4))
    teacher.roi_head.config = replace(teacher.roi_head.config, nms_config=few)
    with torch.no_grad():
        found = teacher(make_batch(small_geometry))
    assert all(1 <= len(detections.scores) <= 4 for detections in found)
    assert all((detections.boxes[:, 3:6] > 0.1).all() for detections in found)


def test_detections_keep_to_threshold_and_nms(teacher, make_batch, small_geometry):
    teacher.eval()
    shift_detections(teacher, score_thresh=0.5, nms_thresh=0.1)
    with torch.no_grad():
        found = teacher(make_batch(small_geometry))
    assert sum(len(detections.scores) for detections in found) > 2
    for detections in found:
        assert (detections.scores >= 0.5).all()
        assert (detections.scores.diff() <= 0).all()
        overlaps = ops.iou_bev(detections.boxes, detections.boxes).fill_diagonal_(0)
        assert (overlaps <= 0.1 + 1e-6).all()


def test_the_same_seed_samples_the_same_rois(teacher, make_batch, small_geometry):
    batch, head = make_batch(small_geometry, objects=8), teacher.roi_head
    with torch.no_grad():
        proposals = head.train().propose(teacher.eval().predict_dense(batch))
    rois = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        rois.append(head.sample(proposals, batch).rois)
    assert torch.equal(rois[0], rois[1])
    assert not torch.equal(rois[0], rois[2])


@pytest.mark.parametrize("is_training", [True, False])
def test_autocast_runs_and_leaves_logits_and_losses_in_float32(
    teacher, make_batch, small_geometry, device, is_training
):
    teacher.train(is_training).to(device)
    batch = make_batch(small_geometry, objects=8).to(device)
    dtype = torch.bfloat16 if device == "cpu" else torch.float16
    with torch.autocast(device, dtype=dtype):
        output = teacher(batch)
        if not is_training:
            encoded = teacher.encode(batch)
            rois = teacher.roi_head.propose(encoded.predictions).rois
            logits = teacher.refine(encoded, rois)
    if is_training:
        sum(output.losses.values()).backward()
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in output.losses.values())
        assert all(p.grad is not None for p in teacher.parameters())
        return
    assert all(detections.boxes.dtype == torch.float32 for detections in output)
    assert logits.dtype == torch.float32
    assert_close(logits, teacher.refine(encoded, rois), rtol=0.1, atol=0.1)


def test_training_on_one_batch_brings_the_second_stages_losses_down(teacher, make_batch, small_geometry):
    batch, head = make_batch(small_geometry, objects=8), teacher.roi_head
    with torch.no_grad():
        encoded = teacher.eval().encode(batch)
    _, targets = jittered_objects(head, batch)
    optimizer = torch.optim.Adam(head.train().parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = sum(head.losses(head(encoded.features.seen, targets.rois), targets).values())
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


def test_refine_in_training_mode_is_refused(teacher, make_batch, small_geometry):
    encoded = teacher.train().encode(make_batch(small_geometry))
    with pytest.raises(RuntimeError, match="refine judges in eval mode only"):
        teacher.refine(encoded, torch.zeros(2, 1, 7))


@pytest.mark.parametrize("shape", [(2, 7), (1, 3, 7), (2, 3, 8)])
def test_rois_of_another_shape_are_refused(teacher, make_batch, small_geometry, shape):
    encoded = teacher.eval().encode(make_batch(small_geometry))
    with pytest.raises(ValueError, match=r"rois must have shape \(2, K, 7\)"):
        teacher.refine(encoded, torch.zeros(shape))


def test_the_configuration_is_not_changed_however_often_it_is_built(small_teacher_cfg, small_geometry, class_names):
    """OpenPCDet's head lengthens its MLPS lists in place, so that a second build from one configuration fails."""
    cfg = EasyDict(small_teacher_cfg)
    before = deepcopy(cfg)
    first = build_detector(cfg, class_names, small_geometry)
    second = build_detector(cfg, class_names, small_geometry)
    assert cfg == before
    second.load_state_dict(first.state_dict())


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
        ("ROI_HEAD", None, "MODEL needs a section ROI_HEAD with a NAME, got None"),
        ("ROI_HEAD.NAME", "PointRCNNHead", "unknown ROI_HEAD NAME 'PointRCNNHead'; known names: .*VoxelRCNNHead"),
        ("ROI_HEAD.CLASS_AGNOSTIC", False, "CLASS_AGNOSTIC must be True"),
        ("ROI_HEAD.DP_RATE", 0.3, "unknown key DP_RATE in MODEL.ROI_HEAD; valid keys: NMS_CONFIG"),
        ("ROI_HEAD.LOSS_CONFIG.CLS_LOSS", "CrossEntropy", "CLS_LOSS must be BinaryCrossEntropy"),
        ("ROI_HEAD.LOSS_CONFIG.REG_LOSS", "l1", "REG_LOSS must be smooth-l1"),
        ("ROI_HEAD.LOSS_CONFIG.GRID_3D_IOU_LOSS", True, "GRID_3D_IOU_LOSS must be False"),
        ("ROI_HEAD.LOSS_CONFIG.LOSS_WEIGHTS.code_weights", [1.0], "code_weights needs 7 entries"),
        ("ROI_HEAD.ROI_GRID_POOL.POOL_LAYERS.x_conv3.MLPS", [[32]], "each entry of MLPS must be two widths"),
    ],
)
def test_what_cannot_be_built_is_refused(small_teacher_cfg, small_geometry, class_names, dotted, value, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(change(small_teacher_cfg, dotted, value), class_names, small_geometry)


def test_a_source_that_the_backbone_does_not_have_is_refused(small_teacher_cfg, small_geometry, class_names):
    grid = small_teacher_cfg["ROI_HEAD"]["ROI_GRID_POOL"]
    grid["FEATURES_SOURCE"] = ["encoded"]
    grid["POOL_LAYERS"]["encoded"] = grid["POOL_LAYERS"]["x_conv4"]
    with pytest.raises(ConfigError, match="names encoded; the 3D backbone has x_conv1, x_conv2, x_conv3, x_conv4"):
        build_detector(small_teacher_cfg, class_names, small_geometry)
