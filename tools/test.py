"""Test a checkpoint: ``python tools/test.py --cfg cfgs/kitti/second.yaml --ckpt output/kitti/second/default``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cakdp_ext.engine.checkpoint import find_checkpoint
from cakdp_ext.engine.cli import add_loop_flags, command_parser, load_request, run_command
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.evaluate import evaluate_checkpoints
from cakdp_ext.engine.runs import epoch_checkpoints, logging_to


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, test, write the figures."""
    parser = command_parser(__doc__)
    add_loop_flags(parser)
    parser.add_argument("--ckpt", help="checkpoint or run folder; this run's last epoch by default")
    parser.add_argument("--eval_all", action="store_true", help="test every epoch checkpoint of the run")
    parser.add_argument("--ckpt_dir", help="with --eval_all: the folder of the checkpoints")
    parser.add_argument("--eval_tag", default="default", help="last folder of the evaluation")
    parser.add_argument("--split", default=None, help="split to test; DATA_SPLIT.test by default")
    args = parser.parse_args(argv)
    if args.ckpt_dir and not args.eval_all:
        parser.error("--ckpt_dir goes with --eval_all; name one checkpoint with --ckpt")
    config, run = load_request(args)
    if args.eval_all:
        folder = Path(args.ckpt_dir) if args.ckpt_dir else run.ckpt
        checkpoints = epoch_checkpoints(folder) or [find_checkpoint(folder)]
    else:
        checkpoints = [find_checkpoint(args.ckpt or run.path)]
    with workers(args.device) as place, logging_to(run.path / "eval", "log_eval", place.is_main):
        evaluate_checkpoints(
            config,
            run,
            place,
            checkpoints,
            args.workers,
            split=args.split,
            tag=args.eval_tag,
            batch_size=args.batch_size,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
