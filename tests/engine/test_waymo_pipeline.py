"""From generated segments in Waymo's layout to a compact detector, command by command."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from tiny_world import ALL_BOXES, NARROW, PROJECT, ROI_HEAD, World, command, write_yaml

from cakdp_ext.checkpoint import read_checkpoint
from cakdp_ext.config import load_config
from cakdp_ext.engine.data import build_split
from cakdp_ext.evaluation import evaluate_waymo
from cakdp_ext.pruning import load_plan, load_scores

SCENES = {
    "_BASE_CONFIG_": str(PROJECT / "cfgs" / "synthetic" / "waymo_scenes.yaml"),
    "NUM_TRAIN": 12,
    "NUM_VAL": 3,
    "LIDAR": {"BEAMS": 32, "AZIMUTH_STEP": 1.0},
    "TRAFFIC": {"CARS": [3, 5], "PEDESTRIANS": [2, 4], "CYCLISTS": [2, 4], "FAR_CARS": [0, 0], "REACH": 11.0},
    "SEQUENCE": {"FRAMES": 3},
}
HELD_OUT = 2


def data_of(root):
    config = load_config(PROJECT / "cfgs" / "datasets" / "waymo_mini.yaml")
    processors = json.loads(json.dumps(config.DATA_PROCESSOR))
    processors[2].update(VOXEL_SIZE=[0.2, 0.2, 0.15], MAX_NUMBER_OF_VOXELS={"train": 4000, "test": 4000})
    return {
        "_BASE_CONFIG_": str(PROJECT / "cfgs" / "datasets" / "waymo_mini.yaml"),
        "DATA_PATH": str(root / "data"),
        "SAMPLED_INTERVAL": {"train": 1, "test": 1},
        "NUM_HELD_OUT": HELD_OUT,
        "POINT_CLOUD_RANGE": [-12.8, -12.8, -2, 12.8, 12.8, 4],
        "DATA_PROCESSOR": processors,
    }


def write_configs(world):
    second = load_config(PROJECT / "cfgs" / "waymo" / "second.yaml")
    anchors = json.loads(json.dumps(second.MODEL.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG))
    shared = {
        "CLASS_NAMES": list(second.CLASS_NAMES),
        "DATA_CONFIG": data_of(world.root),
        "OPTIMIZATION": {"NUM_EPOCHS": 1, "LR": 1e-4, "BATCH_SIZE_PER_GPU": 3},
    }
    model = {
        "BACKBONE_2D": NARROW,
        "DENSE_HEAD": {"ANCHOR_GENERATOR_CONFIG": anchors},
        "POST_PROCESSING": {**ALL_BOXES, "EVAL_METRIC": "waymo"},
    }
    masked = {**model["POST_PROCESSING"], "IOU_REFINEMENT": {"MODE": "mask", "DELTA": 0.001}}
    pruning = {"STUDENT": {"CFG": world.cfg("second"), "CKPT": str(world.run("second").path)}}
    teacher = {"CFG": world.cfg("voxel_rcnn"), "CKPT": str(world.run("voxel_rcnn").path)}
    trees = {
        "second": ("waymo/second.yaml", model),
        "voxel_rcnn": ("kitti/voxel_rcnn.yaml", {**model, "ROI_HEAD": ROI_HEAD}),
        "second_cakdp": (
            "kitti/second_cakdp.yaml",
            {
                **model,
                "POST_PROCESSING": masked,
                "PRUNING": {**pruning, "NUM_FRAMES": 1},
                "DISTILL": {"TEACHER": teacher, "SCORE_THRESH": 0.001},
            },
        ),
    }
    for name, (base, tree) in trees.items():
        write_yaml(Path(world.cfg(name)), {"_BASE_CONFIG_": str(PROJECT / "cfgs" / base), **shared, "MODEL": tree})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes, infos, a trained teacher and student, the student scored, cut, distilled and tested."""
    world = World(tmp_path_factory.mktemp("waymo"))
    write_yaml(world.root / "scenes.yaml", SCENES)
    options = ("--cfg", world.root / "scenes.yaml", "--out", world.data, "--workers", 1)
    outcome = command("make_scenes", "--layout", "waymo", *options)
    assert outcome.code == 0, outcome.err
    write_configs(world)
    outcome = command("make_infos", "--cfg", world.cfg("second"), "--workers", 1)
    assert outcome.code == 0, outcome.err
    for tool, name in (("train", "second"), ("train", "voxel_rcnn"), *((t, "second_cakdp") for t in STAGES)):
        outcome = world.command(tool, name, *(("--num_epochs_to_eval", 0) if tool == "train" else ()))
        assert outcome.code == 0, outcome.err
    return world


STAGES = ("score_filters", "prune", "train", "test")


def test_a_whole_segment_is_held_out_and_scored_on(world):
    config = world.config("second_cakdp")
    parts = {split: build_split(config, split) for split in ("train", "held_out")}
    assert {split: len(set(part.segment_ids)) for split, part in parts.items()} == {"train": 3, "held_out": 1}
    assert not set(parts["train"].segment_ids) & set(parts["held_out"].segment_ids)
    scored = load_scores(world.run("second_cakdp").scores).frame_ids
    assert len(scored) == 1
    assert set(scored) <= set(parts["held_out"].frame_ids)


def test_compact_student_is_half_and_was_distilled(world):
    run = world.run("second_cakdp")
    plan = load_plan(run.plan)
    assert plan.keep_ratio == pytest.approx(0.5, abs=0.02)
    content = read_checkpoint(run.path)
    assert content["pruning"]["keep_indices"]
    log = "".join(path.read_text() for path in run.path.glob("train_*.log"))
    assert "distill_loss" in log


def test_figures_are_waymos(world):
    folder = world.run("second_cakdp").evaluation("1", "val", "default")
    metrics = json.loads((folder / "metrics.json").read_text())
    detections = pickle.loads((folder / "result.pkl").read_bytes())
    frames = build_split(world.config("second_cakdp"), "val")
    assert [each["frame_id"] for each in detections] == frames.frame_ids
    assert sum(len(each["name"]) for each in detections) > 0
    again = evaluate_waymo(frames.ground_truth(), detections, frames.class_names).metrics
    assert {name: metrics[name] for name in again} == again
    assert not (folder / "final_result").exists()  # KITTI's label files say nothing here


def test_perfect_detections_of_the_split_score_100(world):
    frames = build_split(world.config("second"), "val")
    truths = frames.ground_truth()
    perfect = [
        {"name": t["name"], "boxes_lidar": t["gt_boxes_lidar"], "score": 0.9 + 0 * t["location"][:, 0]} for t in truths
    ]
    for each, truth in zip(perfect, truths, strict=True):
        seen = truth["num_points_in_gt"] > 0
        each.update({key: each[key][seen] for key in ("name", "boxes_lidar", "score")})
    metrics = evaluate_waymo(truths, perfect, frames.class_names).metrics
    assert list(metrics.values()) == [pytest.approx(100.0)] * len(metrics)


def test_metric_must_be_that_of_the_data_set(world, tmp_path):
    cfg = world.variant("second", tmp_path, {"MODEL": {"POST_PROCESSING": {"EVAL_METRIC": "kitti"}}})
    outcome = command("train", "--cfg", cfg, "--output_dir", tmp_path, "--device", "cpu", "--workers", 0)
    assert "EVAL_METRIC is 'kitti', but WaymoDataset is judged by 'waymo'" in outcome.error
