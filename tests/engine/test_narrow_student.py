"""Students that MODEL.WIDTH makes narrow train, are taught, tested and resumed by our commands."""

from __future__ import annotations

import pytest
from tiny_world import command, scalars

from cakdp_ext.checkpoint import CheckpointError, read_checkpoint
from cakdp_ext.engine.build import build_full, restore_student
from cakdp_ext.engine.data import build_split

pytestmark = pytest.mark.xdist_group("engine")


def narrow(world, folder, width, title, **model):
    """Write SECOND with a width beside the other configurations."""
    return world.variant("second", folder, {"MODEL": {"NAME": "SECONDNetCaKDP", "WIDTH": width, **model}}, title)


@pytest.fixture(scope="module")
def taught(trained, tmp_path_factory):
    """A narrow student, trained under the teacher by GID; its YAML and its run."""
    root = tmp_path_factory.mktemp("narrow")
    teacher = {"CFG": trained.cfg("voxel_rcnn"), "CKPT": str(trained.run("voxel_rcnn").path)}
    cfg = narrow(trained, root, 0.5, "second_gid", DISTILL={"METHOD": "GID", "TEACHER": teacher})
    return root, cfg, teacher


def argv(root, cfg, *options):
    return ["--cfg", cfg, "--output_dir", root / "output", "--workers", 0, "--device", "cpu", *options]


@pytest.fixture(scope="module")
def checkpoint(taught):
    root, cfg, _ = taught
    outcome = command("train", *argv(root, cfg, "--num_epochs_to_eval", 0))
    assert outcome.code == 0, outcome.err
    return root / "output" / "tiny" / "second_gid" / "default"


def test_the_widths_of_the_2d_backbone_are_those_of_a_narrower_yaml(world, tmp_path):
    config = world.config("second")
    geometry = build_split(config, "val").geometry
    wide = build_full(config, geometry)
    config.MODEL.BACKBONE_2D.update(NUM_FILTERS=[8, 8], NUM_UPSAMPLE_FILTERS=[8, 8])
    written = build_full(config, geometry)
    other = world.config("second")
    other.MODEL.WIDTH = {"BACKBONE_2D": 0.5}
    found = build_full(other, geometry)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (written, found, wide)]
    assert shapes[0] == shapes[1]
    assert shapes[1] != shapes[2]


def test_a_narrow_student_is_taught_and_saved_with_its_width(taught, checkpoint):
    content = read_checkpoint(checkpoint)
    assert content["width"] == {"backbone_3d": 0.5, "backbone_2d": 0.5}
    assert content["model_state"]["backbone_3d.conv_input.0.weight"].shape[0] == 8
    assert all(value > 0 for _, value in scalars(checkpoint / "tensorboard")["train/distill_loss"])
    assert content["distill_state"]["methods.GID.adaption.mix.weight"].shape == (32, 16)


def test_it_is_tested_by_its_own_yaml_only(trained, taught, checkpoint, tmp_path):
    root, cfg, _ = taught
    outcome = command("test", *argv(root, cfg))
    assert outcome.code == 0, outcome.err
    other = narrow(trained, tmp_path, 0.75, "second_gid")
    outcome = command("test", *argv(root, other, "--ckpt", checkpoint))
    assert "MODEL.WIDTH {BACKBONE_3D: 0.5, BACKBONE_2D: 0.5}, the YAML has {BACKBONE_3D: 0.75" in outcome.error
    config = trained.config("second")
    with pytest.raises(CheckpointError, match="the YAML has none"):
        restore_student(config, build_split(config, "val").geometry, checkpoint)


def test_a_width_that_was_changed_is_no_place_to_go_on_from(trained, taught, checkpoint):
    root, _, teacher = taught
    other = narrow(trained, root / "other", 0.75, "second_gid", DISTILL={"METHOD": "GID", "TEACHER": teacher})
    outcome = command("train", *argv(root, other, "--epochs", 2))
    assert "second_gid" in outcome.error
    assert "MODEL.WIDTH 0.5, now 0.75 is asked for" in outcome.error


@pytest.mark.parametrize("choice", ["largest", "none"])
def test_sparse_kd_trains_a_narrow_student_from_its_teachers_weights(trained, tmp_path, taught, choice):
    method = {"METHOD": "SparseKD", "TEACHER_WEIGHTS": choice, "LABEL_THRESH": 0.05, "PIVOT_THRESH": 0.01}
    cfg = narrow(trained, tmp_path, 0.5, "second_sparsekd", DISTILL={**method, "TEACHER": taught[2]})
    outcome = command("train", *argv(tmp_path, cfg, "--num_epochs_to_eval", 0))
    assert outcome.code == 0, outcome.err
    run = tmp_path / "output" / "tiny" / "second_sparsekd" / "default"
    log = "".join(path.read_text() for path in run.glob("train_*.log"))
    assert ("the student starts from the teacher's weights" in log) == (choice == "largest")
    assert all(value > 0 for _, value in scalars(run / "tensorboard")["train/distill_loss"])
    content = read_checkpoint(run)
    assert "distill_state" not in content
    if choice == "largest":  # one short epoch at a low rate later
        theirs = read_checkpoint(trained.run("voxel_rcnn").path)["model_state"]["backbone_3d.conv_input.0.weight"]
        kept = theirs.abs().flatten(1).sum(dim=1).argsort(descending=True)[:8].sort().values
        gap = (content["model_state"]["backbone_3d.conv_input.0.weight"] - theirs[kept]).abs().max()
        assert gap < 0.01 < theirs[kept].abs().max()


def test_a_training_from_other_weights_keeps_those(trained, tmp_path, taught, checkpoint):
    cfg = narrow(trained, tmp_path, 0.5, "second_sparsekd", DISTILL={"METHOD": "SparseKD", "TEACHER": taught[2]})
    outcome = command("train", *argv(tmp_path, cfg, "--num_epochs_to_eval", 0, "--pretrained_model", checkpoint))
    assert outcome.code == 0, outcome.err
    found = read_checkpoint(tmp_path / "output" / "tiny" / "second_sparsekd" / "default")["model_state"]
    before = read_checkpoint(checkpoint)["model_state"]
    key = "backbone_3d.conv_input.0.weight"
    assert (found[key] - before[key]).abs().max() < 0.01
