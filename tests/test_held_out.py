"""Which frames of the training split are kept from training."""

from __future__ import annotations

import pytest

from cakdp_ext.config import ConfigError
from cakdp_ext.held_out import HELD_OUT, evenly_spaced, frames_of, segments_held_out

FRAMES = [f"{i:06d}" for i in range(10)]


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [(10, 0, []), (10, 1, [0]), (10, 2, [0, 9]), (10, 4, [0, 3, 6, 9]), (3, 9, [0, 1, 2])],
)
def test_indices_are_spaced_evenly(total, count, indices):
    assert evenly_spaced(total, count) == indices


def test_the_training_split_falls_into_two():
    held_out, trained_on = frames_of(HELD_OUT, FRAMES, 3), frames_of("train", FRAMES, 3)
    assert held_out == ["000000", "000004", "000009"]
    assert sorted(held_out + trained_on) == FRAMES
    assert frames_of("train", FRAMES, 0) == FRAMES


def test_nothing_held_out_is_no_split():
    with pytest.raises(ConfigError, match="split held_out is empty"):
        frames_of(HELD_OUT, FRAMES, 0)


def test_all_frames_held_out():
    with pytest.raises(ConfigError, match="NUM_HELD_OUT is 10, but the training split has 10 frames"):
        frames_of("train", FRAMES, 10)


SEGMENTS = ["a"] * 3 + ["b"] * 2 + ["c"] * 4 + ["d"]


@pytest.mark.parametrize(
    ("count", "segments"),
    [(0, []), (1, ["a"]), (3, ["a"]), (4, ["a", "d"]), (5, ["a", "c", "d"]), (8, ["a", "c", "d"])],
)
def test_the_fewest_evenly_spaced_segments_that_hold_enough_frames(count, segments):
    assert segments_held_out(SEGMENTS, count) == segments


def test_no_segment_is_in_both_parts():
    held_out, trained_on = frames_of(HELD_OUT, FRAMES, 4, SEGMENTS), frames_of("train", FRAMES, 4, SEGMENTS)
    assert sorted(held_out + trained_on) == FRAMES
    assert held_out == ["000000", "000001", "000002", "000009"]
    assert len(trained_on) == 6


def test_a_segment_must_remain():
    with pytest.raises(ConfigError, match="NUM_HELD_OUT is 9: segments are held out whole, and none of the 4"):
        frames_of("train", FRAMES, 9, SEGMENTS)
