"""From matches to average precision: which score thresholds are looked at, and what is averaged over them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NUM_RECALL_POSITIONS = 41


class AveragePrecision(NamedTuple):
    """Average precision in percent over 11 and over 40 recall positions."""

    r11: float
    r40: float


def recall_thresholds(scores: np.ndarray, num_ground_truth: int) -> np.ndarray:
    """Choose the scores at which precision is sampled, so that recall grows in steps of about 1/40.

    A score is passed over while the recall that the next lower one reaches lies nearer to the wanted recall; the
    lowest is never passed over.

    Args:
        scores: ``(K,)`` of the detections that found a ground truth, in any order.
        num_ground_truth: how many were to be found, at least K.

    Returns:
        ``(T,)`` descending, T at most 41; none for no scores.
    """
    descending = np.sort(scores)[::-1]
    recall = np.arange(1, len(descending) + 1) / max(num_ground_truth, 1)
    following = np.arange(2, len(descending) + 2) / max(num_ground_truth, 1)
    chosen: list[int] = []
    wanted, begin = 0.0, 0
    while begin < len(descending):
        near_enough = following[begin:] - wanted >= wanted - recall[begin:]
        near_enough[-1] = True
        chosen.append(begin + int(near_enough.argmax()))
        begin = chosen[-1] + 1
        wanted += 1 / (NUM_RECALL_POSITIONS - 1)
    return descending[chosen]


def precision_at(right: np.ndarray, claimed: np.ndarray) -> np.ndarray:
    """Give the precision at the 41 recall positions: the best one at that recall or any higher.

    Args:
        right: ``(T,)`` what was right at each threshold: a count, or a sum of similarities.
        claimed: ``(T,)`` how many detections claimed to be right.

    Returns:
        ``(41,)`` in [0, 1], never rising; 0 at the positions that were not reached, and where nothing was claimed.
    """
    curve = np.zeros(NUM_RECALL_POSITIONS)
    np.divide(right, claimed, out=curve[: len(right)], where=claimed > 0)
    return np.maximum.accumulate(curve[::-1])[::-1]


def average_precision(curve: np.ndarray) -> AveragePrecision:
    """Average a curve ``(41,)`` over every fourth position, the first included, and over all but the first."""
    return AveragePrecision(r11=100 * float(curve[::4].sum()) / 11, r40=100 * float(curve[1:].sum()) / 40)
