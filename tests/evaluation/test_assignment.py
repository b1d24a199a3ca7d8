import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from cakdp_ext.evaluation.assignment import heaviest_pairs


@pytest.mark.parametrize("seed", range(200))
def test_sum_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 20, rng.integers(0, 8, 2))
    weights[rng.random(weights.shape) < rng.choice((0.0, 0.7))] = 0
    pairs = heaviest_pairs(weights)
    rows, columns = linear_sum_assignment(weights, maximize=True)
    assert sum(weights[pair] for pair in pairs) == weights[rows, columns].sum()
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(weights[pair] > 0 for pair in pairs)


def test_a_chain_is_matched_from_end_to_end():
    weights = np.array([[5, 6, 0], [0, 5, 6], [0, 0, 5]])
    assert sorted(heaviest_pairs(weights)) == [(0, 0), (1, 1), (2, 2)]
