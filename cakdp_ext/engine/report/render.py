"""A report as files."""

from __future__ import annotations

import json
from pathlib import Path

from cakdp_ext.engine.report.content import Report, to_dict
from cakdp_ext.engine.report.page import page
from cakdp_ext.files import atomic_path


def render_report(report: Report, folder: str | Path) -> Path:
    """Write ``report.html`` and ``report.json``; each appears whole or not at all, replacing what stood there.

    Args:
        report: what to show.
        folder: where to; made if need be.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    html = page(report)
    text = json.dumps(to_dict(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (("report.json", text), ("report.html", html)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return folder / "report.html"
