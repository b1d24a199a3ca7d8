"""Prepare KITTI, Waymo, or data in their layouts: ``python tools/make_infos.py --cfg cfgs/datasets/kitti.yaml``.

The info files and the ground-truth database have the content and format of OpenPCDet's, and either reads the other's.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from cakdp_ext.config import load_config
from cakdp_ext.datasets import make_infos, make_waymo_infos
from cakdp_ext.engine.cli import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, make the files, print what they hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", "--cfg_file", dest="cfg", help="YAML of the data set, or of a model")
    parser.add_argument("--data_path", type=Path, help="folder of the data; DATA_PATH by default")
    parser.add_argument("--workers", type=int, default=4, help="frames read at a time")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if args.cfg is None and args.data_path is None:
        parser.error("give --cfg, --data_path, or both")
    config = load_config(args.cfg) if args.cfg else {}
    data = config.get("DATA_CONFIG", config)
    data_path = args.data_path or Path(data["DATA_PATH"])
    if data.get("DATASET") == "WaymoDataset":
        summary = make_waymo_infos(data, data_path, args.workers)
    else:
        summary = make_infos(data_path, args.workers)
    print(f"written to {data_path}")
    for split, count in summary.num_frames.items():
        print(f"{count:6} frames of {split}")
    for name, count in sorted(summary.num_objects.items()):
        print(f"{count:6} objects {name} in the ground-truth database")


if __name__ == "__main__":
    sys.exit(run_command(main))
