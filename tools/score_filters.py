"""Score the student's filters: ``python tools/score_filters.py --cfg cfgs/kitti/second_cakdp.yaml``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cakdp_ext.engine.cli import add_frame_flags, command_parser, load_request, run_command
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.prune import score
from cakdp_ext.engine.runs import logging_to


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, score; a killed run goes on where it was."""
    parser = command_parser(__doc__)
    add_frame_flags(parser)
    args = parser.parse_args(argv)
    config, run = load_request(args)
    with workers(args.device) as place, logging_to(run.path, "score", place.is_main):
        score(config, run, place, args.workers)


if __name__ == "__main__":
    sys.exit(run_command(main))
