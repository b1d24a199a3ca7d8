"""Batch norm is measured again at the end of short trainings."""

from __future__ import annotations

import torch
from torch import nn

from cakdp_ext.engine.calibrate import calibrate_batch_norm


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.01), nn.Dropout(0.5))


def test_statistics_become_the_plain_average_over_batches():
    model = network()
    batches = [torch.randn(8, 3) for _ in range(5)]
    before, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert calibrate_batch_norm(model, iter(batches)) == 5
    with torch.no_grad():
        features = [model[0](batch) for batch in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([f.mean(0) for f in features]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([f.var(0) for f in features]).mean(0))
    assert model[1].momentum == 0.01
    assert torch.equal(torch.get_rng_state(), generator)
    for key in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert torch.equal(model.state_dict()[key], before[key])


def test_without_a_batch_nothing_changes():
    model = network()
    model(torch.randn(8, 3))
    before = model[1].running_mean.clone()
    assert calibrate_batch_norm(model, []) == 0
    assert torch.equal(model[1].running_mean, before)
    assert model[1].momentum == 0.01


def test_momentum_returns_after_a_failed_batch():
    model = network()
    try:
        calibrate_batch_norm(model, [torch.randn(8, 3), torch.randn(8, 7)])
    except RuntimeError:
        assert model[1].momentum == 0.01
    else:
        raise AssertionError("a batch of another width must fail")
