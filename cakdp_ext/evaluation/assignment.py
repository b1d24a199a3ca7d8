"""Which rows and columns of a matrix belong together, so that their weights add up to most?"""

from __future__ import annotations

import numpy as np

Pairs = list[tuple[int, int]]


def heaviest_pairs(weights: np.ndarray) -> Pairs:
    """Match rows with columns, each at most once, for the greatest sum of weights.

    Rows are taken in one after the other; each finds the cheapest way to change the matching so that it has a partner
    (Hungarian algorithm, with a price on every row and column).

    Args:
        weights: ``(R, C)``, not negative; a pair of weight 0 is no match.

    Returns:
        Pairs of row and column with a weight above 0; none for no rows or no columns.
    """
    if weights.shape[0] > weights.shape[1]:
        return [(row, column) for column, row in heaviest_pairs(weights.T)]
    costs = -weights.astype(np.float64)
    num_rows, num_columns = costs.shape
    row_prices, column_prices = np.zeros(num_rows), np.zeros(num_columns)
    owners = np.full(num_columns, -1)
    for row in range(num_rows):
        _admit(row, costs, row_prices, column_prices, owners)
    return [(int(row), column) for column, row in enumerate(owners) if row >= 0 and weights[row, column] > 0]


def _admit(row: int, costs: np.ndarray, row_prices: np.ndarray, column_prices: np.ndarray, owners: np.ndarray) -> None:
    """Give ``row`` a column along the cheapest alternating path; prices and owners are changed in place."""
    num_columns = len(owners)
    distance = np.full(num_columns, np.inf)
    came_from = np.full(num_columns, -1)
    settled = np.zeros(num_columns, dtype=bool)
    visiting, last, travelled = row, -1, 0.0
    while True:
        reach = travelled + costs[visiting] - row_prices[visiting] - column_prices
        nearer = ~settled & (reach < distance)
        distance[nearer], came_from[nearer] = reach[nearer], last
        last = int(np.where(settled, np.inf, distance).argmin())
        travelled = distance[last]
        if owners[last] < 0:
            break
        settled[last] = True
        visiting = int(owners[last])
    slack = travelled - distance[settled]
    row_prices[owners[settled]] += slack
    column_prices[settled] -= slack
    row_prices[row] += travelled
    while last >= 0:
        previous = int(came_from[last])
        owners[last] = owners[previous] if previous >= 0 else row
        last = previous
