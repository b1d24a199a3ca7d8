"""Train a detector: ``python tools/train.py --cfg cfgs/kitti/second.yaml``.

OpenPCDet's own tools/train.py does it where there is an OpenPCDet; CAKDP_ENGINE=builtin takes the built-in engine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cakdp_ext.engine.cli import add_loop_flags, command_parser, load_request, run_command
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.drive import drive, drives_openpcdet
from cakdp_ext.engine.evaluate import evaluate_checkpoints
from cakdp_ext.engine.runs import logging_to
from cakdp_ext.engine.train import TrainRequest, train


def add_flags_without_effect(parser: argparse.ArgumentParser) -> None:
    """Add flags that OpenPCDet's scripts may pass and that have nothing to switch here."""
    kept = "kept for OpenPCDet's scripts: "
    parser.add_argument("--fix_random_seed", action="store_true", help=kept + "always fixed")
    parser.add_argument("--wo_gpu_stat", action="store_true", help=kept + "GPUs are not watched")
    parser.add_argument("--use_tqdm_to_record", action="store_true", help=kept + "progress is always a bar")
    parser.add_argument("--max_waiting_mins", type=float, default=0, help=kept + "what is tested is there already")
    parser.add_argument("--start_epoch", type=int, default=0, help=kept + "--num_epochs_to_eval says what is tested")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and test the last epochs, with the engine that is asked for."""
    if drives_openpcdet(argv):
        drive("train", argv, __doc__)
    else:
        train_here(argv)


def train_here(argv: Sequence[str] | None) -> None:
    """Parse, train, test the last epochs."""
    parser = command_parser(__doc__)
    add_loop_flags(parser)
    parser.add_argument("--epochs", type=int, help="NUM_EPOCHS by default")
    parser.add_argument("--ckpt", help="checkpoint to resume from; the run folder's newest by default")
    parser.add_argument("--pretrained_model", help="checkpoint or run folder whose weights to start from")
    parser.add_argument("--seed", type=int, default=666, help="of weights, order and augmentation")
    parser.add_argument("--use_amp", action="store_true", help="float16 on CUDA, bfloat16 on CPU")
    parser.add_argument("--sync_bn", action="store_true", help="batch norm over all GPUs")
    parser.add_argument("--ckpt_save_interval", type=int, default=1, help="epochs between checkpoints")
    parser.add_argument("--ckpt_save_time_interval", type=float, default=300, help="seconds between saves in an epoch")
    parser.add_argument("--max_ckpt_save_num", type=int, default=30, help="epoch checkpoints that stay")
    parser.add_argument("--logger_iter_interval", type=int, default=50, help="steps between TensorBoard entries")
    parser.add_argument("--num_epochs_to_eval", type=int, default=1, help="last epochs to test after training; 0: none")
    add_flags_without_effect(parser)
    args = parser.parse_args(argv)
    config, run = load_request(args)
    request = TrainRequest(
        batch_size=args.batch_size,
        epochs=args.epochs,
        num_workers=args.workers,
        seed=args.seed,
        use_amp=args.use_amp,
        sync_bn=args.sync_bn,
        ckpt=args.ckpt,
        pretrained_model=args.pretrained_model,
        save_every=args.ckpt_save_interval,
        keep_last=args.max_ckpt_save_num,
        save_seconds=args.ckpt_save_time_interval,
        log_every=args.logger_iter_interval,
    )
    with workers(args.device, args.launcher, args.tcp_port) as place, logging_to(run.path, "train", place.is_main):
        train(config, run, place, request)
        if args.num_epochs_to_eval:
            evaluate_checkpoints(config, run, place, run.checkpoints()[-args.num_epochs_to_eval :], args.workers)


if __name__ == "__main__":
    sys.exit(run_command(main))
