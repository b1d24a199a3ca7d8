"""Score, prune, distil, test and report: ``python tools/compress.py --cfg cfgs/kitti/second_cakdp.yaml``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cakdp_ext.engine.cli import add_loop_flags, command_parser, load_request, run_command
from cakdp_ext.engine.compress import compress
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.runs import logging_to
from cakdp_ext.engine.train import TrainRequest


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run every stage that is not done yet, print the table."""
    parser = command_parser(__doc__)
    add_loop_flags(parser)
    parser.add_argument("--epochs", type=int, help="NUM_EPOCHS by default")
    parser.add_argument("--seed", type=int, default=666, help="of weights, order and augmentation")
    parser.add_argument("--use_amp", action="store_true", help="float16 on CUDA, bfloat16 on CPU")
    args = parser.parse_args(argv)
    config, run = load_request(args)
    request = TrainRequest(
        batch_size=args.batch_size, epochs=args.epochs, num_workers=args.workers, seed=args.seed, use_amp=args.use_amp
    )
    with workers(args.device, args.launcher, args.tcp_port) as place, logging_to(run.path, "compress", place.is_main):
        compress(config, run, place, request)


if __name__ == "__main__":
    sys.exit(run_command(main))
