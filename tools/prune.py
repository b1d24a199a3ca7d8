"""Choose the filters that stay: ``python tools/prune.py --cfg cfgs/kitti/second_cakdp.yaml --macs 30G``.

Shows the filters kept in each layer and what the cut costs, then writes plan.json and plan.png; with --sweep what the
cuts of several keep ratios cost, then sweep.csv and sweep.png. What is not said here is as in the YAML's MODEL.PRUNING.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from easydict import EasyDict

from cakdp_ext.config import ConfigError
from cakdp_ext.engine.cli import add_cost_flags, command_parser, load_request, positive, run_command
from cakdp_ext.engine.cut import Place
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.prune import CutRequest, ask_for, make_plan, sweep_cuts
from cakdp_ext.engine.runs import logging_to


def make_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = command_parser(__doc__)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--keep", type=float, metavar="RATIO", help="share of filters that stay (KEEP_RATIO)")
    budget.add_argument("--params", metavar="NUMBER", help="parameters at most, e.g. 1.5M (PARAMS)")
    budget.add_argument("--macs", metavar="NUMBER", help="multiply-accumulates of a frame at most, e.g. 30G (MACS)")
    budget.add_argument("--latency", metavar="TIME", help="median of a frame at most, e.g. 20ms, measured (LATENCY)")
    budget.add_argument("--sweep", type=float, nargs="*", metavar="RATIO", help="keep ratios; 0.1 to 1.0 by default")
    parser.add_argument("--round_to", "--round-to", type=positive, metavar="N",
                        help="each layer keeps a multiple of N filters, or all (ROUND_TO)")  # fmt: skip
    parser.add_argument("--min_filters", "--min-filters", type=int, metavar="N",
                        help="each layer keeps N filters at least (MIN_FILTERS)")  # fmt: skip
    parser.add_argument("--protect", "--layers", nargs="+", metavar="PATTERN",
                        help="layers that keep all filters, e.g. '*deblocks*' (PROTECT)")  # fmt: skip
    parser.add_argument("--with_latency", "--with-latency", action="store_true", help="with --sweep: time each cut")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="show, and write nothing")
    add_cost_flags(parser)
    return parser


def settings_of(args: argparse.Namespace, config: EasyDict) -> EasyDict:
    """Give the configuration that YAML and command line ask for together."""
    if args.with_latency and args.sweep is None:
        raise ConfigError("--with_latency belongs to --sweep; the latency of a single cut is measured anyway")
    budget = {"keep_ratio": args.keep, "params": args.params, "macs": args.macs, "latency": args.latency}
    rules = {"round_to": args.round_to, "min_filters": args.min_filters, "protect": args.protect}
    return ask_for(config, budget, rules)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, choose, show, write."""
    args = make_parser().parse_args(argv)
    config, run = load_request(args)
    config = settings_of(args, config)
    log_folder = None if args.dry_run else run.path
    with workers(args.device) as place, logging_to(log_folder, "prune", place.is_main, is_whole=True):
        request = CutRequest(Place(place.device, args.frames), keeps=not args.dry_run)
        if args.sweep is None:
            make_plan(config, run, request)
        else:
            sweep_cuts(config, run, request, args.sweep, with_latency=args.with_latency)


if __name__ == "__main__":
    sys.exit(run_command(main))
