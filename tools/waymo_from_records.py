"""Turn Waymo's records into processed segments: ``python tools/waymo_from_records.py --records data/waymo/raw_data``.

Needs Waymo's package, in an environment of its own (docs/waymo.md); everything else here does without it. Segments that
are there already are left as they are, so that an interrupted conversion goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from cakdp_ext.datasets.waymo.records import convert_segment, message_types
from cakdp_ext.engine.cli import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert, say what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="folder of the .tfrecord files")
    parser.add_argument("--out", type=Path, default=Path("data/waymo"), help="DATA_PATH (default: data/waymo)")
    parser.add_argument("--tag", default="waymo_processed_data_v0_5_0", help="PROCESSED_DATA_TAG")
    parser.add_argument("--workers", type=int, default=4, help="segments converted at a time (default: 4)")
    args = parser.parse_args(argv)
    message_types()
    files = sorted(args.records.glob("*.tfrecord"))
    if not files:
        raise FileNotFoundError(f"no *.tfrecord in {args.records}; give the folder of Waymo's records as --records")
    with ProcessPoolExecutor(args.workers) as pool:
        for file, count in zip(files, pool.map(partial(_convert, args.out / args.tag), files), strict=True):
            print(f"{file.stem}: {f'{count} sweeps' if count else 'already there'}")


def _convert(folder: Path, file: Path) -> int:
    return convert_segment(file, folder, message_types())


if __name__ == "__main__":
    sys.exit(run_command(main))
