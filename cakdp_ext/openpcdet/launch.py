"""Runs OpenPCDet's own ``tools/train.py`` or ``tools/test.py`` in this process, on a configuration of ours.

Its scripts stay as they are. Names in their namespace are replaced while they run: the reader of YAML files, the
command line's parser, and what ``guards`` watches over. Everything is put back afterwards.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import shlex
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from easydict import EasyDict

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet import register
from cakdp_ext.openpcdet.guards import guarded, replaced
from cakdp_ext.openpcdet.locate import make_importable

PACKAGE = Path(__file__).resolve().parents[1]
ENTRY_POINTS = ("main", "parse_config", "cfg_from_yaml_file")
THEIR_LOG = "pcdet.utils.common_utils"
CPU_SWITCH = "CAKDP_OPENPCDET_CPU"
Adjust = Callable[[Namespace], None]


@dataclass(frozen=True)
class Job:
    """One run of a script.

    Attributes:
        root: OpenPCDet's checkout.
        script: ``train`` or ``test``.
        config: the resolved tree, its paths absolute; it takes the place of the YAML.
        run: the run folder, absolute.
        words: the command line for its parser.
        tests: whether a training is followed by the tests that its script makes.
    """

    root: Path
    script: str
    config: EasyDict
    run: Path
    words: Sequence[str]
    tests: bool = True

    @property
    def file(self) -> Path:
        """The script."""
        return self.root / "tools" / f"{self.script}.py"


def launch(job: Job, adjust: Adjust) -> None:
    """Run a script to its end; ``require_openpcdet`` comes first.

    Args:
        job: what to run.
        adjust: is shown what the script's parser made of the command line and may change it.

    Raises:
        ConfigError: for a script that is none of OpenPCDet's, and whatever ``adjust`` and our own parts raise.
        RuntimeError: from an error of OpenPCDet's own code, which needs its traceback.
    """
    with (
        _script(job.file) as module,
        _configured(module, job, adjust),
        guarded(module, job.tests),
        _process_group(),
        _log_of_its_own(),
    ):
        try:
            module.main()
        except Exception as error:
            if _is_ours(error):
                raise
            raise RuntimeError(f"{job.file} failed: {type(error).__name__}: {error}") from error


@contextmanager
def _log_of_its_own() -> Iterator[None]:
    """Take the handlers away that a script gives OpenPCDet's logger, or the next one's lines would be told twice."""
    log = logging.getLogger(THEIR_LOG)
    before = list(log.handlers)
    try:
        yield
    finally:
        for handler in [handler for handler in log.handlers if handler not in before]:
            log.removeHandler(handler)
            handler.close()


def flags_of(root: Path, script: str) -> list[str]:
    """List the flags that a script's parser knows, without running it; forks have their own."""
    file = root / "tools" / f"{script}.py"
    calls = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    added = (call.args for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument")
    words = (word.value for args in added for word in args if isinstance(word, ast.Constant))
    return [word for word in words if isinstance(word, str) and word.startswith("--")]


def require_openpcdet(root: Path) -> None:
    """Import it and register our names.

    Raises:
        ConfigError: where that fails, or where there is no GPU and nobody asked for CPU.
    """
    make_importable(root)
    cure = f"{CPU_SWITCH}=1 runs it on CPU, CAKDP_ENGINE=builtin takes the built-in engine"
    try:
        register()
    except ImportError as error:
        raise ConfigError(
            f"OpenPCDet at {root} cannot be imported ({error}); build it (pip install --no-build-isolation -e {root}) "
            f"and install what it needs; without a GPU, {cure}"
        ) from error
    if not torch.cuda.is_available() and not _runs_on_cpu():
        raise ConfigError(f"OpenPCDet needs CUDA, and PyTorch {torch.__version__} sees no device; {cure}")


def _runs_on_cpu() -> bool:
    from cakdp_ext.openpcdet.cpu import modules

    return modules.are_in_place()


@contextmanager
def _script(file: Path) -> Iterator[ModuleType]:
    """Load a script with its folder first on ``sys.path``; what it imports from there is forgotten afterwards."""
    own = {part.stem for part in file.parent.iterdir()} - {"pcdet"}
    path, hidden = list(sys.path), _take_modules(own)  # among them the standard library's ``test``
    sys.path.insert(0, str(file.parent))
    try:
        module = _load(file)
        sys.path[:] = [str(file.parent), *path]  # without what it put there, relative to the working directory
        yield module
    finally:
        sys.path[:] = path
        _take_modules(own)
        sys.modules.update(hidden)


def _take_modules(names: Collection[str]) -> dict[str, ModuleType]:
    taken = [name for name in sys.modules if name.partition(".")[0] in names]
    return {name: sys.modules.pop(name) for name in taken}


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    missing = [name for name in ENTRY_POINTS if not hasattr(module, name)]
    if missing:
        raise ConfigError(
            f"{file} has no {', '.join(missing)}, so it is none of OpenPCDet's scripts as they can be driven; put "
            "`import cakdp_ext` at its top and run it by itself"
        )
    return module


@contextmanager
def _configured(module: ModuleType, job: Job, adjust: Adjust) -> Iterator[None]:
    """Give a script our configuration, command line and run folder; empty OpenPCDet's global one afterwards."""
    import pcdet.config

    cfg, argv = pcdet.config.cfg, sys.argv
    before = dict(cfg)

    def read(_: Any) -> Callable[..., Any]:
        return lambda cfg_file, config: _merge_into(config, job.config)

    def parse(original: Callable[[], tuple[Namespace, Any]]) -> Callable[[], tuple[Namespace, Any]]:
        def parse_config() -> tuple[Namespace, Any]:
            args, config = _parsed(original, job.file)
            config.EXP_GROUP_PATH, config.TAG = str(job.run.parents[1]), job.run.parent.name  # absolute, so it wins
            args.extra_tag, args.cfg_file = job.run.name, shlex.quote(args.cfg_file)  # it is put into a shell command
            adjust(args)
            return args, config

        return parse_config

    sys.argv = [str(job.file), *job.words]
    try:
        with replaced(module, {"cfg_from_yaml_file": read, "parse_config": parse}):
            yield
    finally:
        sys.argv = argv
        for key in list(cfg):
            cfg.pop(key)
        cfg.update(before)


def _parsed(parse_config: Callable[[], tuple[Namespace, Any]], file: Path) -> tuple[Namespace, Any]:
    try:
        return parse_config()
    except SystemExit as error:
        if error.code != 2:
            raise
        raise ConfigError(
            f"{file} does not take this command line, see above; CAKDP_ENGINE=builtin takes the built-in engine, "
            "which has flags of its own"
        ) from error


def _merge_into(config: EasyDict, tree: Mapping[str, Any]) -> EasyDict:
    """Lay a tree over OpenPCDet's global configuration: mappings key by key, everything else replaced."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), Mapping):
            _merge_into(config[key], value)
        else:
            config[key] = deepcopy(value)
    return config


@contextmanager
def _process_group() -> Iterator[None]:
    """Say how many processes there are in all, where OpenPCDet counts this machine's GPUs, and leave the group."""
    from pcdet.utils import common_utils

    def truthful(original: Callable[..., tuple[int, int]]) -> Callable[..., tuple[int, int]]:
        def join(*args: Any, **kwargs: Any) -> tuple[int, int]:
            _, rank = original(*args, **kwargs)
            return dist.get_world_size(), rank

        return join

    try:
        with replaced(common_utils, {"init_dist_pytorch": truthful}):
            yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_ours(error: Exception) -> bool:
    """Tell whether an error was raised by this package, which words its own for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).is_relative_to(PACKAGE) if frames else False
