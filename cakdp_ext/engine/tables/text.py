"""A table of the paper with ours beside it, for a terminal or for a page."""

from __future__ import annotations

from collections.abc import Sequence

from cakdp_ext.engine.tables.ours import Measured
from cakdp_ext.engine.tables.paper import PaperRow, PaperTable
from cakdp_ext.pruning import EXACT, THOP

MISSING = "-"


def render_table(table: PaperTable, ours: Sequence[Measured], *, markdown: bool = False) -> str:
    """Write a table: parameters, multiply-accumulates by the paper's count and by the exact one, AP.

    Args:
        table: the paper's.
        ours: one a row.
        markdown: for a page; aligned for a terminal otherwise.

    Returns:
        Lines without a final newline.
    """
    heading = ["", "Params [M]", "ours", "MACs [G]", "ours", "differs", "ours, exact", "cut by"]
    lines = [[*heading, *(f"{name}, ours" for name in table.metrics)]]
    lines += [_cells(row, mine, table) for row, mine in zip(table.rows, ours, strict=True)]
    title = f"{table.name}. {table.title}"
    return f"**{title}**\n\n{_markdown(lines)}" if markdown else f"{title}\n{_aligned(lines)}"


def _cells(row: PaperRow, mine: Measured, table: PaperTable) -> list[str]:
    thop, exact = mine.macs.get(THOP), mine.macs.get(EXACT)
    differs = f"{100 * (thop / 1e9 / row.macs - 1):+.1f} %" if thop and row.macs else MISSING
    ap = [f"{_number(said, 2)} / {_number(got, 2)}" for said, got in zip(row.ap, mine.ap(table.metrics), strict=True)]
    return [
        row.label,
        _number(row.params, 1),
        _number(mine.params, 2, 1e6),
        _number(row.macs, 1),
        _number(thop, 1, 1e9),
        differs,
        _number(exact, 1, 1e9),
        mine.cut_by,
        *ap,
    ]


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
    return MISSING if value is None else f"{value / unit:.{digits}f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for first, *rest in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("--:" for _ in lines[0][1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))
