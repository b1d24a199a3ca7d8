"""Generate street scenes: ``python tools/make_scenes.py --cfg cfgs/synthetic/scenes.yaml --out data/scenes``.

The folder gets KITTI's raw layout, or with ``--layout waymo`` that of Waymo's processed segments (cfgs/synthetic/
waymo_scenes.yaml). Frames depend on the configuration alone, not on the number of workers; a folder
that holds the same scenes already is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cakdp_ext.datasets.scenes import read_scene_config, write_scenes
from cakdp_ext.datasets.scenes.writer import LAYOUTS
from cakdp_ext.engine.cli import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, generate, print what the data set holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="YAML of the scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--layout", choices=LAYOUTS, default="kitti", help="of the files (default: kitti)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace generated scenes of another configuration and all beside them"
    )
    parser.add_argument(
        "--set", dest="overrides", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="change keys of the YAML, e.g. --set NUM_TRAIN 10 LIDAR.BEAMS 32; must come last",
    )  # fmt: skip
    args = parser.parse_args(argv)
    config = read_scene_config(args.cfg, args.overrides)
    summary = write_scenes(config, args.out, layout=args.layout, workers=args.workers, overwrite=args.overwrite)
    print(f"{'already there' if summary.reused else 'written'}: {args.out}")
    print(f"{summary.num_frames:6} frames of {summary.mean_points:.0f} points on average")
    for name, count in summary.objects.items():
        print(f"{count:6} {name}, {count / summary.num_frames:.1f} a frame")


if __name__ == "__main__":
    sys.exit(run_command(main))
