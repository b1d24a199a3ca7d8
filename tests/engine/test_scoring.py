"""Scoring as a command: by several processes, killed, raced, and asked for something else than before."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from test_distributed import torchrun
from tiny_world import PROJECT, command, start

from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.pruning import load_plan, load_scores, save_scores

pytestmark = pytest.mark.xdist_group("engine")
FLAGS = ("--split", "val", "--mode", "race", "--keep", "0.5")


@pytest.fixture(scope="module")
def exact(trained):
    """Scores of four frames, by one process."""
    outcome = trained.command("score_filters", "second_pruned", "--split", "val", tag="exact")
    assert outcome.code == 0, outcome.err
    return trained.run("second_pruned", "exact")


@pytest.fixture(scope="module")
def raced(trained):
    """Scores of a race over the same frames."""
    outcome = trained.command("score_filters", "second_pruned", *FLAGS, tag="raced")
    assert outcome.code == 0, outcome.err
    assert "race for KEEP_RATIO 0.5" in outcome.out
    return trained.run("second_pruned", "raced")


def test_every_frame_is_on_record(exact):
    scores = load_scores(exact.scores)
    assert len(scores.frame_ids) == len(set(scores.frame_ids)) == 4
    assert scores.gaps.shape == (4, sum(map(len, scores.values.values())))
    np.testing.assert_allclose(scores.gaps.mean(axis=0), np.concatenate(list(scores.values.values())), rtol=1e-12)


@pytest.mark.parametrize("flags", [("--split", "val"), ("--split", "val", "--num_frames", "3"), FLAGS])
def test_two_processes_leave_the_file_that_one_leaves(trained, flags):
    one, two = (trained.run("second_pruned", f"by_{n}_{len(flags)}") for n in ("one", "two"))
    outcome = trained.command("score_filters", "second_pruned", *flags, tag=one.path.name)
    assert outcome.code == 0, outcome.err
    argv = trained.argv("score_filters", "second_pruned", two.path.name)
    torchrun(PROJECT / "tools" / "score_filters.py", *argv, *flags)
    assert two.scores.read_bytes() == one.scores.read_bytes()


def test_killed_again_and_again_it_ends_with_the_same_file(trained, exact):
    run = trained.run("second_pruned", "killed_often")
    argv = [*trained.argv("score_filters", "second_pruned", run.path.name), "--split", "val"]
    patience, kills = 4.0, 0
    while kills < 3:
        process = start("score_filters", *argv)
        time.sleep(patience)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        kills, patience = kills + 1, patience + 1.7
        if run.scores.is_file():
            load_scores(run.scores)  # whole, or not there
    assert kills
    outcome = trained.command("score_filters", "second_pruned", "--split", "val", tag=run.path.name)
    assert outcome.code == 0, outcome.err
    assert run.scores.read_bytes() == exact.scores.read_bytes()


def test_plain_scoring_gives_what_exact_scoring_gives(trained, exact):
    outcome = trained.command(
        "score_filters", "second_pruned", "--split", "val", "--num_frames", 1, "--mode", "plain", tag="plain"
    )
    assert outcome.code == 0, outcome.err
    plain = load_scores(trained.run("second_pruned", "plain").scores)
    fast = load_scores(exact.scores)
    row = fast.gaps[fast.frame_ids.index(plain.frame_ids[0])]
    np.testing.assert_allclose(row, plain.gaps[0], rtol=1e-4, atol=1e-7)


def test_a_race_says_how_it_ended_and_measures_less(raced, exact):
    race, whole = load_scores(raced.scores), load_scores(exact.scores)
    assert race.race.keep_ratio == 0.5
    assert 0.9 < race.race.agreement <= 1
    assert np.isnan(race.gaps).any() or len(race.frame_ids) < len(whole.frame_ids)
    rows = [whole.frame_ids.index(frame) for frame in race.frame_ids]
    is_known = ~np.isnan(race.gaps)
    np.testing.assert_allclose(race.gaps[is_known], whole.gaps[rows][is_known], rtol=1e-5, atol=1e-9)


def test_a_race_is_for_its_own_cut(trained, raced):
    outcome = trained.command(
        "prune", "second_pruned", "--keep", 0.5, "--set", "MODEL.PRUNING.SPLIT", "val", tag="raced"
    )
    assert outcome.code == 0, outcome.err
    source = load_plan(raced.plan).source
    assert source["race"]["confidence"] == 0.99
    raced.plan.unlink()
    for argv in (("--keep", 0.4), ("--sweep", 0.5), ("--params", "0.1M")):
        outcome = trained.command("prune", "second_pruned", *argv, "--set", "MODEL.PRUNING.SPLIT", "val", tag="raced")
        assert "raced for KEEP_RATIO 0.5, which tells nothing about another cut" in outcome.error


def test_an_exact_run_fills_what_a_race_left_open(trained, raced, exact):
    run = trained.run("second_pruned", "filled")
    save_scores(run.scores, load_scores(raced.scores))
    outcome = trained.command("score_filters", "second_pruned", "--split", "val", tag="filled")
    assert outcome.code == 0, outcome.err
    filled, whole = load_scores(run.scores), load_scores(exact.scores)
    assert filled.race is None
    assert filled.frame_ids == whole.frame_ids
    np.testing.assert_allclose(filled.gaps, whole.gaps, rtol=1e-5, atol=1e-9)


def test_fewer_frames_after_a_race_and_the_race_again(trained, raced, exact):
    run, whole, before = trained.run("second_pruned", "fewer"), load_scores(exact.scores), load_scores(raced.scores)
    save_scores(run.scores, before)
    fewer = ("--split", "val", "--num_frames", 2)
    assert trained.command("score_filters", "second_pruned", *fewer, tag="fewer").code == 0
    found = load_scores(run.scores)
    assert len(found.frame_ids) == 2
    rows = [whole.frame_ids.index(frame) for frame in found.frame_ids]
    flat = np.concatenate(list(found.values.values()))
    np.testing.assert_allclose(flat, whole.gaps[rows].mean(axis=0), rtol=1e-5, atol=1e-9)
    outcome = trained.command("prune", "second_pruned", "--set", "MODEL.PRUNING.SPLIT", "val", tag="fewer")
    assert "lacks 2 of 4 frames; run tools/score_filters.py again" in outcome.error
    outcome = trained.command("score_filters", "second_pruned", *FLAGS, tag="fewer")
    assert outcome.code == 0, outcome.err
    again = load_scores(run.scores)
    assert again.frame_ids == before.frame_ids
    assert np.array_equal(again.race.decided, before.race.decided)
    np.testing.assert_allclose(again.gaps, before.gaps, rtol=1e-5, atol=1e-9)


def test_a_race_is_for_the_largest_scores_alone(trained):
    criterion = ("--set", "MODEL.PRUNING.CRITERION", "RV-CaPr-global")
    outcome = trained.command("score_filters", "second_pruned", *FLAGS, *criterion, tag="reverse_race")
    assert "a race settles which filters CRITERION CaPr keeps, not RV-CaPr-global; score exactly" in outcome.error


def test_rules_that_leave_a_race_no_room_are_refused_before_it_starts(trained):
    protect = ("--set", "MODEL.PRUNING.PROTECT", "[backbone_3d, backbone_2d]")
    with_protect = trained.variant("second_pruned", trained.root / "no_room", {"MODEL": {"PRUNING": {"PROTECT": []}}})
    argv = ["--cfg", with_protect, "--output_dir", trained.root / "no_room", "--device", "cpu", "--workers", 0]
    outcome = command("score_filters", *argv, *FLAGS, *protect)
    assert "PROTECT backbone_3d backbone_2d asks for" in outcome.error


def test_the_seed_of_a_race_is_noted(trained, raced):
    run = trained.run("second_pruned", "seeded")
    save_scores(run.scores, load_scores(raced.scores))
    outcome = trained.command("score_filters", "second_pruned", *FLAGS, "--seed", 5, tag="seeded")
    assert outcome.code == 0, outcome.err
    assert (load_scores(run.scores).race.seed, load_scores(raced.scores).race.seed) == (5, 0)


def test_a_process_that_does_not_see_the_file_goes_on_with_the_others(trained, exact, tmp_path):
    scores = load_scores(exact.scores)
    run = RunFolder(tmp_path / "0" / exact.path.relative_to(trained.root / "output"))
    begun = replace(scores, frame_ids=scores.frame_ids[:3], gaps=scores.gaps[:3])
    save_scores(run.scores, begun)
    argv = [word for word in trained.argv("score_filters", "second_pruned", "exact") if word != "--output_dir"]
    argv.remove(str(trained.root / "output"))
    torchrun(PROJECT / "tests" / "engine" / "two_folders.py", tmp_path, *argv, "--split", "val")
    assert run.scores.read_bytes() == exact.scores.read_bytes()
    assert not list((tmp_path / "1").rglob("scores.npz"))


def test_a_race_needs_a_keep_ratio(trained):
    unsaid = ("--set", "MODEL.PRUNING", "{KEEP_RATIO: null, PARAMS: 1M}")
    outcome = trained.command("score_filters", "second_pruned", "--mode", "race", *unsaid, tag="aimless")
    assert "a race decides on one cut: give MODEL.PRUNING.KEEP_RATIO (--keep)" in outcome.error


def test_scores_without_their_frames_cannot_be_gone_on_with(trained, exact):
    run, scores = trained.run("second_pruned", "old"), load_scores(exact.scores)
    save_scores(run.scores, type(scores)(**{**vars(scores), "gaps": None, "frame_ids": scores.frame_ids[:2]}))
    outcome = trained.command("score_filters", "second_pruned", "--split", "val", tag="old")
    assert "do not say what each frame gave" in outcome.error
