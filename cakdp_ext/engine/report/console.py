"""The comparison of detectors as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from cakdp_ext.engine.report.content import ReportRow
from cakdp_ext.engine.report.figures import MISSING, headline_metrics, main_columns


def console_table(rows: Sequence[ReportRow], metrics: Sequence[str] = ()) -> str:
    """Align the rows in columns: costs, AP, notes. Columns that no row has a figure for are left out.

    Args:
        rows: detectors.
        metrics: AP metrics to show; chosen as at ``Report.headline_metrics`` where empty.

    Returns:
        Lines without a final newline; the heading alone for no rows.
    """
    columns = main_columns(headline_metrics(rows, metrics))
    filled = [column for column in columns if any(column.text(row) != MISSING for row in rows)]
    has_notes = any(row.note for row in rows)
    table = [["Model", *(column.title for column in filled), *(["Note"] if has_notes else [])]]
    for row in rows:
        table.append([row.name, *(column.text(row) for column in filled), *([row.note] if has_notes else [])])
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    rule = ["-" * width for width in widths]
    is_text = [True, *(False for _ in filled), *([True] if has_notes else [])]
    return "\n".join(_line(cells, widths, is_text) for cells in (table[0], rule, *table[1:]))


def _line(cells: Sequence[str], widths: Sequence[int], is_text: Sequence[bool]) -> str:
    padded = [
        cell.ljust(width) if left else cell.rjust(width)
        for cell, width, left in zip(cells, widths, is_text, strict=True)
    ]
    return "  ".join(padded).rstrip()
