"""How does cost go with the keep ratio? The curve as a table, a CSV file and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cakdp_ext.engine.cut import Cuts
from cakdp_ext.engine.plan_view import aligned
from cakdp_ext.engine.png import png
from cakdp_ext.engine.runs import LOG
from cakdp_ext.pruning import require_ratio

GRID = tuple(i / 20 for i in range(2, 21))
"""Keep ratios that are swept where none are named."""
COLORS = {"params": "#0b6e5f", "macs": "#0072b2", "activations": "#b8860b", "latency_p50_ms": "#d55e00"}
LABELS = {
    "params": "parameters",
    "macs": "multiply-accumulates",
    "activations": "activations",
    "latency_p50_ms": "latency, measured (median)",
}


@dataclass(frozen=True)
class SweepRow:
    """One cut.

    Attributes:
        keep_ratio: that was asked for.
        filters: that stay.
        params: trainable parameters.
        macs: multiply-accumulates of a frame, mean over the frames.
        activations: values that convolutions and linear layers output, mean over the frames.
        latency_p50_ms: measured, one frame at a time; None where it was not asked for.
        latency_p90_ms: the same.
    """

    keep_ratio: float
    filters: int
    params: int
    macs: float
    activations: float
    latency_p50_ms: float | None = None
    latency_p90_ms: float | None = None


def sweep(cuts: Cuts, ratios: Sequence[float] = (), *, with_latency: bool = False) -> list[SweepRow]:
    """Count, and measure where asked, what the cuts of some keep ratios cost.

    Args:
        cuts: to choose from.
        ratios: in any order; none takes ``GRID``, of which what cannot be cut is left out.
        with_latency: whether each cut is run and timed.

    Returns:
        Rows from the smallest ratio to the largest.

    Raises:
        ValueError: for a named ratio that cannot be cut, or when all of the grid cannot.
    """
    for ratio in ratios:
        require_ratio(ratio)
    rows, reason = [], None
    for ratio in sorted(set(ratios or GRID)):
        try:
            rows.append(_row(cuts, ratio, with_latency))
        except ValueError as error:
            if ratios:
                raise
            reason = error
            LOG.info("left out: %s", error)
    if not rows and reason is not None:
        raise reason
    return rows


def _row(cuts: Cuts, ratio: float, with_latency: bool) -> SweepRow:
    plan = cuts.by_ratio(ratio)
    cost = cuts.count(plan)
    filters = sum(map(len, plan.keep_indices.values()))
    row = SweepRow(ratio, filters, cost.params, cost.macs, cost.activations)
    if not with_latency:
        return row
    latency = cuts.time(plan)
    LOG.info("keep %g: measured p50 %.2f ms", ratio, latency.p50)
    times = {f"latency_{name}_ms": getattr(latency, name) for name in ("p50", "p90")}
    return SweepRow(**{**asdict(row), **times})


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """Set the curve in columns; those of latencies only where they were measured."""
    has_latency = rows[0].latency_p50_ms is not None
    title = ["keep", "filters", "parameters", "MACs [G]", "activations [M]"]
    table = [[*title, *(["p50 [ms]", "p90 [ms]"] if has_latency else [])]]
    for row in rows:
        cells = [f"{row.keep_ratio:g}", str(row.filters), f"{row.params:,}", f"{row.macs / 1e9:.3f}",
                 f"{row.activations / 1e6:.2f}"]  # fmt: skip
        times = (row.latency_p50_ms, row.latency_p90_ms)
        table.append([*cells, *(f"{time:.1f}" for time in times if time is not None)])
    return aligned(table)


def sweep_csv(rows: Sequence[SweepRow]) -> bytes:
    """Write the curve as CSV: one column for each attribute of a row, empty where nothing was measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(SweepRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().encode()


def sweep_png(rows: Sequence[SweepRow], title: str) -> bytes:
    """Draw every cost as a share of the whole network's, or of the largest cut's, against the keep ratio.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axis = figure.add_subplot()
    ratios = [row.keep_ratio for row in rows]
    for name, color in COLORS.items():
        values = [getattr(row, name) for row in rows]
        if None not in values:
            top = values[-1]
            label = f"{LABELS[name]}, 100 % = {_amount(name, top)}"
            axis.plot(ratios, [value / top for value in values], "o-", color=color, markersize=4, label=label)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(xlabel="keep ratio", ylabel=f"share of the cost at keep {ratios[-1]:g}", ylim=(0, 1.05))
    axis.grid(color="#dfe4ea", linewidth=0.7)
    axis.set_title(title, fontsize=11, loc="left")
    axis.legend(loc="upper left", frameon=False, fontsize=9)
    return png(figure)


def _amount(name: str, value: float) -> str:
    if name.startswith("latency"):
        return f"{value:.1f} ms"
    return f"{value / 1e9:.2f} G" if name == "macs" else f"{value / 1e6:.2f} M"
