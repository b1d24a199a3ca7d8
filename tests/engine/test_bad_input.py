"""What a user gets wrong ends in exit code 2 and one line that says what to do."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_world import PROJECT, SHIPPED, Outcome, command, contents, environment

from cakdp_ext.datasets import make_infos

pytestmark = pytest.mark.xdist_group("engine")

HERE = Path(__file__).parent
TOOLS = ["train", "test", "score_filters", "prune", "compress"]
LAYOUT = "set DATA_PATH to the folder that holds these"


def train_on(world, data, *options, name="second", tag="bad"):
    return world.command("train", name, *options, "--set", "DATA_CONFIG.DATA_PATH", data, tag=tag)


def infos(data):
    return command("make_infos", "--cfg", SHIPPED / "data.yaml", "--data_path", data, "--workers", 1)


@pytest.mark.parametrize("tool", ["train", "test"])
def test_missing_data_folder(trained, tool):
    missing = trained.root / "nowhere"
    outcome = trained.command(tool, "second", "--set", "DATA_CONFIG.DATA_PATH", missing)
    assert f"no data folder {missing}" in outcome.error
    assert LAYOUT in outcome.error


def test_info_files_not_made_yet(trained, tmp_path):
    data = trained.copy_data(tmp_path)
    (data / "kitti_infos_train.pkl").unlink()
    assert f"make it with: python tools/make_infos.py --data_path {data}" in train_on(trained, data).error


def test_missing_calibration_file(world, tmp_path):
    data = world.copy_data(tmp_path)
    missing = data / "training" / "calib" / "000003.txt"
    missing.unlink()
    before = sorted(path.name for path in data.iterdir())
    error = infos(data).error
    assert f"no file {missing}, needed for frame 000003" in error
    assert LAYOUT in error
    assert sorted(path.name for path in data.iterdir()) == before


def test_malformed_label_line_is_named_by_number(world, tmp_path):
    data = world.copy_data(tmp_path)
    path = data / "training" / "label_2" / "000002.txt"
    number = len(path.read_text().splitlines()) + 1
    path.write_text(path.read_text() + "Car 0.0 zero\n")
    assert f"{path}:{number}: expected 15 fields, or 16 with a score, got 3, in 'Car 0.0 zero'" in infos(data).error


@pytest.fixture(scope="module")
def truncated(world, tmp_path_factory):
    """Data in which one scan was cut off after the info files were made, and the scan."""
    data = world.copy_data(tmp_path_factory.mktemp("truncated"))
    path = data / "training" / "velodyne" / "000003.bin"
    path.write_bytes(path.read_bytes()[:-7])
    return data, path


def test_truncated_points_while_infos_are_made(truncated):
    data, path = truncated
    assert f"{path} is truncated or of another format" in infos(data).error


def test_truncated_points_while_training(trained, truncated):
    data, path = truncated
    error = train_on(trained, data, tag="truncated").error
    assert error.startswith(f"error: {path} is truncated or of another format")


def test_real_process_names_the_file_that_its_loader_process_could_not_read(trained, truncated):
    data, path = truncated
    argv = [*trained.argv("train", "second", "truncated"), "--workers", 1, "--set", "DATA_CONFIG.DATA_PATH", data]
    words = [sys.executable, PROJECT / "tools" / "train.py", *argv]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment())
    error = Outcome(done.returncode, done.stdout, done.stderr).error
    assert error.startswith(f"error: {path} is truncated or of another format")
    assert error.endswith("copy it again")


def test_missing_points(trained, tmp_path):
    data = trained.copy_data(tmp_path)
    path = data / "training" / "velodyne" / "000010.bin"
    path.unlink()
    outcome = trained.command("test", "second", "--set", "DATA_CONFIG.DATA_PATH", data)
    assert f"no file {path}, needed for frame 000010" in outcome.error


@pytest.mark.parametrize(("split", "tool"), [("train", "train"), ("val", "test"), ("val", "compress")])
def test_empty_image_sets(compressed, tmp_path, split, tool):
    data = compressed.copy_data(tmp_path)
    (data / "ImageSets" / f"{split}.txt").write_text("")
    make_infos(data, 1)
    name = "second_cakdp" if tool == "compress" else "second"
    outcome = compressed.command(tool, name, "--set", "DATA_CONFIG.DATA_PATH", data)
    assert f"split {split} of {data} has no frames; list them in ImageSets/{split}.txt" in outcome.error


def test_unknown_split(trained):
    assert "no info file" in trained.command("test", "second", "--split", "valley").error


def test_more_frames_held_out_than_there_are(trained):
    outcome = trained.command("train", "second", "--set", "DATA_CONFIG.NUM_HELD_OUT", 10, tag="bad")
    assert "DATA_CONFIG.NUM_HELD_OUT is 10, but the training split has 10 frames" in outcome.error


def test_scoring_where_nothing_was_held_out(trained):
    outcome = trained.command("score_filters", "second_cakdp", "--set", "DATA_CONFIG.NUM_HELD_OUT", 0, tag="bad")
    assert "split held_out is empty: set DATA_CONFIG.NUM_HELD_OUT before the student is trained" in outcome.error


@pytest.mark.parametrize(("key", "before", "now"), [("NUM_HELD_OUT", "2", "4"), ("DATA_SPLIT.train", "train", "val")])
def test_frames_that_the_student_was_trained_on_are_not_held_out(trained, key, before, now):
    outcome = trained.command("score_filters", "second_cakdp", "--set", f"DATA_CONFIG.{key}", now, tag="bad")
    assert f"was trained with DATA_CONFIG.{key} {before}, now {now} is asked for" in outcome.error


def test_checkpoint_of_another_architecture(trained):
    outcome = trained.command("test", "second", "--ckpt", trained.run("voxel_rcnn").path)
    assert "checkpoint_epoch_1.pth has the unknown tensor roi_head." in outcome.error
    assert "belongs to another model than the YAML describes" in outcome.error


def test_checkpoint_of_other_widths_names_the_first_tensor(trained, tmp_path):
    wide = {"BACKBONE_2D": {"NUM_FILTERS": [16, 24]}}
    cfg = trained.variant("second", tmp_path, {"MODEL": wide})
    outcome = command(
        "test", "--cfg", cfg, "--workers", 0, "--output_dir", tmp_path, "--ckpt", trained.run("second").path
    )
    assert "backbone_2d.blocks.1.1.weight has shape (16, 16, 3, 3), the model expects (24, 16, 3, 3)" in outcome.error


def test_pruned_checkpoint_under_an_unpruned_yaml(compressed):
    outcome = compressed.command("test", "second", "--ckpt", compressed.run("second_cakdp").path)
    assert "the checkpoint is pruned (keeps 50% of the filters)" in outcome.error
    assert "has no MODEL.PRUNING section; use the YAML it was trained with" in outcome.error


def test_unpruned_checkpoint_under_a_pruned_yaml(compressed):
    outcome = compressed.command("test", "second_cakdp", "--ckpt", compressed.run("second").path)
    assert "has a MODEL.PRUNING section, but nothing was pruned here; use the YAML it was trained with" in outcome.error


@pytest.mark.parametrize("flag", ["--ckpt", "--pretrained_model"])
def test_truncated_checkpoint(trained, tmp_path, flag):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(trained.run("second").checkpoints()[-1].read_bytes()[:100_000])
    outcome = trained.command("test" if flag == "--ckpt" else "train", "second", flag, cut, tag="bad")
    assert f"{cut} cannot be read as a checkpoint" in outcome.error
    assert "copy it again, or name another one" in outcome.error


def test_truncated_checkpoint_of_the_teacher(compressed, tmp_path):
    cut = tmp_path / "teacher.pth"
    cut.write_bytes(compressed.run("voxel_rcnn").checkpoints()[-1].read_bytes()[:100_000])
    plan = ("MODEL.PRUNING.PLAN", compressed.run("second_cakdp").plan)
    outcome = compressed.command("train", "second_cakdp", "--set", "MODEL.DISTILL.TEACHER.CKPT", cut, *plan, tag="bad")
    assert f"{cut} cannot be read as a checkpoint" in outcome.error


def test_a_file_that_is_no_checkpoint_at_all(trained, tmp_path):
    (tmp_path / "table.pth").write_bytes(pickle.dumps({"model_state": np.float64}))
    with pytest.warns(UserWarning, match="pickle protocol"):
        outcome = trained.command("test", "second", "--ckpt", tmp_path / "table.pth")
    assert "table.pth cannot be read as a checkpoint" in outcome.error


@pytest.mark.parametrize("key", ["MODEL.PRUNING.STUDENT.CKPT", "MODEL.DISTILL.TEACHER.CKPT"])
def test_compress_looks_for_teacher_and_student_before_it_scores(trained, key):
    outcome = trained.command("compress", "second_cakdp", "--set", key, "/no/such/run", tag="early")
    assert "no checkpoint at /no/such/run; train the model first" in outcome.error
    assert not trained.run("second_cakdp", "early").scores.exists()


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("section", "valid"),
    [("DISTILL", "TEACHER, METHOD, ALPHA"), ("PRUNING", "STUDENT, KEEP_RATIO, PARAMS, MACS, LATENCY")],
)
def test_unknown_key_of_our_sections_is_named_with_file_and_valid_keys(compressed, tmp_path, tool, section, valid):
    cfg = compressed.variant("second_cakdp", tmp_path, {"MODEL": {section: {"KEEPRATIO": 0.5}}})
    options = ["--cfg", cfg, "--output_dir", tmp_path / "output"]
    if tool == "test":
        options += ["--ckpt", compressed.run("second_cakdp").path]
    error = command(tool, *options).error
    assert f"unknown key KEEPRATIO in MODEL.{section} of {cfg}; valid keys: {valid}" in error


def test_keep_ratio_that_empties_a_layer(compressed):
    run = compressed.run("second_cakdp")
    before = run.plan.read_bytes()
    outcome = compressed.command("prune", "second_cakdp", "--keep", 0.02, "--set", "MODEL.PRUNING.MIN_FILTERS", 0)
    assert "KEEP_RATIO 0.02 leaves backbone_3d." in outcome.error
    assert "with no filter; raise it or set MIN_FILTERS" in outcome.error
    assert run.plan.read_bytes() == before


def test_scores_of_another_model(compressed):
    outcome = compressed.command(
        "prune", "second_cakdp", "--set", "MODEL.PRUNING.SCORES", compressed.run("second_cakdp").scores,
        "MODEL.PRUNING.STUDENT.CKPT", other_student(compressed),
        tag="bad",
    )  # fmt: skip
    assert "holds the scores of another model than" in outcome.error
    outcome = compressed.command(
        "score_filters", "second_cakdp", "--set", "MODEL.PRUNING.STUDENT.CKPT", other_student(compressed)
    )
    assert "the previous scores are of another model (its weights differ)" in outcome.error


def other_student(world):
    run = world.run("second", "other_seed")
    if not run.checkpoints():
        assert world.command("train", "second", "--seed", 1, "--num_epochs_to_eval", 0, tag="other_seed").code == 0
    return run.path


def teach(world, teacher_cfg):
    plan = ("MODEL.PRUNING.PLAN", world.run("second_cakdp").plan)
    options = ("--set", "MODEL.DISTILL.TEACHER.CFG", teacher_cfg, *plan)
    return world.command("train", "second_cakdp", *options, tag="bad")


def test_teacher_with_other_anchors(compressed, tmp_path):
    anchors = [dict(each) for each in compressed.config("voxel_rcnn").MODEL.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG]
    anchors[0]["anchor_sizes"] = [[4.2, 1.6, 1.56]]
    tree = {"MODEL": {"DENSE_HEAD": {"ANCHOR_GENERATOR_CONFIG": anchors}}}
    error = teach(compressed, compressed.variant("voxel_rcnn", tmp_path, tree)).error
    assert "the anchors of student and teacher must be the same, these differ: anchor 0 (student" in error
    assert "3.9, 1.6, 1.56" in error
    assert "4.2, 1.6, 1.56" in error


def test_teacher_with_other_classes(compressed, tmp_path):
    cfg = compressed.variant("voxel_rcnn", tmp_path, {"CLASS_NAMES": ["Car", "Van", "Pedestrian"]})
    error = teach(compressed, cfg).error
    assert f"{cfg} does not know Cyclist" in error
    assert "does not know Van" in error
    assert "both must list the same classes, in any order" in error


def test_student_of_the_cut_with_its_classes_in_another_order(compressed, tmp_path):
    cfg = compressed.variant("second", tmp_path, {"CLASS_NAMES": ["Car", "Cyclist", "Pedestrian"]})
    outcome = compressed.command("prune", "second_cakdp", "--set", "MODEL.PRUNING.STUDENT.CFG", cfg, tag="bad")
    assert f"{cfg} knows the classes ['Car', 'Cyclist', 'Pedestrian']" in outcome.error
    assert "they must be the same, in the same order" in outcome.error


def test_teacher_with_another_range(compressed, tmp_path):
    cfg = compressed.variant(
        "voxel_rcnn", tmp_path, {"DATA_CONFIG": {"POINT_CLOUD_RANGE": [0, -6.4, -3, 25.6, 6.4, 1]}}
    )
    assert "they share their voxels, so both must be equal" in teach(compressed, cfg).error


def test_teacher_with_one_stage(compressed):
    options = ("MODEL.DISTILL.TEACHER.CKPT", compressed.run("second").path)
    plan = ("MODEL.PRUNING.PLAN", compressed.run("second_cakdp").plan)
    outcome = compressed.command(
        "train",
        "second_cakdp",
        "--set",
        "MODEL.DISTILL.TEACHER.CFG",
        compressed.cfg("second"),
        *options,
        *plan,
        tag="bad",
    )
    assert "use a two-stage detector, e.g. VoxelRCNN" in outcome.error


@pytest.mark.parametrize(
    ("tool", "missing"), [("train", "no pruning plan at"), ("prune", "no filter scores at"), ("test", "holds no ckpt")]
)
def test_stage_before_its_turn_says_what_to_run(trained, tool, missing):
    run = trained.run("second_cakdp", "too_early")
    run.path.mkdir(parents=True, exist_ok=True)
    assert missing in trained.command(tool, "second_cakdp", tag="too_early").error
    assert not run.ckpt.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", 0), "epochs of a training must be at least 1, got 0"),
        (("--ckpt_save_interval", 0), "save_every of a training must be at least 1"),
        (("--logger_iter_interval", 0), "log_every of a training must be at least 1"),
        (("--batch_size", 0), "--batch_size must be at least 1, got 0"),
        (("--device", "banana"), "--device banana is none that PyTorch knows"),
        (("--set", "OPTIMIZATION.LR", 0.0), "LR must be positive"),
        (("--set", "OPTIMIZATION.PCT_START", 1.0), "PCT_START must be at least 0 and below 1"),
        (("--set", "OPTIMIZATION.LEARNING_RATE", 1), "no key 'LEARNING_RATE' under OPTIMIZATION"),
        (("--set", "DATA_CONFIG.DATASET", "NuScenes"), "unknown DATASET 'NuScenes'; known data sets: KittiDataset"),
    ],
)
def test_flags_that_make_no_sense(trained, options, message):
    assert message in trained.command("train", "second", *options, tag="flags").error
    assert not trained.run("second", "flags").ckpt.exists()


def test_command_without_spconv_says_what_to_install(compressed):
    before = contents(compressed.copy_run("second_cakdp", "no_spconv"))
    commands = [(tool, *compressed.argv(tool, "second_cakdp", "no_spconv")) for tool in TOOLS]
    code = f"""
import sys
sys.modules["spconv"] = None
from tiny_world import command
for words in {commands}:
    print(command(*words).error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(TOOLS)
    for line in lines:
        assert line.startswith("error: spconv 2 cannot be imported (")
        assert "pip install spconv==2.3.8 for CPU, spconv-cu124==2.3.8 or spconv-cu126==2.3.8 for CUDA" in line
    assert contents(compressed.run("second_cakdp", "no_spconv")) == before


def test_yaml_of_a_data_set_where_a_model_is_wanted(tmp_path):
    outcome = command("train", "--cfg", SHIPPED / "data.yaml", "--output_dir", tmp_path)
    assert "data.yaml has no CLASS_NAMES, DATA_CONFIG, MODEL, OPTIMIZATION" in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_output_folder_that_cannot_be_made(trained, tmp_path):
    (tmp_path / "file").touch()
    options = ("--workers", 0, "--output_dir", tmp_path / "file")
    assert str(tmp_path / "file") in command("train", "--cfg", trained.cfg("second"), *options).error
