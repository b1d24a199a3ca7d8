"""Print a YAML without bases: ``python tools/flatten.py --cfg cfgs/kitti/second_cakdp.yaml > FORK/tools/cfgs/second_cakdp.yaml``.

For loaders that do not nest bases, as in forks of OpenPCDet. Paths stay as they are unless ``--absolute`` is given.
"""  # noqa: E501

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cakdp_ext.engine.cli import run_command
from cakdp_ext.openpcdet.resolve import flatten


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, merge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", "--cfg_file", dest="cfg", required=True, help="YAML, ours or OpenPCDet's")
    parser.add_argument("--absolute", action="store_true", help="make the paths of data, models and plan absolute")
    parser.add_argument("--openpcdet_root", help="checkout of OpenPCDet, for YAMLs and bases that lie in its tools/")
    parser.add_argument(
        "--set", dest="overrides", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="change keys of the YAML, e.g. --set OPTIMIZATION.LR 0.001; must come last",
    )  # fmt: skip
    args = parser.parse_args(argv)
    sys.stdout.write(flatten(args.cfg, args.overrides, args.openpcdet_root, absolute=args.absolute))


if __name__ == "__main__":
    sys.exit(run_command(main))
