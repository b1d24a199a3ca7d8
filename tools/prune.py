"""Choose the filters that stay: ``python tools/prune.py --cfg cfgs/kitti/second_cakdp.yaml``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cakdp_ext.engine.cli import command_parser, load_request, run_command
from cakdp_ext.engine.prune import make_plan
from cakdp_ext.engine.runs import logging_to


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, plan, print the filters kept per layer."""
    parser = command_parser(__doc__)
    parser.add_argument("--keep", type=float, metavar="RATIO", help="share of filters that stay; KEEP_RATIO by default")
    args = parser.parse_args(argv)
    if args.keep is not None:
        args.overrides = [*args.overrides, "MODEL.PRUNING.KEEP_RATIO", str(args.keep)]
    config, run = load_request(args)
    with logging_to(run.path, "prune"):
        make_plan(config, run)


if __name__ == "__main__":
    sys.exit(run_command(main))
