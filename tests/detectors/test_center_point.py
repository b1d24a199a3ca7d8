from __future__ import annotations

import os
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import OneStageStudent
from cakdp_ext.detectors import CenterPoint, build_detector
from cakdp_ext.pruning import (
    apply_plan,
    channel_graph,
    class_logits,
    count_macs,
    masked,
    plan_from_scores,
    score_filters,
)
from cakdp_ext.pruning.students import iou_branch
from cakdp_ext.types import LidarGeometry

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "engine"))
from random_cut import random_plan, randomize_norms  # noqa: E402

KITTI = LidarGeometry((0.0, -40.0, -3.0, 70.4, 40.0, 1.0), (0.05, 0.05, 0.1), 4)
WAYMO = LidarGeometry((-75.2, -75.2, -2.0, 75.2, 75.2, 4.0), (0.1, 0.1, 0.15), 5)
LOSSES = {"hm_loss_head_0", "loc_loss_head_0", "hm_loss_head_1", "loc_loss_head_1", "iou_loss"}
BACKBONES = ("VoxelBackBone8x", "VoxelResBackBone8x")


def state_dict_facts(name: str) -> list[str]:
    data = Path(os.environ.get("CAKDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    path = data.parent / "facts" / "state_dicts" / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"OpenPCDet's tensor names and shapes are not at {path}; set CAKDP_SHARED_DATA")
    return path.read_text(encoding="utf-8").split("\n")


@pytest.fixture(params=BACKBONES)
def student(small_center_cfg, small_geometry, class_names, request) -> CenterPoint:
    small_center_cfg["BACKBONE_3D"]["NAME"] = request.param
    torch.manual_seed(0)
    model = build_detector(small_center_cfg, class_names, small_geometry)
    randomize_norms(model)
    return model


def certain(model):
    """Let the head see objects everywhere."""
    with torch.no_grad():
        for part in model.dense_head.heads_list:
            part["hm"][-1].bias.fill_(1.0)
            part["iou"][-1].bias.fill_(1.0)
    return model.eval()


def tuned(model, batch):
    """Let norms know what they see, so that what one filter says reaches the heat maps."""
    torch.optim.swa_utils.update_bn([batch], model)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "geometry", "backbone", "num_classes"),
    [
        ("centerpoint_kitti", KITTI, "VoxelBackBone8x", 3),
        ("centerpoint_waymo_nores", replace(WAYMO), "VoxelBackBone8x", 3),
        ("centerpoint_waymo", WAYMO, "VoxelResBackBone8x", 3),
        ("centerpoint_once", replace(WAYMO, num_point_features=4), "VoxelResBackBone8x", 5),
    ],
)
def test_checkpoint_is_tensor_for_tensor_that_of_openpcdet(center_cfg, name, geometry, backbone, num_classes):
    facts = state_dict_facts(name)
    names = [f"kind {number}" for number in range(num_classes)]
    center_cfg["DENSE_HEAD"]["CLASS_NAMES_EACH_HEAD"] = [names]
    center_cfg["BACKBONE_3D"]["NAME"] = backbone
    model = build_detector(center_cfg, names, geometry)
    found = [f"{key} {tuple(value.shape)} {str(value.dtype)[6:]}" for key, value in model.state_dict().items()]
    assert found == list(filter(None, facts))


@pytest.mark.parametrize(
    ("geometry", "backbone", "counts"),
    [
        (KITTI, "VoxelBackBone8x", (5_775_371, 711_872)),
        (WAYMO, "VoxelResBackBone8x", (7_758_811, 2_695_312)),
    ],
)
def test_parameters_are_as_many_as_published(center_cfg, class_names, geometry, backbone, counts):
    center_cfg["BACKBONE_3D"]["NAME"] = backbone
    model = build_detector(center_cfg, class_names, geometry)
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    assert sum(p.numel() for p in model.parameters()) == counts[0]
    assert (parts["backbone_3d"], parts["backbone_2d"], parts["dense_head"]) == (counts[1], 4_576_768, 486_731)


def test_iou_branch_adds_two_convolutions_and_nothing_else(center_cfg, class_names, kitti_geometry):
    plain = build_detector(center_cfg, class_names, kitti_geometry)
    center_cfg["DENSE_HEAD"]["NAME"] = "CenterHeadIoU"
    model = build_detector(center_cfg, class_names, kitti_geometry)
    branch = set(model.state_dict()) - set(plain.state_dict())
    assert branch == set(iou_branch(model))
    assert sum(model.state_dict()[name].numel() for name in branch) == 64 * 64 * 9 + 64 + 4 * 64 + 1 + 64 * 3 * 9 + 3
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) == {name for name in branch if not name.endswith("num_batches_tracked")}  # PyTorch fills these
    assert not unexpected
    assert len(model.sites.centers) == 200 * 176


@pytest.mark.parametrize("empty", [(), (1,), (0, 1)], ids=["full", "one frame empty", "all frames empty"])
def test_every_parameter_gets_a_gradient(student, make_batch, small_geometry, device, empty):
    """Without one, a distributed run waits for ever for the rank that saw nothing."""
    student.train().to(device)
    output = student(make_batch(small_geometry, objects=8, empty=empty).to(device))
    sum(output.losses.values()).backward()
    assert set(output.losses) == LOSSES
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in output.losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert all(value.isfinite().all() for value in student.state_dict().values())


@pytest.mark.parametrize("empty", [(), (1,), (0, 1)])
def test_evaluation_gives_detections_for_every_frame(student, make_batch, small_geometry, device, empty):
    certain(student).to(device)
    with torch.no_grad():
        found = student(make_batch(small_geometry, empty=empty).to(device))
    assert len(found) == 2
    for detections in found:
        assert 0 < len(detections.scores) <= 1000
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


def test_nan_points_harm_no_other_frame(student, make_batch, small_geometry):
    batch = make_batch(small_geometry)
    bad = batch.voxels.clone()
    bad[batch.voxel_coords[:, 0] == 0] = torch.nan
    with torch.no_grad():
        clean, found = (certain(student)(replace(batch, voxels=voxels)) for voxels in (batch.voxels, bad))
    torch.testing.assert_close(found[1].boxes, clean[1].boxes)
    assert found[0].boxes.isfinite().all()
    assert found[0].scores.isfinite().all()


@pytest.mark.parametrize("is_training", [True, False])
def test_autocast_runs_and_leaves_predictions_and_losses_in_float32(
    student, make_batch, small_geometry, device, is_training
):
    student.train(is_training).to(device)
    batch = make_batch(small_geometry, objects=8).to(device)
    with torch.autocast(device, dtype=torch.bfloat16 if device == "cpu" else torch.float16):
        predictions = student.predict_dense(batch)
        output = student(batch)
    assert predictions.cls_logits.dtype == predictions.boxes.dtype == predictions.iou_logits.dtype == torch.float32
    if is_training:
        sum(output.losses.values()).backward()
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in output.losses.values())
        assert all(p.grad is not None for p in student.parameters())


def test_training_on_one_batch_brings_the_loss_down(student, make_batch, small_geometry):
    batch = make_batch(small_geometry, frames=1, objects=5, voxels=100)
    optimizer = torch.optim.Adam(student.train().parameters(), lr=5e-3)
    history = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = sum(student(batch).losses.values())
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0]


def test_the_same_weights_and_batch_give_the_same_bits(student, make_batch, small_geometry):
    runs = []
    for model in (deepcopy(student).train(), student.train()):
        output = model(make_batch(small_geometry, objects=8))
        sum(output.losses.values()).backward()
        with torch.no_grad():
            found = certain(model)(make_batch(small_geometry))
        runs.append([*output.losses.values(), *(p.grad for p in model.parameters()), *(f.boxes for f in found)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


# Pruning


def residual_blocks(model):
    return [name for name, module in model.named_modules() if type(module).__name__ == "SparseResidual"]


def test_channels_that_meet_in_residual_sums_are_one_group_a_scale(student, small_geometry):
    graph = channel_graph(student, small_geometry)
    assert {layer.name.split(".")[0] for layer in graph.prunable} == {"backbone_3d", "backbone_2d"}
    convolutions = [n for n, m in student.named_modules() if n.startswith("backbone") and hasattr(m, "kernel_size")]
    assert [layer.name for layer in graph.prunable] == convolutions
    tied = {frozenset(f.layer for f in group) for group in graph.groups if len(group) > 1}
    blocks = residual_blocks(student)
    assert len(blocks) == (8 if "Res" in type(student.backbone_3d).__name__ else 0)
    expected = set()
    for scale in sorted({name.rsplit(".", 1)[0] for name in blocks}):
        before = "backbone_3d.conv_input.0" if scale.endswith("conv1") else f"{scale}.0.0"
        expected.add(frozenset([before, *(f"{name}.conv2" for name in blocks if name.startswith(f"{scale}."))]))
    assert tied == expected
    widths = {layer.name: layer.num_filters for layer in graph.prunable}
    for group in graph.groups:
        assert len({f.channel for f in group}) == 1
        assert len({f.layer for f in group}) == len(group)
    assert len(graph.groups) == sum(widths.values()) - sum(
        (len(layers) - 1) * widths[min(layers)] for layers in expected
    )


@pytest.mark.parametrize("keep", [0.7, 0.3])
def test_masked_full_network_is_the_compact_one(student, make_batch, small_geometry, keep):
    """Convolutions with a bias lose theirs, too: what is removed must not come back as a constant."""
    student.eval()
    for name, parameter in student.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    batch, graph = make_batch(small_geometry), channel_graph(student, small_geometry)
    plan = random_plan(graph, keep)
    compact = apply_plan(student, plan, graph)
    with torch.no_grad():
        with masked(student, plan, graph):
            expected = student.predict_dense(batch)
        found, full = compact.predict_dense(batch), student.predict_dense(batch)
    for name in ("cls_logits", "boxes", "iou_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert (full.cls_logits - expected.cls_logits).abs().max() > 1e-3
    assert compact.backbone_3d.channels == {
        f"x_{name}": len(plan.keep_indices[layer]) for name, layer in last_layers(student).items() if name != "encoded"
    } | {"encoded": len(plan.keep_indices["backbone_3d.conv_out.0"])}
    for layer, kept in plan.keep_indices.items():
        bias = dict(compact.named_parameters()).get(f"{layer}.bias")
        assert bias is None or len(bias) == len(kept)


def last_layers(model):
    is_residual = bool(residual_blocks(model))
    last = {"conv1": "1.conv2", "conv2": "2.conv2"} if is_residual else {"conv1": "0.0", "conv2": "2.0"}
    last.update(conv3=last["conv2"], conv4=last["conv2"])
    return {name: f"backbone_3d.{name}.{layer}" for name, layer in last.items()}


def test_a_compact_student_trains_and_costs_less(student, make_batch, small_geometry):
    graph, batch = channel_graph(student, small_geometry), make_batch(small_geometry, objects=8)
    compact = apply_plan(student, random_plan(graph, 0.4), graph)
    sum(compact.train()(batch).losses.values()).backward()
    assert all(p.grad is not None for p in compact.parameters())
    macs = [count_macs(lambda model: model.predict_dense(batch), model) for model in (student, compact)]
    assert macs[1].total < 0.5 * macs[0].total
    assert macs[0].layers.keys() == macs[1].layers.keys()


def test_filters_of_a_group_share_one_score_and_one_place_in_the_plan(student, make_batch, small_geometry):
    batch = make_batch(small_geometry, frames=1)
    full = channel_graph(tuned(student, batch), small_geometry)
    first = [group for group in full.groups if group[0].layer == "backbone_3d.conv_input.0"][:4]
    layers = {f.layer for group in first for f in group}
    graph = replace(full, prunable=tuple(p for p in full.prunable if p.name in layers), groups=tuple(first))
    scores = score_filters(student, [batch], class_logits, graph)
    plan = random_plan(full, 1.0)
    with torch.no_grad():
        whole = class_logits(student, batch).sigmoid()
    for number, group in enumerate(first):
        keep = {**plan.keep_indices}
        for layer, channel in group:
            keep[layer] = tuple(index for index in keep[layer] if index != channel)
        with torch.no_grad(), masked(student, replace(plan, keep_indices=keep), full):
            gap = (whole - class_logits(student, batch).sigmoid()).abs().sum(dim=2).mean().item()
        assert gap > 1e-5
        assert (len(group) > 1) == bool(residual_blocks(student))
        assert sum(scores.values[layer][channel] for layer, channel in group) == pytest.approx(gap, rel=1e-3), number
        assert len({scores.values[layer][channel] for layer, channel in group}) == 1
    chosen = plan_from_scores(scores, graph, keep_ratio=0.5)
    assert {len(kept) for kept in chosen.keep_indices.values()} == {2}
    assert len(set(chosen.keep_indices.values())) == 1


# Configuration


def test_both_names_are_one_detector_whatever_the_engine_is_told(small_center_cfg, small_geometry, class_names):
    plain = build_detector(small_center_cfg, class_names, small_geometry)
    small_center_cfg.update(NAME="CenterPointCaKDP", DISTILL={"ALPHA": 1.0}, PRUNING={"KEEP_RATIO": 0.5})
    named = build_detector(small_center_cfg, class_names, small_geometry)
    assert type(named) is type(plain) is CenterPoint
    named.load_state_dict(plain.state_dict())


def test_a_head_of_the_other_kind_is_refused(small_cfg, small_center_cfg, small_geometry, class_names):
    small_cfg["NAME"], small_center_cfg["NAME"] = "CenterPoint", "SECONDNet"
    del small_cfg["POST_PROCESSING"]["SCORE_THRESH"], small_cfg["POST_PROCESSING"]["NMS_CONFIG"]
    with pytest.raises(ConfigError, match=r"cannot read AnchorHeadSingleIoU; use CenterHead or .*NAME: SECONDNet"):
        build_detector(small_cfg, class_names, small_geometry)
    with pytest.raises(ConfigError, match=r"cannot read CenterHeadIoU; use AnchorHeadSingle or .*NAME: CenterPoint"):
        build_detector(small_center_cfg, class_names, small_geometry)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (
            "POST_PROCESSING",
            "SCORE_THRESH",
            0.3,
            "SCORE_THRESH of MODEL.POST_PROCESSING: .* MODEL.DENSE_HEAD.POST_PROC",
        ),
        ("POST_PROCESSING", "NMS_CONFIG", {"NMS_THRESH": 0.1}, "NMS_CONFIG of MODEL.POST_PROCESSING: .* CenterPoint's"),
        ("POST_PROCESSING", "TOP_K", 3, "unknown key TOP_K in MODEL.POST_PROCESSING; valid keys: IOU_REFINEMENT"),
        ("DENSE_HEAD", "TARGET_ASSIGNER_CONFIG", {"FEATURE_MAP_STRIDE": 4}, "stride of the dense head is 4, but .* 8"),
        ("DENSE_HEAD", "NAME", "CenterHead", "unknown key IOU_HEAD"),
        ("BACKBONE_3D", "NAME", "VoxelNeXt", "known names: .*UNetV2, VoxelBackBone8x, VoxelResBackBone8x"),
    ],
)
def test_what_cannot_be_built_is_refused(small_center_cfg, small_geometry, class_names, section, key, value, message):
    small_center_cfg[section][key] = value
    with pytest.raises(ConfigError, match=message):
        build_detector(small_center_cfg, class_names, small_geometry)


def test_refinement_without_an_iou_branch_is_refused(center_cfg, small_geometry, class_names):
    center_cfg["POST_PROCESSING"]["IOU_REFINEMENT"] = {"MODE": "mask"}
    with pytest.raises(ConfigError, match="asks for 'mask', but CenterHead predicts no IoU; use .*CenterHeadIoU"):
        build_detector(center_cfg, class_names, small_geometry)
    center_cfg["POST_PROCESSING"]["IOU_REFINEMENT"] = {"MODE": "none"}
    build_detector(center_cfg, class_names, small_geometry)


def test_an_unknown_detector_is_told_of_both_students(center_cfg, small_geometry, class_names):
    center_cfg["NAME"] = "CenterNet"
    with pytest.raises(
        ConfigError, match="known names: CenterPoint, CenterPointCaKDP, .*SECONDNet, SECONDNetCaKDP, Vox"
    ):
        build_detector(center_cfg, class_names, small_geometry)
