"""Print the paper's tables with ours beside them: ``python tools/tables.py --data_path data/kitti``.

Parameters follow from the YAMLs in cfgs/, multiply-accumulates from frames of the test split, AP from finished runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from cakdp_ext.config import ConfigError
from cakdp_ext.engine.choice import engine_name
from cakdp_ext.engine.cli import run_command
from cakdp_ext.engine.tables import Measurer, MeasureSettings, read_tables, render_table


def make_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cfg", default="cfgs/tables.yaml", help="what the paper says, and which YAML each row is")
    parser.add_argument("--only", default="", metavar="TEXT", help="tables that have it in their name")
    parser.add_argument("--data_path", metavar="DIR", help="KITTI; the YAML's DATA_PATH by default")
    parser.add_argument("--waymo_path", metavar="DIR", help="Waymo; the YAML's DATA_PATH by default")
    parser.add_argument("--frames", type=int, default=8, help="of the test split, evenly spaced; 0: no forwards at all")
    parser.add_argument(
        "--scores", nargs="+", default=[], metavar="YAML=FILE",
        help="filter scores of a student (.npz, or a .txt of the authors), for pruned rows without a run",
    )  # fmt: skip
    parser.add_argument("--output_dir", default="output", help="first folder of the runs")
    parser.add_argument("--extra_tag", default="default", help="last folder of the runs")
    parser.add_argument("--markdown", action="store_true", help="for a page")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    args = make_parser().parse_args(argv)
    tables = [table for table in read_tables(args.cfg) if args.only in table.name]
    if not tables:
        raise ConfigError(f"no table of {args.cfg} has {args.only!r} in its name")
    given = {"KittiDataset": args.data_path, "WaymoDataset": args.waymo_path}
    measurer = Measurer(
        MeasureSettings(
            data_paths={name: path for name, path in given.items() if path},
            scores=dict(map(read_pair, args.scores)),
            output_dir=args.output_dir,
            extra_tag=args.extra_tag,
            num_frames=args.frames,
            device=torch.device(args.device),
        )
    )
    for table in tables:
        with tqdm(table.rows, desc=table.name, unit="row", leave=False) as rows:
            measured = [measurer.measure(row.cfg) for row in rows]
        print(render_table(table, measured, markdown=args.markdown), end="\n\n", flush=True)
    print(f"engine: {engine_name()}")


def read_pair(text: str) -> tuple[Path, str]:
    """Read ``YAML=FILE``.

    Raises:
        ConfigError: for anything else.
    """
    cfg, _, file = text.partition("=")
    if not Path(cfg).is_file() or not file:
        raise ConfigError(f"--scores takes YAML=FILE with the YAML of a student, got {text!r}")
    return Path(cfg), file


if __name__ == "__main__":
    sys.exit(run_command(main))
