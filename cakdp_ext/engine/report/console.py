"""The comparison of detectors as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from cakdp_ext.engine.report.content import ReportRow
from cakdp_ext.engine.report.figures import MISSING, headline_metrics, main_columns


def console_table(rows: Sequence[ReportRow], metrics: Sequence[str] = (), *, markdown: bool = False) -> str:
    """Align the rows in columns: costs, AP, notes. Columns that no row has a figure for are left out.

    Args:
        rows: detectors.
        metrics: AP metrics to show; chosen as at ``Report.headline_metrics`` where empty.
        markdown: for a page; for a terminal otherwise.

    Returns:
        Lines without a final newline; the heading alone for no rows.
    """
    columns = main_columns(headline_metrics(rows, metrics), rows)
    filled = [column for column in columns if any(column.text(row) != MISSING for row in rows)]
    words = [("Model", [row.name for row in rows]), ("Config", [row.config for row in rows])]
    figures = [(column.title, [column.text(row) for row in rows]) for column in filled]
    notes = [("Note", [row.note for row in rows])]
    shown = [*words[:1], *(each for each in words[1:] if any(each[1])), *figures, *(n for n in notes if any(n[1]))]
    is_text = [title in ("Model", "Config", "Note") for title, _ in shown]
    table = [list(line) for line in zip(*([title, *cells] for title, cells in shown), strict=True)]
    if markdown:
        rule = ["---" if left else "--:" for left in is_text]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (table[0], rule, *table[1:]))
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    rules = ["-" * width for width in widths]
    return "\n".join(_line(cells, widths, is_text) for cells in (table[0], rules, *table[1:]))


def _line(cells: Sequence[str], widths: Sequence[int], is_text: Sequence[bool]) -> str:
    padded = [
        cell.ljust(width) if left else cell.rjust(width)
        for cell, width, left in zip(cells, widths, is_text, strict=True)
    ]
    return "  ".join(padded).rstrip()
