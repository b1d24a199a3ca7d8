"""Teachers beside Voxel R-CNN, from their YAMLs: trained, tested, and teaching a student for some steps."""

from __future__ import annotations

import pytest
from tiny_world import (
    ALL_BOXES,
    BATCH_SIZE,
    CENTERS,
    DATA,
    NARROW,
    NUM_VAL,
    PROJECT,
    ROI_HEAD,
    SHIPPED,
    command,
    scalars,
    write_yaml,
)

from cakdp_ext.config import merge
from cakdp_ext.engine.runs import RunFolder

pytestmark = pytest.mark.xdist_group("engine")
EPOCHS = 2
PARTS = {name: width for name, width in ROI_HEAD.items() if name != "ROI_GRID_POOL"}
KEYPOINTS = {"PFE": {"NUM_KEYPOINTS": 96}, "ROI_HEAD": ROI_HEAD}
TEACHERS = {
    "pv_rcnn": KEYPOINTS,
    "pv_rcnn_plusplus": {**KEYPOINTS, "DENSE_HEAD": CENTERS},
    "PartA2": {"ROI_HEAD": {**PARTS, "ROI_AWARE_POOL": {"POOL_SIZE": 4, "NUM_FEATURES": 32}}},
    "voxel_rcnn_with_centerhead": {"ROI_HEAD": ROI_HEAD, "DENSE_HEAD": CENTERS},
}
ANCHOR_LOSSES = {"cls_loss", "loc_loss", "dir_loss"}
CENTER_LOSSES = {f"{name}_loss_head_{part}" for name in ("hm", "loc") for part in (0, 1)}
LOSSES = {
    "pv_rcnn": {*ANCHOR_LOSSES, "point_cls_loss"},
    "pv_rcnn_plusplus": {*CENTER_LOSSES, "point_cls_loss"},
    "PartA2": {*ANCHOR_LOSSES, "point_cls_loss", "point_part_loss"},
    "voxel_rcnn_with_centerhead": CENTER_LOSSES,
}
STUDENTS = {
    "pv_rcnn": "second",
    "pv_rcnn_plusplus": "centerpoint",
    "PartA2": "second",
    "voxel_rcnn_with_centerhead": "centerpoint",
}


def write_teacher(world, name):
    """Write the shipped YAML for the tiny world and give its path."""
    tree = {
        "_BASE_CONFIG_": str(PROJECT / "cfgs" / "kitti" / f"{name}.yaml"),
        "DATA_CONFIG": merge(DATA, {"_BASE_CONFIG_": str(SHIPPED / "data.yaml"), "DATA_PATH": str(world.data)}),
        "MODEL": {"BACKBONE_2D": NARROW, "POST_PROCESSING": ALL_BOXES, **TEACHERS[name]},
        "OPTIMIZATION": {"NUM_EPOCHS": EPOCHS, "LR": 0.003, "BATCH_SIZE_PER_GPU": BATCH_SIZE},
    }
    path = world.root / "cfgs" / "tiny" / f"{name}.yaml"
    write_yaml(path, tree)
    return str(path)


@pytest.fixture(scope="module", params=TEACHERS)
def taught(request, world, tmp_path_factory):
    """A trained and tested teacher, and a student that it taught for an epoch: name and both run folders."""
    name = request.param
    cfg = write_teacher(world, name)
    outcome = world.command("train", name, "--num_epochs_to_eval", 1)
    assert outcome.code == 0, outcome.err
    source = {"CFG": cfg, "CKPT": str(world.run(name).path)}
    distill = {"METHOD": "SKD", "TEACHER": source, "ALPHA": 1.0, "SCORE_THRESH": 0.001, "NMS_THRESH": 0.7}
    folder = tmp_path_factory.mktemp(name)
    student = world.variant(STUDENTS[name], folder, {"MODEL": {"DISTILL": distill}})
    argv = ["--cfg", student, "--output_dir", folder / "output", "--workers", 0, "--device", "cpu"]
    outcome = command("train", *argv, "--num_epochs_to_eval", 0)
    assert outcome.code == 0, outcome.err
    return name, world.run(name), RunFolder(folder / "output" / "tiny" / STUDENTS[name] / "default")


def test_a_teacher_learns_and_is_tested(taught):
    name, run, _ = taught
    found = scalars(run.tensorboard)
    parts = {f"train/{loss}" for loss in (*LOSSES[name], "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_corner_loss")}
    assert parts < set(found)
    losses = [value for _, value in found["train/loss"]]
    assert len(losses) == EPOCHS
    assert losses[1] < losses[0]
    results = list(run.path.glob("eval/**/final_result/data/*.txt"))
    assert len(results) == NUM_VAL
    assert any(file.read_text() for file in results)


def test_a_student_is_taught(taught):
    name, _, run = taught
    found = scalars(run.tensorboard)
    values = [value for _, value in found["train/distill_loss"]]
    assert len(values) == 1
    assert values[0] > 1e-6
    parts = [tag for tag in found if tag.startswith("train/") and tag != "train/loss"]
    assert len(parts) == len(LOSSES[name] - {"point_cls_loss", "point_part_loss"}) + 1
    assert found["train/loss"][0][1] == pytest.approx(sum(found[tag][0][1] for tag in parts), rel=1e-5)
