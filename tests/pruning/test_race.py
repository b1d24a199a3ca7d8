"""A race ends early, with the filters that all frames would keep, and says how sure it is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cakdp_ext.pruning import Forced, RaceRules, Standing, decide
from cakdp_ext.pruning.race import _tail


def made_up_gaps(frames=64, groups=400, seed=0, noise=0.4, unlike=0.0):
    """Filters differ much, frames differ more; each filter's worth varies from frame to frame, some's more."""
    draw = np.random.default_rng(seed)
    worth, busy = draw.normal(0, 1.2, groups), draw.normal(0, 1, (frames, 1))
    noise = noise * np.exp(unlike * draw.normal(0, 1, groups))
    return np.exp(worth + busy + noise * draw.normal(0, 1, (frames, groups)))


def agreement_of(gaps, rules):
    """Share of what a race keeps that all frames keep, and the share that it states."""
    standing, measured = run(gaps, rules)
    kept = kept_of(standing, measured, rules)
    exact = set(np.argsort(-gaps.mean(axis=0))[: len(kept)].tolist())
    return len(exact & kept) / len(kept), standing.agreement


def run(gaps, rules, forced=Forced()):  # noqa: B008
    """Race over rows of ``gaps`` as the engine does; give the standing and what was measured."""
    standing, measured = Standing.start(gaps.shape[1], forced), np.full_like(gaps, np.nan)
    for stage in rules.stages(len(gaps)):
        for frame in stage:
            measured[frame, standing.open] = gaps[frame, standing.open]
        standing = decide(standing, measured[: stage.stop], len(gaps), rules, forced)
        if standing.agreement >= rules.agreement or not len(standing.open):
            break
    return standing, measured


def kept_of(standing, measured, rules):
    means = np.nan_to_num(np.nanmean(measured, axis=0))
    order = np.lexsort((-means, -standing.decided))
    return set(order[: int(rules.keep_ratio * len(order))].tolist())


@pytest.mark.parametrize("keep_ratio", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_race_keeps_what_all_frames_keep_for_a_fraction_of_the_work(keep_ratio, seed):
    gaps, rules = made_up_gaps(seed=seed), RaceRules(keep_ratio)
    agreement, stated = agreement_of(gaps, rules)
    assert agreement >= 0.97
    assert agreement >= stated - 0.03
    assert (~np.isnan(run(gaps, rules)[1])).mean() < 0.5


@pytest.mark.parametrize("num_frames", [5, 16])
def test_few_frames_of_unlike_filters_agree_as_much_as_is_stated(num_frames):
    draws = [made_up_gaps(num_frames, 1000, seed, noise=0.17, unlike=0.5) for seed in range(6)]
    agreements, stated = zip(*(agreement_of(gaps, RaceRules(0.5)) for gaps in draws), strict=True)
    assert np.mean(agreements) >= np.mean(stated) - 5e-4


def test_the_doubt_that_is_stated_is_the_doubt_there_is():
    rules, wrong, stated = RaceRules(0.5, agreement=0.9999), [], []
    for seed in range(20):
        gaps = made_up_gaps(seed=seed, groups=200)
        exact = np.argsort(np.argsort(-gaps.mean(axis=0))) < 100
        standing = decide(Standing.start(200), gaps[:6], len(gaps), rules)
        now = np.argsort(np.argsort(-gaps[:6].mean(axis=0))) < 100
        wrong.append((now != exact).mean())
        stated.append(standing.doubt.mean())
    assert 0.5 < np.mean(stated) / np.mean(wrong) < 2


def test_who_is_in_the_race_to_the_last_frame_is_in_no_doubt():
    gaps, rules = made_up_gaps(frames=4), RaceRules(0.5, agreement=0.99999)
    standing, measured = run(gaps, rules)
    to_the_end = ~np.isnan(measured[-1])
    assert 0 < to_the_end.sum() < 400
    assert not standing.doubt[to_the_end].any()
    exact = set(np.argsort(-gaps.mean(axis=0))[:200].tolist())
    assert len(exact & kept_of(standing, measured, rules)) >= 190


def test_dead_filters_leave_at_the_first_decision():
    gaps = made_up_gaps()
    gaps[:, ::4] = 0
    standing = decide(Standing.start(400), gaps[:2], len(gaps), RaceRules(0.5))
    assert (standing.decided[::4] == -1).all()


def test_nothing_is_left_to_decide_when_one_side_is_full():
    gaps, rules = made_up_gaps(), RaceRules(0.5)
    full = Standing(np.array([1] * 200 + [0] * 200, np.int8), np.zeros(400), 0.0)
    assert (decide(full, gaps[:2], len(gaps), rules).decided[200:] == -1).all()
    needed = Standing(np.array([-1] * 200 + [0] * 200, np.int8), np.zeros(400), 0.0)
    assert (decide(needed, gaps[:2], len(gaps), rules).decided[200:] == 1).all()


def test_a_race_repeats_itself():
    gaps, rules = made_up_gaps(), RaceRules(0.3)
    (one, first), (two, second) = run(gaps, rules), run(gaps, rules)
    assert np.array_equal(one.decided, two.decided)
    assert np.array_equal(first, second, equal_nan=True)


@pytest.mark.parametrize("num_frames", [0, 1, 2, 3, 17, 128])
def test_stages_take_every_frame_once(num_frames):
    stages = list(RaceRules(0.5).stages(num_frames))
    assert [frame for stage in stages for frame in stage] == list(range(num_frames))
    assert all(len(stage) for stage in stages)


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"keep_ratio": 1.0}, "KEEP_RATIO of a race"), ({"confidence": 0.0}, "CONFIDENCE"), ({"first": 1}, "2 frames")],
)
def test_rules_that_make_no_sense_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        RaceRules(**{"keep_ratio": 0.5, **keys})


def test_tail_is_students():
    for freedom in (3.0, 5.0, 9.0, 40.0):
        for value in (0.0, 0.7, 2.0, 4.0):
            assert abs(_tail(value, freedom) - stats.t.sf(value, freedom)) < 2e-3
