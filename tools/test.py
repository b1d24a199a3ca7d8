"""Test a checkpoint: ``python tools/test.py --cfg cfgs/kitti/second.yaml --ckpt output/kitti/second/default``.

OpenPCDet's own tools/test.py does it where there is an OpenPCDet; CAKDP_ENGINE=builtin takes the built-in engine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cakdp_ext.checkpoint import find_checkpoint
from cakdp_ext.engine.cli import add_loop_flags, command_parser, load_request, run_command
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.drive import drive, drives_openpcdet
from cakdp_ext.engine.evaluate import epochs_of, evaluate_checkpoints
from cakdp_ext.engine.runs import RunFolder, logging_to


def main(argv: Sequence[str] | None = None) -> None:
    """Test with the engine that is asked for."""
    if drives_openpcdet(argv):
        drive("test", argv, __doc__)
    else:
        evaluate_here(argv)


def evaluate_here(argv: Sequence[str] | None) -> None:
    """Parse, test, write the figures."""
    parser = command_parser(__doc__)
    add_loop_flags(parser)
    parser.add_argument("--ckpt", help="checkpoint or run folder; this run's last epoch by default")
    parser.add_argument("--eval_all", action="store_true", help="test every epoch checkpoint of the run")
    parser.add_argument("--ckpt_dir", help="with --eval_all: the folder of the checkpoints")
    parser.add_argument("--start_epoch", type=int, default=0, help="with --eval_all: first epoch to test")
    parser.add_argument(
        "--max_waiting_mins",
        type=float,
        default=0,
        help="with --eval_all: wait so long for another epoch to be trained",
    )
    parser.add_argument(
        "--infer_time", action="store_true", help="say how many milliseconds the detector takes a frame"
    )
    parser.add_argument("--eval_tag", default="default", help="last folder of the evaluation")
    parser.add_argument("--split", default=None, help="split to test; DATA_SPLIT.test by default")
    args = parser.parse_args(argv)
    if not args.eval_all and (args.ckpt_dir or args.start_epoch or args.max_waiting_mins):
        parser.error("--ckpt_dir, --start_epoch and --max_waiting_mins go with --eval_all; --ckpt names one checkpoint")
    config, run = load_request(args)
    checkpoints = chosen_checkpoints(args, run)
    with (
        workers(args.device, args.launcher, args.tcp_port) as place,
        logging_to(run.path / "eval", "log_eval", place.is_main) as log,
    ):
        results = evaluate_checkpoints(
            config,
            run,
            place,
            checkpoints,
            args.workers,
            split=args.split,
            tag=args.eval_tag,
            batch_size=args.batch_size,
        )
        if args.infer_time:
            for name, result in results.items():
                log.info("%s: %.2f ms a frame", name, 1000 * result.seconds_per_frame)


def chosen_checkpoints(args: argparse.Namespace, run: RunFolder) -> Iterable[Path]:
    """The one that ``--ckpt`` names, the run's last one, or with ``--eval_all`` each in its turn."""
    if not args.eval_all:
        return [find_checkpoint(args.ckpt or run.path)]
    folder = Path(args.ckpt_dir) if args.ckpt_dir else run.ckpt
    return epochs_of(folder, args.start_epoch, 60 * args.max_waiting_mins)


if __name__ == "__main__":
    sys.exit(run_command(main))
