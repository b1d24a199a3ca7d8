"""What a report holds: plain figures and arrays, nothing about how they look."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ReportRow:
    """One detector. None stands for what was not measured.

    Attributes:
        name: unique in a report.
        params: parameters.
        macs: multiply-accumulates of one frame.
        latency_p50_ms: median time of one frame.
        latency_p90_ms: time that nine of ten frames stay under.
        peak_memory_mb: while detecting.
        ap: metric -> AP in percent, as in ``Evaluation.metrics``; their means over several trainings.
        note: a few words.
        config: how much of the network is left, and by what it was chosen.
        ap_spread: metric -> standard deviation over the trainings; empty for a single one.
        mean_ap_of_seeds: mean of the headline's metrics, in percent, of each of several trainings.
        step_ms: time of a training step.
        step_memory_mb: while training.
    """

    name: str
    params: int | None = None
    macs: float | None = None
    latency_p50_ms: float | None = None
    latency_p90_ms: float | None = None
    peak_memory_mb: float | None = None
    ap: Mapping[str, float | None] = field(default_factory=dict)
    note: str = ""
    config: str = ""
    ap_spread: Mapping[str, float] = field(default_factory=dict)
    mean_ap_of_seeds: Sequence[float] = field(default_factory=list)
    step_ms: float | None = None
    step_memory_mb: float | None = None


@dataclass(frozen=True)
class BirdviewPanel:
    """What one detector, or one stage of it, found in a frame.

    Attributes:
        title: e.g. ``before the IoU mask``.
        boxes: ``(n, 7)`` metres, radians, LiDAR frame.
        scores: ``(n,)`` in [0, 1].
        labels: ``(n,)`` 0-based.

    Raises:
        ValueError: for other shapes.
    """

    title: str
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        shapes = [np.shape(item) for item in (self.boxes, self.scores, self.labels)]
        count = len(self.boxes)
        if shapes != [(count, 7), (count,), (count,)]:
            raise ValueError(f"panel {self.title!r} expected boxes (n, 7), scores (n,) and labels (n,), got {shapes}")


@dataclass(frozen=True)
class Birdview:
    """One frame seen from above, once a panel.

    Attributes:
        title: e.g. the frame's name.
        points: ``(N, 3)`` or wider, metres, LiDAR frame.
        gt_boxes: ``(M, 7)``.
        panels: side by side.
        extent: ``(x_min, y_min, x_max, y_max)`` in metres that is shown; None for whatever there is to see.

    Raises:
        ValueError: for other shapes.
    """

    title: str
    points: np.ndarray
    gt_boxes: np.ndarray
    panels: tuple[BirdviewPanel, ...]
    extent: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        points, boxes = np.shape(self.points), np.shape(self.gt_boxes)
        if len(points) != 2 or points[1] < 3 or len(boxes) != 2 or boxes[1] != 7:
            raise ValueError(f"frame {self.title!r} expected points (N, 3) and gt_boxes (M, 7), got {points}, {boxes}")


@dataclass(frozen=True)
class Report:
    """Everything that one report shows.

    Attributes:
        title: its heading.
        rows: detectors to compare.
        class_names: what the labels of the panels mean.
        filters_per_layer: layer -> (filters that stay, filters there were), from input to output.
        birdviews: frames seen from above.
        settings: text of the configuration.
        environment: e.g. ``torch`` -> its version.
        reference: name of the row that the headline compares with; the first row where empty.
        result: name of the row that the headline is about; the last row where empty.
        headline_metrics: AP metrics whose mean is the headline's; where empty, those that end with
            ``_3d/moderate_R40`` (KITTI) or ``_LEVEL_2/APH`` (Waymo), and all of them where there is none.

    Raises:
        ValueError: for two rows of one name, or a reference or result that is no row.
    """

    title: str
    rows: tuple[ReportRow, ...]
    class_names: tuple[str, ...] = ()
    filters_per_layer: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    birdviews: tuple[Birdview, ...] = ()
    settings: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    result: str = ""
    headline_metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"rows of a report must have names of their own, {', '.join(twice)} stands there twice")
        for role in ("reference", "result"):
            name = getattr(self, role)
            if name and name not in names:
                raise ValueError(f"{role} {name!r} is no row of the report; rows: {', '.join(names) or 'none'}")

    def find_row(self, name: str) -> ReportRow:
        """Give the row of that name.

        Raises:
            KeyError: where there is none.
        """
        return {row.name: row for row in self.rows}[name]


def to_dict(report: Report) -> dict[str, Any]:
    """Turn a report into what JSON can hold; of the points only their number, NaN and infinity as None."""
    tree = {item.name: getattr(report, item.name) for item in dataclasses.fields(report)}
    tree["rows"] = [dataclasses.asdict(row) for row in report.rows]
    tree["birdviews"] = [
        {**dataclasses.asdict(view), "points": None, "num_points": len(view.points)} for view in report.birdviews
    ]
    return {key: _plain(value) for key, value in tree.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
