"""Scores are means over the frames that are asked for, whatever else is on record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pruning_networks import SparseDense, predict, randomize, voxel_batch
from test_pruning_plan import graph_of

from cakdp_ext.pruning import (
    counting,
    lacking,
    plan_from_scores,
    score_filters,
    started_scores,
    trace_channels,
    whole_frames,
    with_gaps,
)
from cakdp_ext.types import FilterScores, RaceResult

GRAPH = graph_of(a=2, b=3)
ALL = np.arange(5)
GAPS = {f"f{i}": np.random.default_rng(i).random(5) for i in range(6)}


@pytest.fixture
def scores():
    """Six frames are on record, none counts."""
    empty = FilterScores({}, "weights", "channel", "val", (), "0", np.zeros((0, 5)))
    return with_gaps(empty, GAPS)


def flat(scores):
    return np.concatenate(list(scores.values.values()))


def test_only_frames_that_are_asked_for_count(scores):
    some = counting(scores, dict.fromkeys(("f4", "f1"), ALL), GRAPH)
    assert some.frame_ids == ("f4", "f1")
    np.testing.assert_allclose(flat(some), (GAPS["f1"] + GAPS["f4"]) / 2)
    assert list(some.spare) == ["f0", "f2", "f3", "f5"]
    again = counting(some, dict.fromkeys(GAPS, ALL), GRAPH)
    np.testing.assert_array_equal(again.gaps, np.stack(list(GAPS.values())))
    assert not again.spare
    assert not lacking(some, dict.fromkeys(GAPS, ALL))


def test_a_filter_counts_on_the_frames_that_it_was_asked_for(scores):
    asked = {"f0": ALL, "f3": np.array([1, 2])}
    some = counting(scores, asked, GRAPH)
    np.testing.assert_allclose(flat(some)[[0, 3, 4]], GAPS["f0"][[0, 3, 4]])
    np.testing.assert_allclose(flat(some)[1:3], (GAPS["f0"] + GAPS["f3"])[1:3] / 2)
    assert np.isnan(some.gaps[1, [0, 3, 4]]).all()
    assert whole_frames(some) == ("f0",)
    np.testing.assert_array_equal(some.spare["f3"][[0, 3, 4]], GAPS["f3"][[0, 3, 4]])
    assert not lacking(some, dict.fromkeys(GAPS, ALL)), "nothing is forgotten"


def test_what_was_never_measured_is_lacking(scores):
    partial = np.array([1.0, np.nan, 2.0, np.nan, 3.0])
    more = with_gaps(scores, {"new": partial})
    missing = lacking(more, {"f0": ALL, "new": np.array([0, 1, 2]), "other": ALL})
    assert {frame: numbers.tolist() for frame, numbers in missing.items()} == {"new": [1], "other": [0, 1, 2, 3, 4]}
    counted = counting(more, dict.fromkeys(("f0", "new", "other"), ALL), GRAPH)
    assert counted.frame_ids == ("f0", "new")
    with pytest.raises(ValueError, match="the scores are not whole: 2 of 5 decisions were not measured on every frame"):
        plan_from_scores(counted, GRAPH, 0.5)


def test_scores_of_a_race_are_completed_where_filters_had_left():
    model, batches = randomize(SparseDense()), [voxel_batch(1), voxel_batch(2)]
    graph = trace_channels(model, lambda network: network(batches[0]))
    whole = score_filters(model, batches, predict, graph)
    gaps = whole.gaps.copy()
    gaps[1, ::2] = np.nan
    race = RaceResult(0.5, 0.99, 1.0, np.zeros(gaps.shape[1], np.int8))
    cut_short = replace(whole, gaps=gaps, race=race)
    assert started_scores(model, graph, "channel", "", cut_short).race is None
    again = score_filters(model, batches, predict, graph, previous=cut_short)
    assert again.race is None
    assert again.frame_ids == whole.frame_ids
    np.testing.assert_allclose(flat(again), flat(whole), rtol=1e-5)
    first = score_filters(model, batches[:1], predict, graph, previous=cut_short)
    assert first.frame_ids == whole.frame_ids[:1]
    np.testing.assert_allclose(first.gaps[0], whole.gaps[0])
