"""Which modules of the user's own does a configuration need? They register names that MODEL and DATA_CONFIG hold."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cakdp_ext.config import ConfigError

KEY = "IMPORTS"


def import_modules(config: Mapping[str, Any]) -> None:
    """Import what ``IMPORTS`` of a YAML lists, each once in a process.

    An entry that ends with ``.py`` is a file, beside the YAML or below the working directory; any other one is a module
    that Python finds.

    Args:
        config: of ``load_config``.

    Raises:
        ConfigError: for a list of something else, a module that is not there, or a file whose name another module has.
    """
    entries, where = config.get(KEY) or [], f"{KEY} of {config['CONFIG_FILE']}"
    if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
        raise ConfigError(f"{where} must be a list of modules or .py files, got {entries!r}")
    for entry in entries:
        if entry.endswith(".py"):
            _import_file(_find(entry, Path(str(config["CONFIG_FILE"])).parent, where))
        else:
            _import_name(entry, where)


def _find(entry: str, folder: Path, where: str) -> Path:
    for file in (folder / entry, Path(entry)):
        if file.is_file():
            return file.resolve()
    raise ConfigError(f"{where}: no file {entry} beside the YAML or in {Path.cwd()}")


def _import_name(name: str, where: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{where}: Python finds no module {name!r}; put its folder on PYTHONPATH, or name the file, e.g. {name}.py"
        ) from error


def _import_file(file: Path) -> None:
    known = sys.modules.get(file.stem)
    if known is not None and Path(str(getattr(known, "__file__", None))).resolve() == file:
        return
    if known is not None or file.stem in sys.stdlib_module_names:
        raise ConfigError(f"{file} has the name of another module, {file.stem}; rename it")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is no Python file")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # where processes that load frames look for it
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
