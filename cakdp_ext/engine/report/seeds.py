"""How far do trainings that differ by their seed alone lie apart? Rows whose points mingle are not told apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from cakdp_ext.engine.png import png
from cakdp_ext.engine.report.content import ReportRow

SEED, MEAN_OF_ROW, REFERENCE = "#0b6e5f", "#1c2733", "#9aa5b1"


def seeds_png(rows: Sequence[ReportRow], reference: str = "") -> bytes:
    """Draw one line a row: a point for each of its trainings, a stroke at their mean.

    Args:
        rows: those with ``mean_ap_of_seeds`` are drawn, at least one.
        reference: name of the row whose mean is drawn through all of them; none where it is not among them.

    Returns:
        A PNG file.
    """
    drawn = [row for row in rows if row.mean_ap_of_seeds]
    figure = Figure(figsize=(9, 0.9 + 0.36 * len(drawn)), dpi=130, layout="constrained")
    axis = figure.add_subplot()
    for place, row in enumerate(drawn):
        mean = statistics.fmean(row.mean_ap_of_seeds)
        axis.plot(row.mean_ap_of_seeds, [place] * len(row.mean_ap_of_seeds), "o", color=SEED, alpha=0.7, markersize=7)
        axis.plot(mean, place, "|", color=MEAN_OF_ROW, markersize=20, markeredgewidth=2.5)
        if row.name == reference:
            axis.axvline(mean, color=REFERENCE, linestyle=":", zorder=0)
    axis.set_yticks(range(len(drawn)), [row.name for row in drawn], fontsize=9)
    axis.set_ylim(len(drawn) - 0.5, -0.5)
    axis.grid(axis="x", color="#dfe4ea", zorder=-1)
    axis.set_xlabel("mean AP; points are seeds, strokes their mean")
    return png(figure)
