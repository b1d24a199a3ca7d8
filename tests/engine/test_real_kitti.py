"""The full-size network on a real frame."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import yaml
from random_cut import random_plan, randomize_norms
from tiny_world import PROJECT

from cakdp_ext.checkpoint import write_checkpoint
from cakdp_ext.config import load_config
from cakdp_ext.datasets import collate, make_infos
from cakdp_ext.distillation import FrozenTeacher
from cakdp_ext.engine.build import build_full, build_student, distill_config
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.step import TrainingStep
from cakdp_ext.pruning import channel_graph, class_logits, count_parameters, masked

pytestmark = pytest.mark.real_data
FRAME = "000001"
PARAMETERS = 5_325_576
"""Of SECOND with three classes, as the paper prints it (5.3 M)."""


@pytest.fixture(scope="module")
def kitti(real_kitti, tmp_path_factory):
    """One frame, as train and as val split, with its info files."""
    root = tmp_path_factory.mktemp("kitti")
    for folder in ("velodyne", "calib", "label_2", "image_2"):
        (root / "training" / folder).mkdir(parents=True)
        (source,) = (real_kitti / "training" / folder).glob(f"{FRAME}.*")
        shutil.copy(source, root / "training" / folder)
    (root / "ImageSets").mkdir()
    for split in ("train", "val"):
        (root / "ImageSets" / f"{split}.txt").write_text(f"{FRAME}\n")
    make_infos(root, 1)
    return root


def test_full_size_compact_student_computes_what_the_masked_network_does(kitti, tmp_path):
    data = ["DATA_CONFIG.DATA_PATH", str(kitti)]
    frames = build_split(load_config(PROJECT / "cfgs/kitti/second.yaml", data), "val")
    torch.manual_seed(0)
    full = build_full(load_config(PROJECT / "cfgs/kitti/second.yaml", data), frames.geometry).eval()
    randomize_norms(full)
    write_checkpoint(tmp_path / "full.pth", full, {"epoch": 1})
    source = [*data, "MODEL.PRUNING.STUDENT.CKPT", str(tmp_path / "full.pth")]
    config = load_config(PROJECT / "cfgs/kitti/second_cakdp.yaml", source)
    graph = channel_graph(full, frames.geometry)
    plan = random_plan(graph, 0.5)
    compact = build_student(config, frames.geometry, plan).model.eval()
    batch = collate([frames[0]])
    assert len(batch.voxels) > 5_000
    with torch.inference_mode():
        got = class_logits(compact, batch)
        with masked(full, plan, graph) as as_if:
            want = class_logits(as_if, batch)
    scale = float(want.abs().max())
    assert scale > 1
    assert float((got - want).abs().max()) < 1e-4 * scale
    assert np.isfinite(got.numpy()).all()
    assert count_parameters(full) == PARAMETERS
    assert plan.keep_ratio == pytest.approx(0.5, abs=0.03)
    iou_branch = count_parameters(compact.dense_head.conv_iou)
    assert count_parameters(compact) - iou_branch < 0.35 * PARAMETERS


@pytest.mark.parametrize(
    ("student", "teacher"), [("second", "voxel_rcnn"), ("centerpoint", "voxel_rcnn_with_centerhead")]
)
def test_methods_of_others_teach_a_narrow_student_on_a_real_frame(kitti, student, teacher):
    near = ["DATA_CONFIG.DATA_PATH", str(kitti), "DATA_CONFIG.POINT_CLOUD_RANGE", "[0, -20, -3, 35.2, 20, 1]"]
    every = "[VanillaKD, GID, PointDistiller, {NAME: SparseKD, PIVOT: rank}]"
    config = load_config(PROJECT / f"cfgs/kitti/methods/{student}_vanillakd.yaml", near)
    config.MODEL.DISTILL.METHOD = yaml.safe_load(every)
    frames = build_split(config, "val")
    torch.manual_seed(0)
    of_teacher = build_full(load_config(PROJECT / f"cfgs/kitti/{teacher}.yaml", near), frames.geometry)
    model = build_full(config, frames.geometry)
    randomize_norms(of_teacher)
    randomize_norms(model)
    batch = collate([frames[0]])
    assert len(batch.voxels) > 5_000
    step = TrainingStep(model.train(), FrozenTeacher(of_teacher), distill_config(config))
    losses = step(batch)
    taught = {name: value for name, value in losses.items() if name.startswith("distill_loss_")}
    assert list(taught) == [f"distill_loss_{name}" for name in ("VanillaKD", "GID", "PointDistiller", "SparseKD")]
    assert all(torch.isfinite(value) and value > 0 for value in taught.values())
    torch.stack(list(taught.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(grad).all() for grad in gradients.values())
    assert gradients["backbone_3d.conv_input.0.weight"].abs().sum() > 0
    assert all(parameter.grad is None for parameter in of_teacher.parameters())
