"""Measure what a detector costs: ``python tools/profile.py --cfg cfgs/kitti/second.yaml``.

Parameters, multiply-accumulates, activations, latency and memory, module by module, of any student or teacher.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from cakdp_ext.engine.cli import add_cost_flags, command_parser, load_request, positive, run_command
from cakdp_ext.engine.distributed import workers
from cakdp_ext.engine.profile import profile, profile_csv, profile_json, profile_table
from cakdp_ext.files import write_whole


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print; write where asked."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--ckpt",
        help="checkpoint or run folder; by default the run folder's newest, else the plan's cut or random weights",
    )
    add_cost_flags(parser)
    parser.add_argument("--iterations", type=positive, default=50, help="timed forwards")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--csv", metavar="FILE", help="write one row a module there")
    args = parser.parse_args(argv)
    config, run = load_request(args)
    with workers(args.device) as place:
        found = profile(config, run, place.device, ckpt=args.ckpt, num_frames=args.frames, iterations=args.iterations)
    print(profile_table(found))
    for file, write in ((args.json, profile_json), (args.csv, profile_csv)):
        if file:
            write_whole(Path(file), write(found))


def give_way() -> None:
    """Put the standard library's module of this name in the place of this one.

    Whoever runs a script of this folder has the folder in front of the standard library, and torch imports
    ``cProfile``, which imports ``profile``.
    """
    file = Path(sysconfig.get_path("stdlib"), "profile.py")
    spec = importlib.util.spec_from_file_location("profile", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"no {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["profile"] = module


if __name__ == "profile":
    give_way()
elif __name__ == "__main__":
    sys.exit(run_command(main))
