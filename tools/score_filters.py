"""Score the student's filters: ``python tools/score_filters.py --cfg cfgs/kitti/second_cakdp.yaml``.

Or by several processes: ``bash tools/dist_score_filters.sh 8 --cfg ...``. With ``--mode race`` frames are added only
until it is settled which filters stay. What is not said here is as in the YAML's MODEL.PRUNING.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cakdp_ext.engine.cli import add_frame_flags, command_parser, load_request, run_command
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.prune import ask_for
from cakdp_ext.engine.runs import logging_to
from cakdp_ext.engine.score import score
from cakdp_ext.pruning import REMOVALS, SCORINGS


def make_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = command_parser(__doc__)
    add_frame_flags(parser)
    parser.add_argument("--mode", choices=SCORINGS, help="all filters on all frames, or a race for --keep (SCORING)")
    parser.add_argument(
        "--keep", type=float, metavar="RATIO", help="of a race: share of filters that stay (KEEP_RATIO)"
    )
    parser.add_argument("--confidence", type=float, help="of a race: that a filter has when it leaves (CONFIDENCE)")
    parser.add_argument("--seed", type=int, help="of a race: that the order of the frames is drawn with (SEED)")
    parser.add_argument("--removal", choices=REMOVALS, help="what it means to be without a filter (REMOVAL)")
    parser.add_argument("--split", help="data split of the frames (SPLIT)")
    parser.add_argument("--num_frames", "--num-frames", type=int, help="so many, evenly spaced; 0: all (NUM_FRAMES)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, score; a killed run goes on where it was."""
    args = make_parser().parse_args(argv)
    config, run = load_request(args)
    names = ("confidence", "seed", "removal", "split", "num_frames")
    rules = {"scoring": args.mode, **{name: getattr(args, name) for name in names}}
    config = ask_for(config, {"keep_ratio": args.keep}, rules)
    with workers(args.device) as place, logging_to(run.path, "score", place.is_main):
        score(config, run, place, args.workers)


if __name__ == "__main__":
    sys.exit(run_command(main))
