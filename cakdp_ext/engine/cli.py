"""What the commands share: OpenPCDet's flags, errors that end a command in one line."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence

from easydict import EasyDict

from cakdp_ext.checkpoint import CheckpointError
from cakdp_ext.config import ConfigError, load_config
from cakdp_ext.engine.choice import OPENPCDET, engine_name
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.openpcdet.locate import openpcdet_root
from cakdp_ext.openpcdet.resolve import resolve, with_data_path
from cakdp_ext.own_modules import import_modules
from cakdp_ext.types import MissingSpconvError

USER_ERRORS = (ConfigError, CheckpointError, MissingSpconvError, ValueError, OSError, FloatingPointError)
SECTIONS = ("CLASS_NAMES", "DATA_CONFIG", "MODEL", "OPTIMIZATION")
_FROM_LOADER = re.compile(r"Caught (\w+) in DataLoader worker process.*^[\w.]*?\1: (.*)", re.DOTALL | re.MULTILINE)


def command_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every command takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cfg", "--cfg_file", dest="cfg", required=True, help="YAML configuration")
    parser.add_argument("--extra_tag", default="default", help="last folder of the run")
    parser.add_argument("--output_dir", default="output", help="first folder of the run")
    parser.add_argument(
        "--set", dest="overrides", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="change keys of the YAML, e.g. --set OPTIMIZATION.LR 0.001; must come last",
    )  # fmt: skip
    return parser


def add_frame_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of commands that compute on frames."""
    parser.add_argument("--workers", type=int, default=4, help="data loading processes")
    add_device_flag(parser)


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says where networks run."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N; CUDA where there is a device by default")


def add_cost_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of commands that measure costs."""
    add_device_flag(parser)
    parser.add_argument("--frames", type=positive, default=8, help="of the test split, evenly spaced, to measure on")


def positive(text: str) -> int:
    """Read a whole number above 0."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_loop_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of training and testing loops."""
    add_frame_flags(parser)
    parser.add_argument("--batch_size", type=int, help="over all processes; BATCH_SIZE_PER_GPU each by default")
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm"], default="none",
        help="slurm: one process a task of srun; torchrun is found by itself",
    )  # fmt: skip
    parser.add_argument("--tcp_port", type=int, default=18888, help="of the first process, with --launcher slurm")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="read from torchrun's environment")
    parser.add_argument("--save_to_file", action="store_true", help="kept for OpenPCDet's scripts: files are written")


def load_request(args: argparse.Namespace) -> tuple[EasyDict, RunFolder]:
    """Read the configuration and name the run folder that a command line asks for.

    Raises:
        ConfigError: for a YAML that does not describe a whole model.
    """
    config = read_config(args.cfg, args.overrides)
    require_sections(config)
    import_modules(config)
    return config, RunFolder.of(args.cfg, args.extra_tag, args.output_dir)


def read_config(cfg: str, overrides: Sequence[str] = ()) -> EasyDict:
    """Read a YAML; OpenPCDet's may lie, and have their bases and data, in its own folders."""
    if engine_name() == OPENPCDET:
        root = openpcdet_root()
        return with_data_path(resolve(cfg, overrides, root), root)
    return load_config(cfg, overrides)


def require_sections(config: EasyDict) -> None:
    """Refuse a YAML that does not describe a whole model.

    Raises:
        ConfigError: naming what it lacks.
    """
    missing = [section for section in SECTIONS if section not in config]
    if missing:
        raise ConfigError(f"{config.CONFIG_FILE} has no {', '.join(missing)}; --cfg takes the YAML of a model")


def one_line(error: BaseException) -> str:
    """Give what an error says in one line, without the traceback that a loader process puts around it."""
    text = str(error)
    wrapped = _FROM_LOADER.match(text)
    return " ".join((wrapped.group(2) if wrapped else text).split("\n")).strip()


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that its user can mend end it with one line and exit code 2.

    ``CAKDP_DEBUG=1`` shows where such an error came from.

    Args:
        main: the command.
        argv: its arguments; None takes the process's.

    Returns:
        The exit code.
    """
    try:
        main(argv)
    except USER_ERRORS as error:
        if os.environ.get("CAKDP_DEBUG"):
            raise
        sys.stderr.write(f"error: {one_line(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to go on\n")
        return 130
    return 0
