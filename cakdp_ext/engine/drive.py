"""The other engine: OpenPCDet's own scripts under the command line that all of our tools have."""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from easydict import EasyDict

from cakdp_ext.checkpoint import find_checkpoint
from cakdp_ext.config import ConfigError
from cakdp_ext.engine.choice import ENGINE, OPENPCDET, engine_name
from cakdp_ext.engine.cli import command_parser, require_sections
from cakdp_ext.engine.distributed import Workers, outside_group
from cakdp_ext.engine.resume import newest_checkpoint, require_openpcdets, require_same_settings
from cakdp_ext.engine.runs import LOG, RunFolder, logging_to
from cakdp_ext.engine.train import TrainRequest, plan_file
from cakdp_ext.openpcdet.launch import Job, flags_of, launch, require_openpcdet
from cakdp_ext.openpcdet.locate import openpcdet_root
from cakdp_ext.openpcdet.resolve import make_absolute, require_data, resolve
from cakdp_ext.openpcdet.segments import require_evaluation
from cakdp_ext.openpcdet.splits import hold_out, require_infos, split_config
from cakdp_ext.own_modules import import_modules

ROOT_FLAG = "--openpcdet_root"
THEIR_SEED = 666
"""What ``--fix_random_seed`` fixes."""


def drives_openpcdet(argv: Sequence[str] | None) -> bool:
    """Tell whether a command line is OpenPCDet's to obey: by ``engine_name``, or because it names a checkout.

    Args:
        argv: the arguments; None takes the process's.
    """
    return engine_name() == OPENPCDET or (not os.environ.get(ENGINE) and _root_flag(argv) is not None)


def drive(script: str, argv: Sequence[str] | None, description: str) -> None:
    """Train or test with OpenPCDet.

    Args:
        script: ``train`` or ``test``.
        argv: the arguments; None takes the process's. What is not ours goes to OpenPCDet's parser.
        description: what ``--help`` says first.

    Raises:
        ConfigError, CheckpointError, FileNotFoundError: when something is missing or does not fit, before OpenPCDet
            trains or tests anything.
    """
    args, words = _parse(script, argv, description)
    root = openpcdet_root(args.openpcdet_root)
    words = launcher_words(words, os.environ)
    require_openpcdet(root)
    run = RunFolder.of(args.cfg, args.extra_tag, Path(args.output_dir).resolve())
    asked = resolve(args.cfg, args.overrides, root)
    require_sections(asked)
    import_modules(asked)
    config = make_absolute(asked, root)
    require_data(config, root)
    is_main = _rank(words, os.environ) == 0
    with logging_to(run.path, f"cakdp_{script}", is_main):
        if script == "train":
            _train(asked, run, root, words, is_main)
        else:
            _start(Job(root, script, _prepare_test(config, run, args), run.path, words), run)


def train_with_openpcdet(config: EasyDict, run: RunFolder, request: TrainRequest, place: Workers) -> None:
    """Train as a stage of our own engine, by OpenPCDet's script, to the last epoch; nothing is tested.

    Args:
        config: of ``load_request``.
        run: where everything is kept.
        request: of the training.
        place: this process; it leaves its group for OpenPCDet's.

    Raises:
        ConfigError, CheckpointError: as :func:`drive`, and for a seed that OpenPCDet cannot take.
    """
    require_their_seed("--seed", request.seed)
    words = ["--fix_random_seed", "--workers", str(request.num_workers)]
    words += ["--use_amp"] if request.use_amp else []
    for flag, value in (("--epochs", request.epochs), ("--batch_size", request.batch_size)):
        words += [] if value is None else [flag, str(value)]
    root, absolute = openpcdet_root(), RunFolder(run.path.resolve())
    require_openpcdet(root)
    with outside_group(place):
        _train(config, absolute, root, launcher_words(words, os.environ), place.is_main, tests=False)


def require_their_seed(flag: str, *seeds: int) -> None:
    """Refuse seeds that OpenPCDet's scripts cannot take.

    Args:
        flag: what they were given by.
        seeds: what was asked for.

    Raises:
        ConfigError: for any but the one that those scripts know.
    """
    if any(seed != THEIR_SEED for seed in seeds):
        raise ConfigError(
            f"OpenPCDet's scripts know one seed, {THEIR_SEED}; leave {flag} out or set CAKDP_ENGINE=builtin"
        )


def _train(
    asked: EasyDict, run: RunFolder, root: Path, words: Sequence[str], is_main: bool, *, tests: bool = True
) -> None:
    config = _prepare_training(make_absolute(asked, root), run)
    if is_main:
        if not _has(words, "--ckpt"):
            require_same_settings(asked, run)
        run.create(asked)
    _start(Job(root, "train", config, run.path, words, tests and _can_be_tested(config)), run)


def _can_be_tested(config: EasyDict) -> bool:
    try:
        require_evaluation(config)
    except ConfigError as error:
        LOG.warning("nothing is tested after the training: %s", error)
        return False
    return True


def _start(job: Job, run: RunFolder) -> None:
    words = ["--cfg_file", str(Path(job.config.CONFIG_FILE).resolve()), "--extra_tag", run.path.name, *job.words]
    launch(replace(job, words=words), lambda parsed: _adjust(parsed, run, job.script))


def launcher_words(words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Add the flags that tell OpenPCDet of torchrun, where torchrun started this process and nothing else is asked for.

    Args:
        words: the command line.
        environment: of the process.
    """
    words = [word.replace("--local-rank", "--local_rank", 1) for word in words]
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(environment):
        return words
    if not _has(words, "--launcher"):
        words = ["--launcher", "pytorch", *words]
    if not _has(words, "--local_rank"):  # before 0.6.0 it is 0 in every process otherwise
        words = ["--local_rank", environment["LOCAL_RANK"], *words]
    return words


def _parse(script: str, argv: Sequence[str] | None, description: str) -> tuple[Namespace, list[str]]:
    parser = command_parser(description)
    parser.epilog = _their_flags(script, argv)
    parser.add_argument(
        ROOT_FLAG, help="OpenPCDet's checkout; OPENPCDET_ROOT or the one that pcdet is installed from by default"
    )
    if script == "test":
        parser.add_argument("--split", help="split to test, also held_out; DATA_SPLIT.test by default")
    return parser.parse_known_args(argv)


def _their_flags(script: str, argv: Sequence[str] | None) -> str:
    known = f"Any other flag goes to OpenPCDet's own tools/{script}.py"
    try:
        root = openpcdet_root(_root_flag(argv))
    except ConfigError as error:
        return f"{known}. {error}"
    return f"{known}; that of {root} takes {' '.join(flags_of(root, script))}"


def _root_flag(argv: Sequence[str] | None) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(ROOT_FLAG)
    parser.add_argument("--set", nargs=argparse.REMAINDER)
    root: str | None = parser.parse_known_args(sys.argv[1:] if argv is None else argv)[0].openpcdet_root
    return root


def _has(words: Sequence[str], flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in words)


def _rank(words: Sequence[str], environment: Mapping[str, str]) -> int:
    variable = "SLURM_PROCID" if "slurm" in words or "--launcher=slurm" in words else "RANK"
    return int(environment.get(variable, "0"))


def _prepare_training(config: EasyDict, run: RunFolder) -> EasyDict:
    plan = plan_file(config, run)
    if plan is not None:
        config.MODEL.PRUNING.PLAN = str(plan.resolve())
    for mode in ("train", "test"):
        require_infos(config, mode)
    if held_out := config.DATA_CONFIG.get("NUM_HELD_OUT"):
        LOG.info("%d frames of the training split are held out for scoring (DATA_CONFIG.NUM_HELD_OUT)", held_out)
    folder = run.path / "data"
    return hold_out(_for_testing(config, None, folder), folder)


def _prepare_test(config: EasyDict, run: RunFolder, args: Namespace) -> EasyDict:
    require_evaluation(config)
    config = _for_testing(config, args.split, run.path / "data")
    require_infos(config, "test")
    return config


def _for_testing(config: EasyDict, split: str | None, folder: Path) -> EasyDict:
    splits = config.DATA_CONFIG.get("DATA_SPLIT") or {}
    name = split or splits.get("test")
    return split_config(config, str(name), folder) if name and "train" in splits else config


def _adjust(given: Namespace, run: RunFolder, script: str) -> None:
    """Let flags mean what they mean in the built-in engine: run folders as checkpoints, a batch for all processes."""
    if script == "train":
        given.ckpt = given.ckpt or newest_checkpoint(run)
    elif not given.eval_all:
        given.ckpt = given.ckpt or run.path
    if script == "train" and given.ckpt:
        require_openpcdets(Path(given.ckpt))
    for name in ("ckpt", "pretrained_model"):
        if getattr(given, name, None):
            setattr(given, name, str(find_checkpoint(getattr(given, name))))
    if folder := getattr(given, "ckpt_dir", None):
        given.ckpt_dir = str(RunFolder(Path(folder)).ckpt if RunFolder(Path(folder)).ckpt.is_dir() else folder)
    counted = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS"}.get(given.launcher, "")
    processes = int(os.environ.get(counted, "1"))
    if given.batch_size is not None and (given.batch_size < 1 or given.batch_size % processes):
        raise ConfigError(f"--batch_size {given.batch_size} cannot be dealt out to {processes} processes")
