"""Scores and plans on disk: what was written comes back, and nothing else does."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from pruning_networks import SparseDense, voxel_batch
from torch import nn

from cakdp_ext.pruning import (
    architecture_fingerprint,
    import_score_table,
    load_plan,
    load_scores,
    model_fingerprint,
    plan_from_dict,
    plan_from_scores,
    plan_to_dict,
    save_plan,
    save_scores,
    trace_channels,
)
from cakdp_ext.types import FilterScores, PruningPlan, RaceResult


@pytest.fixture(scope="module")
def graph():
    batch = voxel_batch()
    return trace_channels(SparseDense(), lambda network: network(batch))


@pytest.fixture
def scores(graph):
    rng = np.random.default_rng(0)
    values = {layer.name: rng.random(layer.num_filters) / 3 for layer in graph.prunable}
    return FilterScores(values, "abc", "channel", "held_out", ("000003", "Straße/7"), "0.1.0")


@pytest.fixture
def plan():
    return PruningPlan({"a.0": (0, 2), "b": (1,)}, {"a.0": 3, "b": 2}, "f00d", {"keep_ratio": 0.5, "scores": "x.npz"})


def test_scores_come_back_bit_by_bit(tmp_path, scores):
    save_scores(tmp_path / "deep" / "scores.npz", scores)
    loaded = load_scores(tmp_path / "deep" / "scores.npz")
    assert list(loaded.values) == list(scores.values)
    assert all(
        np.array_equal(loaded.values[n], v) and loaded.values[n].dtype == np.float64 for n, v in scores.values.items()
    )
    for name in ("fingerprint", "removal", "split", "frame_ids", "version"):
        assert getattr(loaded, name) == getattr(scores, name)


def test_score_file_opens_with_plain_numpy(tmp_path, scores):
    save_scores(tmp_path / "scores.npz", scores)
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as content:
        header = json.loads(bytes(content["header"]))
    assert header["split"] == "held_out"
    assert header["layers"] == list(scores.values)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_cut_off_score_file_is_refused(tmp_path, scores, part):
    path = tmp_path / "scores.npz"
    save_scores(path, scores)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"scores.npz is no whole score file"):
        load_scores(path)


def test_files_of_another_kind_are_refused(tmp_path, plan):
    np.savez(tmp_path / "other.npz", header=np.frombuffer(b"{}", np.uint8))
    with pytest.raises(ValueError, match=r"expected the format cakdp_ext.filter_scores"):
        load_scores(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", header=np.array([object()]))
    with pytest.raises(ValueError, match="no whole score file"):
        load_scores(tmp_path / "pickled.npz")
    (tmp_path / "plan.json").write_text('{"format": "something"}')
    with pytest.raises(ValueError, match=r"plan.json is no whole pruning plan: expected the format"):
        load_plan(tmp_path / "plan.json")
    future = {**plan_to_dict(plan), "format_version": 2}
    with pytest.raises(ValueError, match="format version 2 is not 1"):
        plan_from_dict(future)


def test_absent_files_say_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match=r"no score file at .*score_filters.py"):
        load_scores(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"no pruning plan at .*prune.py"):
        load_plan(tmp_path / "none.json")


@pytest.mark.parametrize("save", ["scores", "plan"])
def test_a_failed_write_leaves_the_old_file(tmp_path, scores, plan, monkeypatch, save):
    path, write, what = {
        "scores": (tmp_path / "s.npz", save_scores, scores),
        "plan": (tmp_path / "p.json", save_plan, plan),
    }[save]
    write(path, what)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(path, what)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_plan_comes_back_and_reads_like_text(tmp_path, plan):
    save_plan(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json") == plan
    assert '"a.0": [ 0, 2 ]' in (tmp_path / "plan.json").read_text()


def test_plan_survives_a_checkpoint(tmp_path, plan):
    torch.save({"pruning": plan_to_dict(plan)}, tmp_path / "c.pth")
    assert plan_from_dict(torch.load(tmp_path / "c.pth", weights_only=True)["pruning"]) == plan


def test_cut_off_plan_is_refused(tmp_path, plan):
    save_plan(tmp_path / "plan.json", plan)
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"plan.json is no whole pruning plan"):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("kept", [[2, 0], [0, 0], [0, 3], [-1], [0.5], [True]])
def test_indices_that_are_no_ascending_filters_are_refused(plan, kept):
    content = plan_to_dict(plan)
    content["keep_indices"]["a.0"] = kept
    with pytest.raises(ValueError, match=r"keep_indices of a.0 must be ascending filters below 3"):
        plan_from_dict(content)


def test_plan_with_parts_missing_is_refused(plan):
    content = plan_to_dict(plan)
    del content["num_filters"]
    with pytest.raises(ValueError, match="the plan has no num_filters"):
        plan_from_dict(content)
    content = plan_to_dict(plan)
    del content["keep_indices"]["b"]
    with pytest.raises(ValueError, match=r"num_filters names a.0, b, keep_indices a.0"):
        plan_from_dict(content)


def test_released_table_is_summed_over_its_rows_in_canonical_order(tmp_path, graph):
    table = np.arange(2.0 * 32).reshape(2, 32)
    np.savetxt(tmp_path / "table.txt", table)
    imported = import_score_table(tmp_path / "table.txt", graph)
    assert list(imported.values) == [layer.name for layer in graph.prunable]
    assert np.array_equal(np.concatenate(list(imported.values.values())), table.sum(axis=0))
    assert imported.values["backbone_3d.down.0"][0] == 6 + 38
    plan_from_scores(imported, graph, 0.9, min_filters=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n", "line 1 has 3 numbers, but the network has 32 prunable filters"),
        ("1, " * 31 + "x", "line 1: could not convert string to float: 'x'; expected one number a filter"),
        ("1 " * 32 + "\n\n" + "1 " * 31 + "nan", "line 3: number 32 is not finite"),
        ("\n", "holds no row"),
    ],
)
def test_released_table_that_does_not_fit_is_refused(tmp_path, graph, text, message):
    (tmp_path / "table.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        import_score_table(tmp_path / "table.txt", graph)


def test_model_fingerprint_knows_weights_and_ignores_counters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    model.register_buffer("global_step", torch.zeros(1, dtype=torch.int64))
    first = model_fingerprint(model)
    model.global_step += 5
    model[1].num_batches_tracked += 5
    assert model_fingerprint(model) == first
    model[1].running_mean[0] += 1e-6
    changed = model_fingerprint(model)
    assert changed != first
    assert model_fingerprint(model.bfloat16()) not in (first, changed)


def test_architecture_fingerprint_knows_shapes_and_ignores_weights(graph):
    batch = voxel_batch()
    trace = lambda model: trace_channels(model, lambda network: network(batch))  # noqa: E731
    assert architecture_fingerprint(trace(SparseDense())) == architecture_fingerprint(graph)
    wide = SparseDense()
    wide.backbone_2d["side"] = nn.Conv2d(7, 4, 3, padding=1)
    assert architecture_fingerprint(trace(wide)) != architecture_fingerprint(graph)


@pytest.fixture
def raced(scores):
    gaps = np.array([[1.0, np.nan], [0.5, 2.0]])
    race = RaceResult(0.5, 0.9, 0.995, np.array([1, -1], np.int8), seed=3, num_frames=16)
    return replace(scores, gaps=gaps, race=race, spare={"f9": np.array([np.nan, 4.0])})


def test_a_race_and_what_does_not_count_come_back(tmp_path, raced):
    save_scores(tmp_path / "scores.npz", raced)
    loaded = load_scores(tmp_path / "scores.npz")
    assert np.array_equal(loaded.gaps, raced.gaps, equal_nan=True)
    assert list(loaded.spare) == ["f9"]
    assert np.array_equal(loaded.spare["f9"], raced.spare["f9"], equal_nan=True)
    for name in ("keep_ratio", "confidence", "agreement", "seed", "num_frames"):
        assert getattr(loaded.race, name) == getattr(raced.race, name)
    assert loaded.race.decided.tolist() == [1, -1]


def test_a_race_of_an_earlier_version_is_read(tmp_path, raced):
    """Which did not say how many frames there were, and knew one seed."""
    save_scores(tmp_path / "scores.npz", replace(raced, spare={}))
    with np.load(tmp_path / "scores.npz") as content:
        arrays = dict(content)
    header = json.loads(arrays["header"].tobytes())
    assert "spare_frame_ids" not in header
    del header["race"]["seed"], header["race"]["num_frames"]
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(tmp_path / "old.npz", **arrays)
    loaded = load_scores(tmp_path / "old.npz")
    assert (loaded.race.keep_ratio, loaded.race.seed, loaded.race.num_frames) == (0.5, 0, None)
    assert not loaded.spare
