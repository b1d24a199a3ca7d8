"""OpenPCDet's two-stage detectors as teachers: what encode and refine give is what the detector itself computes."""

from __future__ import annotations

import pytest
import small_models
import torch
from pcdet.models.dense_heads import CenterHead
from pcdet.ops.iou3d_nms import iou3d_nms_utils
from small_models import CLASSES, NUM_CELLS, VOXEL, batch, build, dataset, frame, stock

from cakdp_ext.checkpoint import CheckpointError, write_checkpoint
from cakdp_ext.config import ConfigError, dump_config
from cakdp_ext.contract import EncodedScene, TwoStageTeacher
from cakdp_ext.distillation import FrozenTeacher, read_config
from cakdp_ext.openpcdet.batches import to_batch, to_batch_dict
from cakdp_ext.openpcdet.build import build_detector
from cakdp_ext.openpcdet.dense import decode
from cakdp_ext.openpcdet.faces import geometry_of, with_faces
from cakdp_ext.openpcdet.teacher import build_teacher
from cakdp_ext.pruning.layers import is_tensor_like, values_of, with_values

WITH_ANCHORS = {
    "Voxel R-CNN": "kitti_models/voxel_rcnn_car",
    "PV-RCNN": "kitti_models/pv_rcnn",
    "Part-A2": "kitti_models/PartA2",
    "SECOND-IoU": "kitti_models/second_iou",
}
WITH_CENTERS = {
    "Voxel R-CNN, center head": "waymo_models/voxel_rcnn_with_centerhead_dyn_voxel",
    "PV-RCNN, center head": "waymo_models/pv_rcnn_with_centerhead_rpn",
    "PV-RCNN++": "kitti_models/pv_rcnn_plusplus_reproduced_by_community",
    "PV-RCNN++, residual backbone": "waymo_models/pv_rcnn_plusplus_resnet",
}
TEACHERS = {**WITH_ANCHORS, **WITH_CENTERS}


@pytest.fixture(autouse=True, scope="module")
def _scatter():
    small_models.provide_scatter()


@pytest.fixture
def frames():
    return batch(1, 2, training=False)


@pytest.fixture
def no_proposals(monkeypatch):
    """Make every NMS, and a center head's own detection, an error."""

    def refuse(*_, **__):
        raise AssertionError("a proposal was made")

    def forbid():
        for name in ("nms_gpu", "nms_normal_gpu"):
            monkeypatch.setattr(iou3d_nms_utils, name, refuse)
        monkeypatch.setattr(CenterHead, "generate_predicted_boxes", refuse)

    return forbid


def config_of(name):
    return stock(TEACHERS[name], small_models.FOUR_FEATURES if "residual" in name else None)


class Evaluation:
    """One evaluation of a detector as OpenPCDet runs it, watched."""

    def __init__(self, model, frames):
        hooks = [
            model.dense_head.register_forward_hook(self.keep_first),
            model.roi_head.register_forward_hook(self.keep),
        ]
        with torch.no_grad():
            self.detections, _ = model(to_batch_dict(frames))
        for hook in hooks:
            hook.remove()

    def keep_first(self, head, _, data):
        self.maps = head.forward_ret_dict
        self.first = [data[name].clone() for name in ("batch_cls_preds", "batch_box_preds") if name in data]

    def keep(self, _, __, data):
        assert not data["cls_preds_normalized"]
        self.rois, self.logits = data["rois"].clone(), data["batch_cls_preds"].clone()


@pytest.mark.parametrize("name", TEACHERS)
def test_second_stage_judges_the_rois_of_an_evaluation_alike(name, frames, no_proposals):
    model = build(config_of(name), training=False).eval()
    assert isinstance(model, TwoStageTeacher)
    own = Evaluation(model, frames)
    no_proposals()
    teacher = FrozenTeacher(model)
    encoded = teacher.encode(frames)
    logits = teacher.refine(encoded, own.rois)
    assert logits.shape == own.logits.shape == (2, own.rois.shape[1], 1)
    torch.testing.assert_close(logits, own.logits, atol=1e-6, rtol=1e-5)
    assert own.logits.std() > 1e-4
    elsewhere = teacher.refine(encoded, own.rois.flip(1))
    assert (elsewhere - own.logits).abs().max() > 1e-4
    assert len(own.detections) == 2


@pytest.mark.parametrize("name", TEACHERS)
def test_first_stage_says_what_the_dense_head_says(name, frames, no_proposals):
    model = build(config_of(name), training=False).eval()
    own = Evaluation(model, frames)
    no_proposals()
    with torch.no_grad():
        predictions = model.encode(frames).predictions
        expected = decode(model.dense_head, own.maps) if name in WITH_CENTERS else None
    logits, boxes = (expected.cls_logits, expected.boxes) if expected else own.first
    torch.testing.assert_close(predictions.cls_logits, logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(predictions.boxes, boxes, atol=1e-5, rtol=1e-5)
    per_cell = 1 if name in WITH_CENTERS else 6
    assert predictions.boxes.shape == (2, NUM_CELLS * per_cell, 7)
    assert model.sites.centers.shape == (NUM_CELLS * per_cell, 2)
    assert model.sites is model.sites


@pytest.mark.parametrize("name", TEACHERS)
def test_other_boxes_and_none_are_judged(name, frames):
    teacher = FrozenTeacher(build(config_of(name), training=False))
    encoded = teacher.encode(frames)
    boxes = encoded.predictions.boxes[:, ::7].contiguous()
    before = boxes.clone()
    assert teacher.refine(encoded, boxes).shape == (2, boxes.shape[1], 1)
    assert torch.equal(teacher.refine(encoded, boxes), teacher.refine(encoded, boxes))
    assert torch.equal(boxes, before)
    assert teacher.refine(encoded, boxes[:, :0]).shape == (2, 0, 1)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_second_stage_keeps_its_precision_under_autocast(name, frames):
    teacher = FrozenTeacher(build(config_of(name), training=False))
    encoded = teacher.encode(frames)
    boxes = encoded.predictions.boxes[:, ::7]
    expected = teacher.refine(encoded, boxes)
    halves = EncodedScene(encoded.taps, in_half(encoded.features))
    assert any(values_of(v).dtype == torch.float16 for v in halves.features.values() if is_tensor_like(v))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher.refine(encoded, boxes), expected)
        found = teacher.refine(halves, boxes)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def in_half(value, key=""):
    """Give what the first stage leaves on a GPU under autocast."""
    if type(value) is dict:
        return {name: in_half(item, name) for name, item in value.items()}
    is_feature = is_tensor_like(value) and ("conv" in key or "features" in key) and "voxel" not in key
    return with_values(value, values_of(value).half()) if is_feature else value


def test_the_batch_of_a_student_is_not_changed(frames):
    keys, tensors = set(frames.data), {k: v.clone() for k, v in frames.data.items() if isinstance(v, torch.Tensor)}
    for name in TEACHERS:
        teacher = FrozenTeacher(build(config_of(name), training=False))
        encoded = teacher.encode(frames)
        teacher.refine(encoded, encoded.predictions.boxes[:, :5].contiguous())
        assert set(frames.data) == keys, name
        assert all(torch.equal(frames.data[k], v) for k, v in tensors.items()), name


def test_a_roi_twice_changes_nothing_for_the_others(frames):
    teacher = FrozenTeacher(build(config_of("PV-RCNN++"), training=False))
    encoded = teacher.encode(frames)
    boxes = encoded.predictions.boxes[:, 30:34]
    alone = teacher.refine(encoded, boxes.contiguous())
    twice = teacher.refine(encoded, torch.cat([boxes, boxes[:, :1], boxes[:, :1]], dim=1))
    torch.testing.assert_close(twice[:, :4], alone, atol=1e-6, rtol=1e-5)
    elsewhere = teacher.refine(encoded, torch.cat([boxes, encoded.predictions.boxes[:, :2]], dim=1))
    assert (elsewhere[:, :4] - alone).abs().max() > 1e-4, "its keypoints lie around all RoIs"


def test_dynamic_voxels_of_a_teacher_need_points_only(frames):
    teacher = FrozenTeacher(build(config_of("Voxel R-CNN, center head"), training=False))
    points_only = to_batch({k: v for k, v in frames.data.items() if not k.startswith("voxel")})
    assert points_only.voxels.shape == (0, 1, 4)
    expected, found = teacher.encode(frames).predictions, teacher.encode(points_only).predictions
    assert torch.equal(found.cls_logits, expected.cls_logits)
    assert torch.equal(found.boxes, expected.boxes)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("kitti_models/second", "SECONDNet has no RoI head; MODEL.DISTILL.METHOD asks the teacher's second stage"),
        ("waymo_models/centerpoint", "CenterPoint has no RoI head"),
        ("kitti_models/PartA2_free", "PointRCNN has no dense head"),
        ("waymo_models/mppnet_e2e_memorybank_inference", "MPPNetE2E judges boxes that it has followed through several"),
    ],
)
def test_a_detector_without_two_stages_is_refused(name, lacks, tmp_path):
    config = stock(name)
    model = build(config, training=False).eval()
    distill = teacher_of(config, model, tmp_path)
    with pytest.raises(ConfigError, match=lacks):
        build_teacher(distill, dataset())


def test_a_detector_for_the_engine_is_where_its_anchors_are(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda model: moved.append(model) or model)
    model = build_detector(stock("kitti_models/second"), CLASSES, geometry_of(dataset()))
    assert moved == [model]


def test_a_head_that_is_neither_is_refused(frames):
    with pytest.raises(ConfigError, match="AnchorHeadMulti is neither an AnchorHeadSingle nor a CenterHead"):
        build(stock("kitti_models/second_multihead"), training=False).eval().predict_dense(frames)


def teacher_of(config, model, folder, state=None, voxels="transform_points_to_voxels"):
    """Write a teacher's YAML and checkpoint."""
    data = {
        "POINT_CLOUD_RANGE": small_models.RANGE,
        "DATA_PROCESSOR": [{"NAME": voxels, "VOXEL_SIZE": VOXEL}],
    }
    (folder / "teacher.yaml").write_text(dump_config({"CLASS_NAMES": CLASSES, "DATA_CONFIG": data, "MODEL": config}))
    if state is None:
        write_checkpoint(folder / "teacher.pth", model, {"epoch": 1})
    else:
        torch.save({"model_state": state}, folder / "teacher.pth")
    source = {"CFG": str(folder / "teacher.yaml"), "CKPT": str(folder / "teacher.pth")}
    return read_config({"TEACHER": source}, "MODEL.DISTILL")


@pytest.mark.parametrize("name", TEACHERS)
def test_teacher_is_built_from_yaml_and_checkpoint(name, frames, tmp_path):
    config = config_of(name)
    model = build(config, training=False).eval()
    voxels = "transform_points_to_voxels" + ("_placeholder" if config.VFE.NAME == "DynMeanVFE" else "")
    before = dump_config(config)
    teacher = build_teacher(teacher_of(config, model, tmp_path, voxels=voxels), dataset())
    assert dump_config(config) == before
    with torch.no_grad():
        encoded = model.encode(frames)
        boxes = encoded.predictions.boxes[:, ::5].contiguous()
        expected = model.refine(encoded, boxes)
    assert torch.equal(teacher.refine(teacher.encode(frames), boxes), expected)


def test_tensors_that_a_teachers_checkpoint_lacks_or_has_of_another_shape_are_named(tmp_path):
    config = config_of("PV-RCNN++")
    state = build(config, training=False).state_dict()
    key = "roi_head.shared_fc_layer.0.weight"
    without = {name: value for name, value in state.items() if name != key}
    with pytest.raises(CheckpointError, match=rf"teacher\.pth lacks tensor {key}"):
        build_teacher(teacher_of(config, None, tmp_path, without), dataset())
    misshapen = {**state, key: state[key][:8]}
    with pytest.raises(CheckpointError, match=rf"{key} has shape \(8, .*, the model expects \(16, "):
        build_teacher(teacher_of(config, None, tmp_path, misshapen), dataset())
    with pytest.raises(CheckpointError, match="has the unknown tensor pfe.more"):
        build_teacher(teacher_of(config, None, tmp_path, {**state, "pfe.more": torch.zeros(1)}), dataset())


def test_a_teacher_of_other_voxels_is_refused(tmp_path):
    config = config_of("Voxel R-CNN")
    source = teacher_of(config, None, tmp_path, {})
    text = (tmp_path / "teacher.yaml").read_text()
    (tmp_path / "teacher.yaml").write_text(text.replace("VOXEL_SIZE:\n    - 0.2", "VOXEL_SIZE:\n    - 0.1"))
    with pytest.raises(ConfigError, match="they share their voxels, so both must be equal"):
        build_teacher(source, dataset())


def test_faces_leave_a_detector_its_name():
    detector = with_faces(small_models.detectors.__all__["PVRCNN"])
    assert detector.__name__ == "PVRCNN"
    assert with_faces(detector) is detector
    assert frame(1)["points"].shape[1] == 4
