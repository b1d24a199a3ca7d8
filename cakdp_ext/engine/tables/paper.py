"""What the paper's tables say, read from ``cfgs/tables.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cakdp_ext.config import ConfigError, load_config

MEAN = "mean"
"""In place of a metric's name: the mean of the table's others."""


@dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Attributes:
        label: unique in its table.
        cfg: the YAML that it is.
        params: millions of parameters; None where the paper prints none, here and below.
        macs: 1e9 multiply-accumulates.
        ap: percent, one for each metric of the table.
    """

    label: str
    cfg: Path
    params: float | None = None
    macs: float | None = None
    ap: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        name: as the paper numbers it.
        title: what it is about.
        metrics: heading of a column -> key of ``Evaluation.metrics``, or ``mean``.
        rows: from top to bottom.
    """

    name: str
    title: str
    metrics: Mapping[str, str]
    rows: tuple[PaperRow, ...]


def read_tables(path: str | Path) -> list[PaperTable]:
    """Read tables from a YAML file: name -> ``title``, ``metrics``, ``rows``.

    Raises:
        ConfigError: for a missing file, an unknown or missing key, a YAML that a row names and that is not there, two
            rows of one label, or another number of figures than of metrics.
    """
    content = load_config(path)
    content.pop("CONFIG_FILE")
    return [_table(name, node, Path(path)) for name, node in content.items()]


def _table(name: str, node: Any, path: Path) -> PaperTable:
    where = f"{name} of {path}"
    _require_keys(node, {"title", "metrics", "rows"}, {"title", "metrics", "rows"}, where)
    rows = tuple(_row(row, path, where, len(node["metrics"])) for row in node["rows"])
    labels = [row.label for row in rows]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"{where} has more than one row {', '.join(twice)}; give each its own label")
    return PaperTable(name, str(node["title"]), dict(node["metrics"]), rows)


def _row(node: Any, path: Path, where: str, num_metrics: int) -> PaperRow:
    _require_keys(node, {"label", "cfg"}, {field.name for field in fields(PaperRow)}, f"a row of {where}")
    ap = tuple(node.get("ap") or (None,) * num_metrics)
    where = f"row {node['label']!r} of {where}"
    if len(ap) != num_metrics:
        raise ConfigError(f"{where} has {len(ap)} figures under ap, but the table has {num_metrics} metrics")
    cfg = path.parent / str(node["cfg"])
    if not cfg.is_file():
        raise ConfigError(f"{where} names {node['cfg']}, but there is no {cfg}")
    return PaperRow(str(node["label"]), cfg, node.get("params"), node.get("macs"), ap)


def _require_keys(node: Any, needed: set[str], known: set[str], where: str) -> None:
    keys = set(node) if isinstance(node, Mapping) else set()
    wrong = sorted(keys - known) + sorted(needed - keys)
    if wrong:
        raise ConfigError(
            f"{where} must hold {', '.join(sorted(needed))}, and may hold {', '.join(sorted(known))}; got "
            f"{', '.join(sorted(map(str, keys))) or type(node).__name__}"
        )
