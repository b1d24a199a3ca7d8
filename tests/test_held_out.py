"""Which frames of the training split are kept from training."""

from __future__ import annotations

import pytest

from cakdp_ext.config import ConfigError
from cakdp_ext.held_out import HELD_OUT, evenly_spaced, frames_of

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
