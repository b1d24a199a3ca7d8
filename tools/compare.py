"""Compare methods: ``python tools/compare.py --cfg cfgs/kitti/second_cakdp.yaml --methods SKD VanillaKD --seeds 0 1``.

Every method trains the same cut from the same start on the same frames, beside the cut without distillation and a
plain narrower network of equal latency. An interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from easydict import EasyDict

from cakdp_ext.config import ConfigError
from cakdp_ext.engine.choice import OPENPCDET, engine_name
from cakdp_ext.engine.cli import add_loop_flags, command_parser, load_request, run_command
from cakdp_ext.engine.comparison import Comparison, ComparisonRequest
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.drive import THEIR_SEED, require_their_seed
from cakdp_ext.engine.report import console_table
from cakdp_ext.engine.runs import logging_to
from cakdp_ext.engine.train import TrainRequest


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train and test what has not been, print the table."""
    parser = command_parser(__doc__)
    add_loop_flags(parser)
    parser.set_defaults(extra_tag="compare")
    parser.add_argument(
        "--methods", nargs="+",
        help="what METHOD may be, SKD '{NAME: VanillaKD, WEIGHT: 0.1}'; that of the YAML by default",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, help="0 1 2 by default; OpenPCDet knows one, 666")
    parser.add_argument("--epochs", type=int, help="of each training; NUM_EPOCHS by default")
    parser.add_argument("--use_amp", action="store_true", help="float16 on CUDA, bfloat16 on CPU")
    parser.add_argument("--cost_steps", type=int, default=5, help="training steps timed for each row; 0: none")
    parser.add_argument("--markdown", action="store_true", help="print the table for a page at the end")
    args = parser.parse_args(argv)
    config, run = load_request(args)
    request = TrainRequest(
        batch_size=args.batch_size, epochs=args.epochs, num_workers=args.workers, use_amp=args.use_amp, keep_last=2
    )
    asked = asked_for(args, config)
    with workers(args.device, args.launcher, args.tcp_port) as place, logging_to(run.path, "compare", place.is_main):
        report = Comparison(config, run, place, request, asked).go()
    if report is not None and args.markdown:
        sys.stdout.write(console_table(report.rows, report.headline_metrics, markdown=True) + "\n")


def asked_for(args: argparse.Namespace, config: EasyDict) -> ComparisonRequest:
    """Read methods and seeds."""
    methods = list(map(method_of, args.methods or [])) or [(config.MODEL.get("DISTILL") or {}).get("METHOD", "SKD")]
    if engine_name() == OPENPCDET:
        seeds = args.seeds or [THEIR_SEED]
        require_their_seed("--seeds", *seeds)
    else:
        seeds = args.seeds or [0, 1, 2]
    return ComparisonRequest(tuple(methods), tuple(seeds), args.cost_steps)


def method_of(word: str) -> Any:
    """Read a name, or a mapping or list in YAML."""
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise ConfigError(f"--methods takes names and YAML mappings, got {word!r}") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
