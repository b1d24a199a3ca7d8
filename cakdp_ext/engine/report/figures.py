"""The figures of a report in words: columns, best values, headline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cakdp_ext.engine.report.content import Report, ReportRow

MISSING = "–"
HEADLINE_ENDINGS = ("_3d/moderate_R40", "_LEVEL_2/APH")
"""Of the metrics whose mean is the headline's: KITTI's and Waymo's."""
MEAN = "mean"
"""Key of ``ReportRow.ap_spread`` for the mean of the headline's metrics."""
_WAYMO = "OBJECT_TYPE_TYPE_"


@dataclass(frozen=True)
class Column:
    """One column of figures.

    Attributes:
        title: with its unit.
        value: reads it from a row, in the unit of the title.
        digits: after the point.
        is_cost: the lowest value is the best, not the highest.
        spread: reads how far it goes to either side, where it is a mean.
    """

    title: str
    value: Callable[[ReportRow], float | None]
    digits: int = 1
    is_cost: bool = True
    spread: Callable[[ReportRow], float | None] | None = None

    def text(self, row: ReportRow) -> str:
        """Give the figure as text with its spread, an en dash where it is missing."""
        value, spread = known(self.value(row)), known(self.spread(row)) if self.spread else None
        if value is None:
            return MISSING
        return self._number(value) + ("" if spread is None else f" ± {self._number(spread)}")

    def _number(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"

    def best(self, rows: Sequence[ReportRow]) -> set[str]:
        """Give the texts of the best figure, equal ones with their spreads; none where there is nothing to choose."""
        values = {self._number(value): value for row in rows if (value := known(self.value(row))) is not None}
        if len(values) < 2:
            return set()
        best = (min if self.is_cost else max)(values, key=lambda text: values[text])
        return {self.text(row) for row in rows if (v := known(self.value(row))) is not None and self._number(v) == best}


@dataclass(frozen=True)
class Headline:
    """One figure that matters, e.g. ``3.1x`` ``smaller`` ``5.33 M -> 1.72 M parameters``."""

    figure: str
    meaning: str
    detail: str


def known(value: float | None) -> float | None:
    """Give a finite value, None for everything else."""
    return None if value is None or not math.isfinite(value) else value


def scaled(value: float | None, unit: float) -> float | None:
    """Divide by a unit, None staying None."""
    return None if value is None else value / unit


def headline_metrics(rows: Sequence[ReportRow], chosen: Sequence[str] = ()) -> tuple[str, ...]:
    """Give the metrics that stand in the main table, as described at ``Report.headline_metrics``."""
    if chosen:
        return tuple(chosen)
    metrics = all_metrics(rows)
    of_classes = [name for name in metrics if name.endswith(HEADLINE_ENDINGS) and not name.startswith("mAP_LEVEL")]
    return tuple(of_classes) or metrics


def all_metrics(rows: Sequence[ReportRow]) -> tuple[str, ...]:
    """Give every metric of any row, in the order of first appearance."""
    return tuple(dict.fromkeys(name for row in rows for name in row.ap))


def mean_ap(row: ReportRow, metrics: Sequence[str]) -> float | None:
    """Average the metrics; None unless the row has them all."""
    values = [value for name in metrics if (value := known(row.ap.get(name))) is not None]
    return sum(values) / len(values) if values and len(values) == len(metrics) else None


def ap_column(metric: str, title: str) -> Column:
    """Make the column of one AP metric."""
    return Column(title, lambda row: row.ap.get(metric), 2, False, lambda row: row.ap_spread.get(metric))


def main_columns(metrics: Sequence[str], rows: Sequence[ReportRow]) -> list[Column]:
    """Give the columns of the main table: costs, those of training where a row has them, the headline metrics, mean."""
    shared = next((ending for ending in HEADLINE_ENDINGS if all(name.endswith(ending) for name in metrics)), "")
    columns = [
        Column("Params [M]", lambda row: scaled(row.params, 1e6), 2),
        Column("MACs [G]", lambda row: scaled(row.macs, 1e9)),
        Column("p50 [ms]", lambda row: row.latency_p50_ms),
        Column("p90 [ms]", lambda row: row.latency_p90_ms),
        Column("Memory [MB]", lambda row: row.peak_memory_mb, 0),
        *(_STEP if any(row.step_ms is not None for row in rows) else ()),
        *(ap_column(name, _short(name, shared)) for name in metrics),
    ]
    if len(metrics) > 1:
        mean = Column("Mean AP", lambda row: mean_ap(row, metrics), 2, False, lambda row: row.ap_spread.get(MEAN))
        columns.append(mean)
    return columns


_STEP = (
    Column("Step [ms]", lambda row: row.step_ms, 0),
    Column("Step [MB]", lambda row: row.step_memory_mb, 0),
)


def _short(metric: str, shared: str) -> str:
    name = metric.removesuffix(shared)
    return name.removeprefix(_WAYMO).capitalize() if shared and name.startswith(_WAYMO) else name


def headlines(report: Report) -> list[Headline]:
    """Compare the result with the reference; figures that one of them lacks are left out, all for a single row."""
    if len(report.rows) < 2:
        return []
    reference = report.find_row(report.reference or report.rows[0].name)
    result = report.find_row(report.result or report.rows[-1].name)
    metrics = headline_metrics(report.rows, report.headline_metrics)
    found = [
        _ratio(reference.params, result.params, ("smaller", "larger"), (1e6, 2, "M parameters")),
        _ratio(reference.macs, result.macs, ("fewer MACs", "more MACs"), (1e9, 1, "G a frame")),
        _ratio(reference.latency_p50_ms, result.latency_p50_ms, ("faster", "slower"), (1.0, 1, "ms, median")),
        _change(mean_ap(reference, metrics), mean_ap(result, metrics), len(metrics)),
    ]
    return [headline for headline in found if headline is not None]


def _ratio(
    before: float | None, after: float | None, words: tuple[str, str], unit: tuple[float, int, str]
) -> Headline | None:
    before, after = known(before), known(after)
    if not before or not after:
        return None
    factor = before / after
    size, digits, name = unit
    detail = f"{before / size:,.{digits}f} → {after / size:,.{digits}f} {name}"
    return Headline(f"{max(factor, 1 / factor):.1f}×", words[0] if factor >= 1 else words[1], detail)


def _change(before: float | None, after: float | None, num_metrics: int) -> Headline | None:
    if before is None or after is None:
        return None
    meaning, kind = ("AP", "") if num_metrics == 1 else ("mean AP", f", mean of {num_metrics}")
    return Headline(f"{after - before:+.2f}".replace("-", "−"), meaning, f"{before:.2f} → {after:.2f}{kind}")
