"""Which frames a file of scores stands for: a race's own, or those asked for; others are refused where it is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_cut import randomize_norms

from cakdp_ext.checkpoint import write_checkpoint
from cakdp_ext.config import ConfigError
from cakdp_ext.engine import score as scoring
from cakdp_ext.engine.build import build_full
from cakdp_ext.engine.cut import Place
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.distributed import Workers
from cakdp_ext.engine.prune import cuts_of
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.engine.score import race
from cakdp_ext.pruning import (
    ChannelGraph,
    Filter,
    Forced,
    ProducerLayer,
    RaceRules,
    channel_graph,
    counting,
    lacking,
    model_fingerprint,
    save_scores,
    with_gaps,
)
from cakdp_ext.types import FilterScores, RaceResult

NUM_FRAMES, NUM_GROUPS = 24, 60
FRAMES = [f"f{i:02}" for i in range(NUM_FRAMES)]
LAYER = ProducerLayer("a", (NUM_GROUPS, 1), ((),) * NUM_GROUPS, ((),) * NUM_GROUPS)
GRAPH = ChannelGraph({"a": LAYER}, (LAYER,), tuple((Filter("a", i),) for i in range(NUM_GROUPS)), {})
EMPTY = FilterScores({}, "weights", "channel", "val", (), "0", np.zeros((0, NUM_GROUPS)))
ALL = np.arange(NUM_GROUPS)


def made_up_gaps():
    draw = np.random.default_rng(0)
    worth, busy = draw.normal(0, 1.2, NUM_GROUPS), draw.normal(0, 1, (NUM_FRAMES, 1))
    return dict(zip(FRAMES, np.exp(worth + busy + 0.5 * draw.normal(0, 1, (NUM_FRAMES, NUM_GROUPS))), strict=True))


GAPS = made_up_gaps()


def measure(scores, asked):
    """Look up what is lacking."""
    rows = {}
    for frame, numbers in lacking(scores, asked).items():
        rows[frame] = np.full(NUM_GROUPS, np.nan)
        rows[frame][numbers] = GAPS[frame][numbers]
    return counting(with_gaps(scores, rows), asked, GRAPH)


def same(one, two):
    assert one.frame_ids == two.frame_ids
    assert np.array_equal(one.gaps, two.gaps, equal_nan=True)
    assert np.array_equal(one.values["a"], two.values["a"])
    return one.race.agreement == two.race.agreement and np.array_equal(one.race.decided, two.race.decided)


def test_a_race_counts_what_its_filters_saw_in_it_whatever_is_on_record():
    rules = RaceRules(0.5)
    fresh = race(EMPTY, FRAMES, rules, measure)
    assert np.isnan(fresh.gaps).any(), "somebody must leave early"
    assert not fresh.spare
    exact = measure(EMPTY, dict.fromkeys(FRAMES, ALL))
    assert same(race(replace(exact, race=None), FRAMES, rules, measure), fresh)
    other = race(EMPTY, FRAMES[:16], RaceRules(0.3), measure)
    after = race(replace(other, race=None), FRAMES, rules, measure)
    assert same(after, fresh)
    assert after.spare, "what else was measured stays on record"


def test_exact_scores_after_a_race_are_those_of_the_frames_asked_for():
    raced = race(EMPTY, FRAMES, RaceRules(0.5), measure)
    asked = dict.fromkeys(FRAMES[::4], ALL)
    after = measure(replace(raced, race=None), asked)
    assert after.frame_ids == tuple(asked)
    np.testing.assert_allclose(after.values["a"], np.mean([GAPS[frame] for frame in asked], axis=0))
    fewer = measure(measure(EMPTY, dict.fromkeys(FRAMES, ALL)), asked)
    assert np.array_equal(fewer.values["a"], after.values["a"])


def test_the_seed_draws_the_order_of_frames_and_is_noted():
    one, two, other = (race(EMPTY, FRAMES, RaceRules(0.5, seed=seed), measure) for seed in (3, 3, 4))
    assert same(one, two)
    assert one.frame_ids != other.frame_ids
    assert (one.race.seed, one.race.num_frames, other.race.seed) == (3, NUM_FRAMES, 4)


def test_forced_filters_are_not_measured():
    raced = race(EMPTY, FRAMES, RaceRules(0.5), measure, Forced((0, 7)))
    assert np.isnan(raced.gaps[:, [0, 7]]).all()
    assert raced.race.decided[[0, 7]].tolist() == [2, 2]


def test_only_the_first_process_reads_the_scores_so_far(tmp_path, monkeypatch):
    run, said = RunFolder(tmp_path), measure(EMPTY, {"f00": ALL})
    save_scores(run.scores, replace(said, frame_ids=("elsewhere",)))
    shared = []
    monkeypatch.setattr(scoring, "gather", lambda mine: shared.append(mine) or [said, mine])
    assert scoring._previous(run, Workers(1, 2, torch.device("cpu"))) is said
    assert shared == [None]
    run.scores.write_bytes(b"cut off")
    monkeypatch.setattr(scoring, "gather", lambda mine: [mine, None])
    with pytest.raises(ValueError, match="is no whole score file"):
        scoring._previous(run, Workers(0, 2, torch.device("cpu")))


@pytest.fixture(scope="module")
def known(world, tmp_path_factory):
    """A student as if trained, and complete scores of its two held-out frames, gap by gap."""
    folder = tmp_path_factory.mktemp("known")
    geometry = build_split(world.config("second"), "val").geometry
    torch.manual_seed(0)
    full = build_full(world.config("second"), geometry)
    randomize_norms(full)
    write_checkpoint(folder / "full.pth", full, {"epoch": 1, "settings": {"DATA_CONFIG.NUM_HELD_OUT": "2"}})
    graph, frames = channel_graph(full, geometry), build_split(world.config("second"), "held_out").frame_ids
    gaps = np.random.default_rng(0).random((2, len(graph.groups)))
    scores = FilterScores({}, model_fingerprint(full), "channel", "held_out", (), "0", np.zeros((0, len(graph.groups))))
    scores = with_gaps(scores, dict(zip(frames, gaps, strict=True)))
    return folder, counting(scores, dict.fromkeys(frames, np.arange(len(graph.groups))), graph), graph


@pytest.fixture
def plan(world, known, tmp_path):
    """Choose a cut from scores that the run folder holds, or that are named by hand."""

    def run_it(scores, *more, named):
        run, file = RunFolder(tmp_path / "run"), tmp_path / "named.npz"
        save_scores(file if named else run.scores, scores)
        files = ["MODEL.PRUNING.STUDENT.CKPT", str(known[0] / "full.pth")]
        files += ["MODEL.PRUNING.SCORES", str(file)] if named else []
        return cuts_of(world.config("second_cakdp", *files, *map(str, more)), run, Place()).choose()

    return run_it


def raced(scores, num_frames):
    decided = np.zeros(scores.gaps.shape[1], np.int8)
    return replace(scores, race=RaceResult(0.5, 0.99, 1.0, decided, 0, num_frames))


@pytest.mark.parametrize("named", [True, False])
def test_scores_of_other_frames_than_those_asked_for_are_refused(plan, known, named):
    _, scores, graph = known
    cure = "complete it with tools/score_filters.py in its run folder" if named else "run tools/score_filters.py again"
    one = counting(scores, dict.fromkeys(scores.frame_ids[:1], np.arange(len(graph.groups))), graph)
    holes = replace(scores, gaps=np.where(np.arange(len(graph.groups)) == 3, np.nan, scores.gaps))
    fewer = ("MODEL.PRUNING.NUM_FRAMES", 1)
    for bad, asked, message in (
        (one, (), "lacks 1 of 2 frames"),
        (holes, (), "lacks 2 of 2 frames"),
        (scores, fewer, r"counts 1 frames that are not asked for \(SPLIT held_out, NUM_FRAMES 1\)"),
        (raced(scores, 2), fewer, "holds a race over 2 frames, 1 are asked for"),
        (raced(one, 1), (), "holds a race over 1 frames, 2 are asked for"),
        (scores, ("MODEL.PRUNING.SPLIT", "val"), "was made with SPLIT held_out, now "),
    ):
        with pytest.raises(ConfigError, match=f"{message}.*{cure if message[:3] != 'was' else ''}"):
            plan(bad, *asked, named=named)


@pytest.mark.parametrize("named", [True, False])
def test_scores_of_exactly_the_frames_asked_for_are_taken(plan, known, named):
    _, scores, graph = known
    first = counting(scores, dict.fromkeys(scores.frame_ids[:1], np.arange(len(graph.groups))), graph)
    assert first.spare
    fewer = ("MODEL.PRUNING.NUM_FRAMES", 1)
    assert plan(scores, named=named).source["num_frames"] == 2
    assert plan(first, *fewer, named=named).source["num_frames"] == 1
    assert plan(raced(scores, 2), named=named).source["race"]["num_frames"] == 2
    assert plan(raced(scores, None), named=named).source["race"]["num_frames"] is None


def test_named_scores_without_gaps_are_taken_as_they_are(plan, known):
    scores = replace(known[1], gaps=None, spare={})
    assert plan(scores, "MODEL.PRUNING.NUM_FRAMES", 1, named=True).source["num_frames"] == 2
    assert plan(replace(scores, frame_ids=()), named=True).source["num_frames"] == 0
