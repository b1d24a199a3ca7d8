"""Several sweeps of a segment in the frame of the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SECONDS = 0.1
"""Between two sweeps."""
EGO_REACH = 1.0
"""Half the side, in metres, of the square around the sensor that earlier sweeps are not seen in: the car itself."""

Info = Mapping[str, Any]


@dataclass(frozen=True)
class SweepSequence:
    """Which sweeps a frame is made of: the keys of ``SEQUENCE_CONFIG``.

    Attributes:
        enabled: whether a frame has earlier sweeps, and its points another feature.
        sample_offset: first and last but one earlier sweep: ``(-3, 0)`` takes the three before.
        onehot_timestamp: mark each point's sweep in a column of its own, the latest first, in place of one column
            with its age in seconds.
    """

    enabled: bool = False
    sample_offset: tuple[int, int] = (0, 0)
    onehot_timestamp: bool = False

    def __post_init__(self) -> None:
        offset = self.sample_offset
        if len(offset) != 2 or not offset[0] <= offset[1] <= 0:
            raise ValueError(f"SAMPLE_OFFSET must be [first, end] with first <= end <= 0, got {list(offset)}")

    def earlier(self, sample_idx: int) -> list[int]:
        """Number the earlier sweeps, latest first; the first sweep of a segment stands in for those before it."""
        first, end = self.sample_offset
        return [max(sample_idx + offset, 0) for offset in reversed(range(first, end))]

    def gather(self, info: Info, segment: Mapping[int, Info], read: Callable[[int], np.ndarray]) -> np.ndarray:
        """Put the sweeps of a frame together.

        Args:
            info: of the frame, with its ``pose`` (vehicle to world).
            segment: infos of the segment by number.
            read: gives the ``(N, F)`` points of a sweep in its own frame.

        Returns:
            ``(M, F + 1)`` float32, or F plus the number of sweeps where they are marked one-hot.

        Raises:
            ValueError: when the segment lacks an earlier sweep.
        """
        current = int(info["point_cloud"]["sample_idx"])
        numbers = self.earlier(current)
        missing = [number for number in numbers if number not in segment]
        if missing:
            name = info["point_cloud"]["lidar_sequence"]
            raise ValueError(
                f"segment {name} has no sweep {missing[0]}, which SEQUENCE_CONFIG.SAMPLE_OFFSET asks for at {current}; "
                "process every sweep of it"
            )
        parts = [self._marked(read(current), 0, 0.0, len(numbers))]
        to_current = np.linalg.inv(_pose(info))
        for place, number in enumerate(numbers, start=1):
            moved = _move(read(number), to_current @ _pose(segment[number]))
            beyond = (np.abs(moved[:, :2]) >= EGO_REACH).any(axis=1)
            parts.append(self._marked(moved[beyond], place, SECONDS * (current - number), len(numbers)))
        return np.concatenate(parts)

    def _marked(self, points: np.ndarray, place: int, age: float, num_earlier: int) -> np.ndarray:
        if not self.onehot_timestamp:
            return np.concatenate((points, np.full((len(points), 1), age, dtype=np.float32)), axis=1)
        marks = np.zeros((len(points), num_earlier + 1), dtype=np.float32)
        marks[:, place] = 1
        return np.concatenate((points, marks), axis=1)


def _pose(info: Info) -> np.ndarray:
    return np.asarray(info["pose"], dtype=np.float64).reshape(4, 4)


def _move(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    moved = points.copy()
    moved[:, :3] = points[:, :3].astype(np.float64) @ transform[:3, :3].T + transform[:3, 3]
    return moved
