"""The report as one HTML page that needs nothing from outside."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby

from cakdp_ext import __version__
from cakdp_ext.engine.report.content import Report, ReportRow
from cakdp_ext.engine.report.figures import Column, all_metrics, ap_column, headline_metrics, headlines, main_columns
from cakdp_ext.engine.report.pictures import birdview_png
from cakdp_ext.engine.report.seeds import seeds_png
from cakdp_ext.engine.report.style import STYLE

CLASS_METRIC = re.compile(
    r"(?P<name>.+)_3d/(?P<level>[a-z]+)_R40|OBJECT_TYPE_TYPE_(?P<type>.+)_(?P<rank>LEVEL_\d/APH?)"
)


def page(report: Report) -> str:
    """Write the page; parts that the report has nothing for are left out.

    Args:
        report: what to show.

    Returns:
        HTML with its style and pictures inside.
    """
    parts = [
        _headlines(report),
        _comparison(report),
        _seeds(report),
        _class_table(report.rows),
        _filters(report.filters_per_layer),
        _birdviews(report),
        _every_metric(report.rows),
        _folded("Settings", f"<pre>{escape(report.settings)}</pre>" if report.settings else ""),
        _folded("Environment", _pairs(report.environment)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(report.title)}</h1>\n{_subtitle(report)}\n"
        + "\n".join(part for part in parts if part)
        + f"\n<footer>cakdp_ext {escape(__version__)}</footer>\n</main>\n</body>\n</html>\n"
    )


def _subtitle(report: Report) -> str:
    if len(report.rows) < 2:
        return ""
    reference = report.reference or report.rows[0].name
    result = report.result or report.rows[-1].name
    return f"<p>{escape(result)}, compared with {escape(reference)}</p>"


def _headlines(report: Report) -> str:
    cards = [
        f'<div class="headline"><b>{item.figure}</b><span>{item.meaning}</span><small>{item.detail}</small></div>'
        for item in headlines(report)
    ]
    return '<div class="headlines">' + "".join(cards) + "</div>" if cards else ""


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>" if body else ""


def _folded(title: str, body: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n{body}\n</details>" if body else ""


def _comparison(report: Report) -> str:
    columns = main_columns(headline_metrics(report.rows, report.headline_metrics), report.rows)
    head = _cells("th", ["Model", *(column.title for column in columns)])
    return _section("Comparison", _table(f"<tr>{head}</tr>", _body(report.rows, columns)))


def _class_table(rows: Sequence[ReportRow]) -> str:
    """Show 3D AP by class and difficulty where the metrics are named as KITTI's or Waymo's are."""
    matches = [match for name in all_metrics(rows) if (match := CLASS_METRIC.fullmatch(name))]
    if not matches:
        return ""
    names = dict.fromkeys(_class_of(match) for match in matches)
    groups = [(name, [match for match in matches if _class_of(match) == name]) for name in names]
    top = "".join(f'<th colspan="{len(group)}" scope="colgroup">{escape(name)}</th>' for name, group in groups)
    ordered = [match for _, group in groups for match in group]
    head = f'<tr><th rowspan="2">Model</th>{top}</tr><tr>{_cells("th", [_level_of(match) for match in ordered])}</tr>'
    columns = [ap_column(match.group(), _level_of(match)) for match in ordered]
    return _section("3D average precision by class", _table(head, _body(rows, columns)))


def _class_of(match: re.Match[str]) -> str:
    return match["name"] or match["type"].capitalize()


def _level_of(match: re.Match[str]) -> str:
    return match["level"] or match["rank"].removeprefix("LEVEL_").replace("/", " ")


def _every_metric(rows: Sequence[ReportRow]) -> str:
    columns = [ap_column(name, name) for name in all_metrics(rows)]
    head = _cells("th", ["Metric", *(row.name for row in rows)])
    lines = [
        f'<tr><th scope="row">{escape(column.title)}</th>{"".join(_figures(rows, column))}</tr>' for column in columns
    ]
    return _folded("Every metric", _table(f"<tr>{head}</tr>", lines) if lines else "")


def _body(rows: Sequence[ReportRow], columns: Sequence[Column]) -> list[str]:
    figures = [_figures(rows, column) for column in columns]
    lines = []
    for index, row in enumerate(rows):
        words = ", ".join(text for text in (row.config, row.note) if text)
        note = f"<small>{escape(words)}</small>" if words else ""
        cells = "".join(column[index] for column in figures)
        lines.append(f'<tr><th scope="row">{escape(row.name)}{note}</th>{cells}</tr>')
    return lines


def _figures(rows: Sequence[ReportRow], column: Column) -> list[str]:
    best = column.best(rows)
    texts = [column.text(row) for row in rows]
    return [f'<td class="best">{text}</td>' if text in best else f"<td>{text}</td>" for text in texts]


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _table(head: str, lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _filters(layers: Mapping[str, tuple[int, int]]) -> str:
    if not layers:
        return ""
    kept, total = (sum(counts[i] for counts in layers.values()) for i in (0, 1))
    blocks = [
        f"<p>{kept:,} of {total:,} filters stay ({kept / max(total, 1):.0%}). "
        '<span class="key"><i class="kept"></i>kept <i></i>removed</span></p>'
    ]
    for part, names in groupby(layers, key=lambda name: name.split(".")[0]):
        bars = [_bar(name.removeprefix(f"{part}."), *layers[name]) for name in names]
        blocks.append(f"<h3>{escape(part)}</h3>\n" + "\n".join(bars))
    return _section("Filters kept in each layer", "\n".join(blocks))


def _bar(name: str, kept: int, total: int) -> str:
    share = kept / max(total, 1)
    return (
        f'<div class="layer"><code title="{escape(name)}">{escape(name)}</code>'
        f'<div class="bar"><i style="width:{share:.1%}"></i></div><span class="count">{kept} / {total}</span></div>'
    )


def _birdviews(report: Report) -> str:
    figures = []
    for view in report.birdviews:
        caption = f"{view.title}: {len(view.points):,} points, {len(view.gt_boxes)} labelled objects"
        figures.append(_figure(caption, birdview_png(view, report.class_names)))
    return _section("Seen from above", "\n".join(figures))


def _seeds(report: Report) -> str:
    if not any(row.mean_ap_of_seeds for row in report.rows):
        return ""
    caption = "Mean AP of each training: rows whose points mingle are not told apart"
    return _section("Seeds", _figure(caption, seeds_png(report.rows, report.reference)))


def _figure(caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><img alt="{escape(caption)}" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


def _pairs(values: Mapping[str, str]) -> str:
    lines = [
        f'<tr><th scope="row">{escape(str(key))}</th><td class="words">{escape(str(value))}</td></tr>'
        for key, value in values.items()
    ]
    return _table("", lines) if lines else ""
