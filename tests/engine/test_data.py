"""Samplers deal out every frame, deterministically, and can start in the middle of an epoch."""

from __future__ import annotations

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.engine.data import EpochSampler
from cakdp_ext.engine.distributed import Workers


def sampler(num_frames=10, rank=0, world=1, batch_size=2):
    return EpochSampler(num_frames, Workers(rank, world, torch.device("cpu")), seed=3, batch_size=batch_size)


def test_every_frame_once_and_each_epoch_in_another_order():
    s = sampler()
    first = list(s)
    s.set_position(1)
    second = list(s)
    assert sorted(i for _, i in first) == list(range(10)) == sorted(i for _, i in second)
    assert [i for _, i in first] != [i for _, i in second]
    assert {e for e, _ in second} == {1}
    assert list(sampler()) == first


def test_starting_in_the_middle_gives_the_rest_of_the_same_order():
    whole, rest = sampler(), sampler()
    rest.set_position(0, start_batch=3)
    assert list(rest) == list(whole)[6:]


@pytest.mark.parametrize(("num_frames", "world"), [(10, 2), (10, 3), (1, 4)])
def test_workers_get_equal_shares_that_cover_everything(num_frames, world):
    shares = [[i for _, i in sampler(num_frames, rank, world)] for rank in range(world)]
    assert {len(share) for share in shares} == {-(-num_frames // world)}
    assert set(sum(shares, [])) == set(range(num_frames))


def test_an_empty_split_is_refused():
    with pytest.raises(ConfigError, match="no frames"):
        sampler(0)
