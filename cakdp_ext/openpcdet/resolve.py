"""From any YAML, ours or OpenPCDet's, to one tree without bases whose paths hold from every folder."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from easydict import EasyDict

from cakdp_ext.checkpoint import CheckpointError, find_checkpoint
from cakdp_ext.config import ConfigError, dump_config, load_config
from cakdp_ext.openpcdet.locate import root_if_any


def places(root: Path | None) -> list[Path]:
    """Folders that a relative path may start from: the working directory, our repository, OpenPCDet's ``tools``.

    Args:
        root: OpenPCDet's checkout; None leaves it out.
    """
    ours = Path(__file__).resolve().parents[2]
    found = [Path.cwd(), *([ours] if (ours / "cfgs").is_dir() else [])]
    return [*found, root / "tools"] if root else found


def resolve(path: str | Path, overrides: Sequence[str] = (), root: Path | None = None) -> EasyDict:
    """Read a YAML with all its bases; file and bases may be relative to any of the ``places``.

    Args:
        path: the file.
        overrides: ``[KEY, VALUE, ...]`` as after ``--set``.
        root: OpenPCDet's checkout.

    Returns:
        The merged tree; ``CONFIG_FILE`` holds the path of the file that was found.

    Raises:
        ConfigError: as ``load_config`` does.
    """
    folders, path = places(root), Path(path)
    file = path if path.is_file() else _first(path, folders, Path.is_file) or path
    return load_config(file, overrides, folders)


def make_absolute(config: EasyDict, root: Path | None = None) -> EasyDict:
    """Give a copy with absolute paths: ``DATA_PATH``, CFG and CKPT of teacher and student, ``SCORES`` and ``PLAN``.

    A run folder as CKPT becomes its last epoch's file. What is in none of the ``places`` is taken to be meant from the
    working directory, so that whoever needs it later can say where it was expected.

    Args:
        config: of :func:`resolve`.
        root: OpenPCDet's checkout.
    """
    config, folders = with_data_path(config, root), places(root)
    model = config.get("MODEL") or {}
    pruning = model.get("PRUNING") or {}
    beside = Path(config.CONFIG_FILE).resolve().parents
    for source in (pruning.get("STUDENT") or {}, (model.get("DISTILL") or {}).get("TEACHER") or {}):
        _replace(source, "CFG", lambda path: _absolute(path, [beside[0], *folders, *beside]))
        _replace(source, "CKPT", lambda path: _checkpoint(_absolute(path, folders)))
    for key in ("SCORES", "PLAN"):
        _replace(pruning, key, lambda path: _absolute(path, folders))
    return config


def with_data_path(config: EasyDict, root: Path | None = None) -> EasyDict:
    """Give a copy whose ``DATA_PATH`` alone is absolute."""
    config = deepcopy(config)
    _replace(config.get("DATA_CONFIG") or {}, "DATA_PATH", lambda path: _absolute(path, places(root)))
    return config


def require_data(config: EasyDict, root: Path | None = None) -> None:
    """Refuse a configuration whose data folder is not there.

    Raises:
        ConfigError: naming the places that were looked in.
    """
    path = Path(config.DATA_CONFIG.DATA_PATH)
    if not path.is_dir():
        raise ConfigError(
            f"no data folder {path}; DATA_CONFIG.DATA_PATH is absolute or starts at one of "
            f"{', '.join(map(str, places(root)))}"
        )


def flatten(path: str, overrides: Sequence[str] = (), flag: str | None = None, *, absolute: bool = False) -> str:
    """Write a YAML without bases, for loaders that nest none.

    Args:
        path: the file.
        overrides: ``[KEY, VALUE, ...]`` as after ``--set``.
        flag: ``--openpcdet_root``; a checkout is needed only where the file lies in it or names a base of it.
        absolute: whether paths are made absolute too.

    Raises:
        ConfigError: as ``load_config`` does.
    """
    root = root_if_any(flag)
    config = resolve(path, overrides, root)
    config = make_absolute(config, root) if absolute else config
    tree = {key: value for key, value in config.items() if key != "CONFIG_FILE"}
    return f"# {path} with its bases, by tools/flatten.py\n{dump_config(tree)}"


def _replace(node: Any, key: str, change: Any) -> None:
    if node.get(key):
        node[key] = str(change(Path(node[key])))


def _absolute(path: Path, folders: Sequence[Path]) -> Path:
    return (_first(path, folders, Path.exists) or Path.cwd() / path).resolve()


def _first(path: Path, folders: Sequence[Path], is_there: Any) -> Path | None:
    """The path below the first folder that has it; None where none has."""
    return next((folder / path for folder in folders if is_there(folder / path)), None)


def _checkpoint(path: Path) -> Path:
    try:
        return find_checkpoint(path)
    except CheckpointError:
        return path
