"""What the rules of the layers force to stay is known to a race; a cut that it did not settle is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pruning_plan import graph_of, scores_of
from test_race import made_up_gaps, run

from cakdp_ext.pruning import LayerRules, RaceRules, forced_by, ladder_from_scores, plan_from_scores
from cakdp_ext.types import RaceResult

WIDTHS = {"a": 100, "poor": 40, "b": 120, "tiny": 3}
POOR = slice(100, 140)


def gaps_for(seed, frames=64):
    """Gaps of a network with one layer whose filters hardly matter."""
    gaps = made_up_gaps(frames, sum(WIDTHS.values()), seed)
    gaps[:, POOR] /= 50
    return gaps


def scores_from(gaps, race=None):
    """Scores as the engine keeps them."""
    known = ~np.isnan(gaps)
    means = np.where(known, gaps, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    parts = np.split(means, np.cumsum(list(WIDTHS.values()))[:-1])
    frames = tuple(map(str, range(len(gaps))))
    return replace(scores_of(**dict(zip(WIDTHS, parts, strict=True))), frame_ids=frames, gaps=gaps, race=race)


def raced(gaps, keep_ratio, rules=LayerRules()):  # noqa: B008
    """Race with what the rules force."""
    asked = RaceRules(keep_ratio)
    standing, measured = run(gaps, asked, forced_by(rules, graph_of(**WIDTHS)))
    return scores_from(measured, standing.result(asked, len(gaps)))


def kept(scores, keep_ratio, rules):
    graph = graph_of(**WIDTHS)
    return ladder_from_scores(scores, graph, "CaPr", rules).kept_by_ratio(keep_ratio)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    least=st.integers(0, 9),
    size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_what_is_forced_is_what_stays_on_the_lowest_rung_of_any_ranking(widths, least, size, seed):
    names = {f"layer{i}": n for i, n in enumerate(widths)}
    graph, rules = graph_of(**names), LayerRules(least, size, ("layer1",))
    forced = forced_by(rules, graph)
    values = np.random.default_rng(seed).random(sum(widths))
    best = [np.array(group)[np.argsort(-values[group])][:count].tolist() for group, count in forced.best]
    assert lowest(graph, rules, values) == {*forced.always, *sum(best, [])}
    for number in range(len(values)):
        worst = values.copy()
        worst[number] = -1.0
        assert (number in lowest(graph, rules, worst)) == (number in forced.always)


def lowest(graph, rules, values):
    names = [layer.name for layer in graph.prunable]
    parts = np.split(values, np.cumsum([layer.num_filters for layer in graph.prunable])[:-1])
    return ladder_from_scores(scores_of(**dict(zip(names, parts, strict=True))), graph, "CaPr", rules).kept(0)


@pytest.mark.parametrize("keep_ratio", [0.3, 0.5, 0.75])
@pytest.mark.parametrize(
    "rules", [LayerRules(4), LayerRules(protect=("poor",)), LayerRules(6, protect=("tiny", "poor")), LayerRules(3)]
)
def test_a_race_under_rules_ends_in_the_cut_that_all_frames_give(rules, keep_ratio):
    gaps = gaps_for(seed=1)
    forced = forced_by(rules, graph_of(**WIDTHS))
    scores = raced(gaps, keep_ratio, rules)
    want = kept(scores_from(gaps), keep_ratio, rules)
    got = kept(scores, keep_ratio, rules)
    assert len(got) == len(want)
    assert len(got & want) >= 0.97 * len(want)
    assert len(got & want) >= (scores.race.agreement - 0.03) * len(want)
    always = list(forced.always)
    assert np.isnan(scores.gaps[:, always]).all(), "what stays anyway need not be measured"
    assert (scores.race.decided[always] == 2).all()
    assert (~np.isnan(scores.gaps)).mean() < 0.6


def test_the_best_of_a_poor_layer_are_found_by_a_race():
    rules, agreeing = LayerRules(4), []
    for seed in range(8):
        gaps = gaps_for(seed)
        got = kept(raced(gaps, 0.5, rules), 0.5, rules)
        best = 100 + np.argsort(-gaps.mean(axis=0)[POOR])[:4]
        assert sum(100 <= number < 140 for number in got) == 4
        agreeing.append(len(got & set(best.tolist())) / 4)
    assert np.mean(agreeing) > 0.9


def test_rules_that_a_race_did_not_know_are_refused_where_they_move_the_cut():
    graph, scores = graph_of(**WIDTHS), raced(gaps_for(seed=2), 0.5, LayerRules(1))
    assert plan_from_scores(scores, graph, 0.5, min_filters=1).source["decisions"] == [131, 263]
    for rules in ({"min_filters": 12}, {"protect": ["poor"]}, {"round_to": 16}):
        with pytest.raises(
            ValueError, match="the race for KEEP_RATIO 0.5 did not settle this cut: with .* score exact"
        ):
            plan_from_scores(scores, graph, 0.5, **{"min_filters": 1, **rules})


@pytest.mark.parametrize("rules", [LayerRules(12), LayerRules(protect=("poor", "tiny"))])
def test_rules_that_a_race_relied_on_must_hold_for_the_cut(rules):
    scores, graph = raced(gaps_for(seed=3), 0.5, rules), graph_of(**WIDTHS)
    assert plan_from_scores(scores, graph, 0.5, **rules.as_dict()).keep_ratio > 0
    with pytest.raises(ValueError, match="did not settle this cut: with MIN_FILTERS 1, "):
        plan_from_scores(scores, graph, 0.5, min_filters=1)


def decided(*sides):
    return RaceResult(0.5, 0.99, 1.0, np.array(sides, np.int8), num_frames=2)


def test_a_forced_filter_may_take_the_place_of_one_that_was_still_open():
    scores, graph = scores_of(a=[8, 7, 6, 5, 4], b=[3, 2, 1]), graph_of(a=5, b=3)
    open_at_the_cut = replace(scores, race=decided(1, 1, 1, 0, 0, -1, -1, -1))
    plan = plan_from_scores(open_at_the_cut, graph, 0.5, min_filters=1)
    assert plan.keep_indices == {"a": (0, 1, 2), "b": (0,)}
    settled = replace(scores, race=decided(1, 1, 1, 1, -1, -1, -1, -1))
    with pytest.raises(ValueError, match=r"with MIN_FILTERS 1, 1 decisions \(the first: filter 3 of a\) fall on the"):
        plan_from_scores(settled, graph, 0.5, min_filters=1)


def test_equal_scores_do_not_undo_what_a_race_decided():
    scores, graph = scores_of(a=[0, 0, 0, 0], b=[0, 0, 0, 9]), graph_of(a=4, b=4)
    plan = plan_from_scores(replace(scores, race=decided(-1, -1, 0, 0, 1, 1, 0, 1)), graph, 0.5)
    assert plan.keep_indices == {"a": (2,), "b": (0, 1, 3)}


@pytest.mark.parametrize("criterion", ["RV-CaPr", "RV-CaPr-global"])
def test_a_race_says_nothing_about_other_criteria(criterion):
    scores = replace(scores_of(a=[3, 2, 1, 0]), race=decided(1, 1, -1, -1))
    with pytest.raises(ValueError, match=f"which filters CRITERION CaPr keeps, not {criterion}; score exactly"):
        plan_from_scores(scores, graph_of(a=4), 0.5, criterion=criterion)


def test_a_plan_says_by_which_race():
    scores = replace(scores_of(a=[3, 2, 1, 0]), race=RaceResult(0.5, 0.9, 1.0, np.array([1, 1, -1, -1]), 7, 16))
    source = plan_from_scores(scores, graph_of(a=4), 0.5).source
    assert source["race"] == {"confidence": 0.9, "agreement": 1.0, "seed": 7, "num_frames": 16}
