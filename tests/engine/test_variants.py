"""What the paper compares itself with, by key and command: criteria, score tables, ways of distilling, class orders."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_world import PROJECT, scalars

from cakdp_ext.checkpoint import read_checkpoint
from cakdp_ext.config import load_config
from cakdp_ext.datasets import collate
from cakdp_ext.engine.build import build_full, build_student
from cakdp_ext.engine.compress import Contestant, _contestants
from cakdp_ext.engine.data import build_split
from cakdp_ext.pruning import (
    apply_plan,
    channel_graph,
    count_parameters,
    import_score_table,
    load_plan,
    load_scores,
    plan_from_scores,
)
from cakdp_ext.types import LidarGeometry

pytestmark = pytest.mark.xdist_group("engine")


@pytest.fixture(scope="module")
def run(compressed):
    return compressed.run("second_cakdp")


# Criteria


def flat(arrays):
    return np.concatenate(list(arrays.values()))


def kept(plan):
    return np.concatenate([np.isin(range(total), plan.keep_indices[name]) for name, total in plan.num_filters.items()])


def prune(world, run, tag, *options):
    outcome = world.command("prune", "second_cakdp", "--set", *options, tag=tag)
    assert outcome.code == 0, outcome.err
    return load_plan(world.run("second_cakdp", tag).plan), outcome.out


def test_the_global_reverse_keeps_the_filters_that_matter_least(compressed, run):
    named = ("MODEL.PRUNING.SCORES", run.scores, "MODEL.PRUNING.MIN_FILTERS", 0, "MODEL.PRUNING.KEEP_RATIO", 0.9)
    plan, said = prune(compressed, run, "reverse_all", "MODEL.PRUNING.CRITERION", "RV-CaPr-global", *named)
    scores, stays = flat(load_scores(run.scores).values), kept(plan)
    assert scores[stays].max() <= scores[~stays].min()
    assert stays.sum() == int(0.9 * len(scores))
    assert plan.source["criterion"] == "RV-CaPr-global"
    assert f"by RV-CaPr-global: {stays.sum()} of {len(scores)} decisions stay" in said


def test_the_reverse_has_the_widths_of_the_criterion(compressed, run):
    named = ("MODEL.PRUNING.SCORES", run.scores)
    plan, said = prune(compressed, run, "reverse", "MODEL.PRUNING.CRITERION", "RV-CaPr", *named)
    usual, scores = load_plan(run.plan), load_scores(run.scores).values
    for name, keep in plan.keep_indices.items():
        assert len(keep) == len(usual.keep_indices[name])
        gone = np.delete(scores[name], keep)
        assert not len(gone) or scores[name][list(keep)].max() <= gone.min()
    assert plan.keep_indices != usual.keep_indices
    assert "by RV-CaPr: " in said


def test_a_share_of_each_layer_needs_no_scores(compressed, run):
    plan, said = prune(compressed, run, "share", "MODEL.PRUNING.CRITERION", "ProPr", "MODEL.PRUNING.KEEP_RATIO", 0.62)
    assert not compressed.run("second_cakdp", "share").scores.exists()
    assert plan.keep_indices == {name: tuple(range(int(0.62 * total))) for name, total in plan.num_filters.items()}
    assert "by ProPr: " in said


def test_nothing_is_scored_for_it(compressed):
    outcome = compressed.command("score_filters", "second_cakdp", "--set", "MODEL.PRUNING.CRITERION", "ProPr", tag="no")
    assert "MODEL.PRUNING.CRITERION ProPr asks for no scores; run tools/prune.py" in outcome.error


def test_an_unknown_criterion_lists_the_known_ones(compressed):
    outcome = compressed.command("prune", "second_cakdp", "--set", "MODEL.PRUNING.CRITERION", "L1", tag="no")
    assert "CRITERION must be one of CaPr, RV-CaPr, RV-CaPr-global, ProPr, got 'L1'" in outcome.error
    assert "the paper's RD-CaPr is CaPr with INITIAL_WEIGHTS: random" in outcome.error


def test_a_plan_by_another_criterion_is_not_gone_on_with(compressed):
    run = compressed.copy_run("second_cakdp", "other_criterion")
    outcome = compressed.command(
        "compress", "second_cakdp", "--set", "MODEL.PRUNING.CRITERION", "RV-CaPr", tag=run.path.name
    )
    assert "was made with CRITERION CaPr, now RV-CaPr is asked for; use another --extra_tag" in outcome.error


def test_report_and_log_name_what_was_compared(compressed):
    options = ("--set", "MODEL.PRUNING.CRITERION", "ProPr", "MODEL.PRUNING.INITIAL_WEIGHTS", "random")
    outcome = compressed.command("compress", "second_cakdp", *options, tag="variant")
    assert outcome.code == 0, outcome.err
    run = compressed.run("second_cakdp", "variant")
    assert not run.scores.exists()
    assert "of the filters, by ProPr, random weights" in (run.path / "report.html").read_text(encoding="utf-8")
    assert json.loads((run.path / "report.json").read_text())["title"].endswith("by ProPr, random weights")
    assert "of the filters, chosen by ProPr, random weights" in outcome.out


def test_random_weights_are_not_the_students(compressed, run):
    config = compressed.config("second_cakdp", "MODEL.PRUNING.INITIAL_WEIGHTS", "random")
    plan, geometry = load_plan(run.plan), build_split(config, "val").geometry
    trained = read_checkpoint(compressed.run("second").path)["model_state"]
    models = []
    for which in (config, compressed.config("second_cakdp")):
        torch.manual_seed(5)
        models.append(build_student(which, geometry, plan).model.state_dict())
    name = "backbone_2d.blocks.0.1.weight"
    inputs = torch.tensor(plan.keep_indices["backbone_2d.blocks.0.1"])
    assert models[0][name].shape == models[1][name].shape
    assert not torch.equal(models[0][name], models[1][name])
    stem = "backbone_3d.conv_input.0"
    assert torch.equal(models[1][f"{stem}.weight"], trained[f"{stem}.weight"][list(plan.keep_indices[stem])])
    assert not torch.equal(models[0][f"{stem}.weight"], models[1][f"{stem}.weight"])
    assert len(inputs) == len(models[0][name])


# Tables of the paper's authors


@pytest.fixture(scope="module")
def second():
    """The full-size SECOND of the paper, and what feeds what in it."""
    config = load_config(PROJECT / "cfgs/kitti/second.yaml")
    geometry = LidarGeometry((0.0, -40.0, -3.0, 70.4, 40.0, 1.0), (0.05, 0.05, 0.1))
    small = LidarGeometry((0.0, -3.2, -3.0, 6.4, 3.2, 1.0), (0.05, 0.05, 0.1))
    with torch.random.fork_rng():
        assert geometry.grid_size[2] == small.grid_size[2]
        model = build_full(config, small)
    return model, channel_graph(model, small)


def parameters_by_hand(plan):
    """Count SECOND's parameters from its widths: 26 convolutions, their norms, the head."""
    widths = {name: len(keep) for name, keep in plan.keep_indices.items()}
    names = list(widths)
    sparse, blocks, deblocks = names[:12], names[12:24], names[24:]
    total, before = 0, 4
    for name in sparse:
        kernel = 3 if name == "backbone_3d.conv_out.0" else 27
        total, before = total + kernel * before * widths[name] + 2 * widths[name], widths[name]
    before *= 2  # two layers of height side by side
    ends = {}
    for name in blocks:
        total, before = total + 9 * before * widths[name] + 2 * widths[name], widths[name]
        ends[name.split(".")[2]] = before
    for name, size in zip(deblocks, (1, 2), strict=True):
        total += size * size * ends[name.split(".")[2]] * widths[name] + 2 * widths[name]
    merged = sum(widths[name] for name in deblocks)
    return total + (merged + 1) * (6 * 3 + 6 * 7 + 6 * 2)


@pytest.mark.parametrize("ratio", [1.0, 0.75, 0.5, 0.3])
def test_parameters_of_the_compact_second_follow_from_a_table(second, ratio, tmp_path):
    """One row a GPU, one number a filter: 3D backbone, 2D blocks, 2D deblocks; the summed rows are the score."""
    model, graph = second
    widths = [16] * 2 + [32] * 3 + [64] * 6 + [128] + [128] * 6 + [256] * 6 + [256] * 2
    assert [layer.num_filters for layer in graph.prunable] == widths
    rng = np.random.default_rng(7)
    table = rng.gamma(2.0, size=(8, sum(widths))) * np.repeat(rng.uniform(0.9, 1.1, len(widths)), widths)
    np.savetxt(tmp_path / "table.txt", table, fmt="%.9e")
    plan = plan_from_scores(import_score_table(tmp_path / "table.txt", graph), graph, ratio)
    best = np.argsort(-np.loadtxt(tmp_path / "table.txt").sum(axis=0), kind="stable")[: int(ratio * sum(widths))]
    expected, start = [], 0
    for width in widths:
        expected.append(tuple(sorted(int(i) - start for i in best if start <= i < start + width)))
        start += width
    assert list(plan.keep_indices.values()) == expected
    compact = count_parameters(apply_plan(model, plan, graph))
    assert compact == parameters_by_hand(plan)
    assert (compact == 5_325_576) == (ratio == 1.0)


def rows_of(run, count):
    scores = flat(load_scores(run.scores).values)
    return [" ".join(map(repr, (scores / count).tolist())) for _ in range(count)]


def test_a_plan_from_a_table_says_so(compressed, run, tmp_path):
    (tmp_path / "table.txt").write_text("\n".join(rows_of(run, 4)) + "\n")
    plan, _ = prune(compressed, run, "of_table", "MODEL.PRUNING.SCORES", tmp_path / "table.txt")
    assert plan.keep_indices == load_plan(run.plan).keep_indices
    assert plan.source["criterion"] == "CaPr"
    assert plan.source["scores"] == str(tmp_path / "table.txt")
    assert (plan.source["removal"], plan.source["split"]) == ("zero_weight", "val")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: [rows[0], rows[1].rpartition(" ")[0]], "line 2 has "),
        (lambda rows: [rows[0], rows[1] + " 0.5"], "prunable filters; take the table of this very network"),
        (lambda rows: ["nan " + rows[0].partition(" ")[2]], "line 1: number 1 is not finite"),
        (lambda rows: [rows[0].rpartition(" ")[0] + " -inf"], "is not finite"),
        (lambda rows: ["scores: " + rows[0]], "line 1: could not convert string to float: 'scores:'"),
        (lambda rows: ["", " "], "holds no row of scores"),
    ],
)
def test_a_table_that_does_not_fit_ends_in_one_line(compressed, run, tmp_path, spoil, message):
    (tmp_path / "table.txt").write_text("\n".join(spoil(rows_of(run, 2))))
    options = ("--set", "MODEL.PRUNING.SCORES", tmp_path / "table.txt")
    outcome = compressed.command("prune", "second_cakdp", *options, tag="bad_table")
    assert message in outcome.error
    assert str(tmp_path / "table.txt") in outcome.error
    assert not compressed.run("second_cakdp", "bad_table").plan.exists()


def test_a_table_of_bytes_is_no_table(compressed, tmp_path):
    (tmp_path / "table.txt").write_bytes(b"\xff\xfe\x00\x01")
    options = ("--set", "MODEL.PRUNING.SCORES", tmp_path / "table.txt")
    assert "is no text" in compressed.command("prune", "second_cakdp", *options, tag="bad_table").error


# Ways of distilling


@pytest.mark.parametrize("method", ["TKD", "TSKD", "PointDistiller"])
def test_the_teachers_way_trains_by_command(compressed, run, method):
    options = ("--num_epochs_to_eval", 0, "--set", "MODEL.PRUNING.PLAN", run.plan, "MODEL.DISTILL.METHOD", method)
    outcome = compressed.command("train", "second_cakdp", *options, tag=method)
    assert outcome.code == 0, outcome.err
    found = scalars(compressed.run("second_cakdp", method).tensorboard)
    usual = scalars(run.tensorboard)
    first = {tag: rows[0][1] for tag, rows in found.items()}
    assert first["train/distill_loss"] > 0
    for part in ("cls_loss", "loc_loss", "dir_loss", "iou_loss"):
        assert first[f"train/{part}"] == pytest.approx(usual[f"train/{part}"][0][1], rel=1e-5)
    assert first["train/distill_loss"] != pytest.approx(usual["train/distill_loss"][0][1], rel=1e-2)


def test_an_unknown_method_lists_the_known_ones(compressed, run):
    options = ("--set", "MODEL.PRUNING.PLAN", run.plan, "MODEL.DISTILL.METHOD", "XKD")
    outcome = compressed.command("train", "second_cakdp", *options, tag="bad")
    assert "unknown distillation METHOD 'XKD'; valid methods: " in outcome.error
    assert all(name in outcome.error for name in ("GID", "SKD", "SparseKD", "TKD", "TSKD", "VanillaKD"))


def turned_teacher(world, folder, tmp_path):
    """Write the trained teacher as if its classes had been listed in another order; give its YAML and checkpoint."""
    names = ["Cyclist", "Car", "Pedestrian"]
    cfg = world.variant("voxel_rcnn", tmp_path, {"CLASS_NAMES": names})
    (file,) = world.run("voxel_rcnn").checkpoints()
    content = torch.load(file, weights_only=False)
    order = [world.config("voxel_rcnn").CLASS_NAMES.index(name) for name in names]
    for part in ("weight", "bias"):
        tensor = content["model_state"][f"dense_head.conv_cls.{part}"]
        rows = tensor.view(-1, 3, *tensor.shape[1:])[:, order]
        content["model_state"][f"dense_head.conv_cls.{part}"] = rows.reshape(tensor.shape).clone()
    torch.save(content, folder / "turned.pth")
    return cfg, folder / "turned.pth"


@pytest.mark.parametrize("method", ["SKD", "TSKD"])
def test_a_teacher_with_its_classes_in_another_order_teaches_the_same(compressed, run, tmp_path, method):
    cfg, ckpt = turned_teacher(compressed, tmp_path, tmp_path)
    found = []
    for tag, more in (
        ("straight", ()),
        ("turned", ("MODEL.DISTILL.TEACHER.CFG", cfg, "MODEL.DISTILL.TEACHER.CKPT", ckpt)),
    ):
        options = ("--num_epochs_to_eval", 0, "--set", "MODEL.PRUNING.PLAN", run.plan, "MODEL.DISTILL.METHOD", method)
        outcome = compressed.command("train", "second_cakdp", *options, *more, tag=f"{tag}_{method}")
        assert outcome.code == 0, outcome.err
        found.append(scalars(compressed.run("second_cakdp", f"{tag}_{method}").tensorboard)["train/distill_loss"])
    assert found[0][0][1] == pytest.approx(found[1][0][1], rel=1e-4)
    assert found[0][0][1] > 0


def test_the_report_counts_such_a_teachers_detections_by_the_students_labels(compressed, run, tmp_path):
    cfg, ckpt = turned_teacher(compressed, tmp_path, tmp_path)
    labels = []
    for more in ((), ("MODEL.DISTILL.TEACHER.CFG", cfg, "MODEL.DISTILL.TEACHER.CKPT", str(ckpt))):
        config = compressed.config("second_cakdp", *more)
        val = build_split(config, "val")
        teacher: Contestant = next(_contestants(config, run, load_plan(run.plan), val.geometry))
        with torch.no_grad():
            labels.append([one.labels.tolist() for one in teacher.model.eval()(collate(list(val)))])
    assert labels[0] == labels[1]
    assert len({label for frame in labels[0] for label in frame}) > 1
