"""What was asked for: YAML with nested bases, command-line overrides, and frozen dataclasses for our own sections."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from easydict import EasyDict

T = TypeVar("T")
BASE_KEY = "_BASE_CONFIG_"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the file and what would be valid."""


def load_config(path: str | Path, overrides: Sequence[str] = (), search: Sequence[Path] = ()) -> EasyDict:
    """Read a YAML file with its bases and apply ``KEY VALUE`` overrides.

    ``_BASE_CONFIG_`` may stand at any depth and bases may have bases. A base is looked for beside the file that
    names it, then, as OpenPCDet's own files expect, from the working directory, then from any parent folder of
    the file, then from ``search``. Mappings merge key by key, everything else is replaced.

    Args:
        path: the YAML file.
        overrides: flat list ``[KEY, VALUE, KEY, VALUE, ...]`` as after ``--set``; keys are dotted.
        search: further folders that bases may be relative to.

    Returns:
        The merged tree; ``CONFIG_FILE`` holds the path it came from.

    Raises:
        ConfigError: for a missing file, a circular base, a syntax error, an unknown key or a value of another type.
    """
    path = Path(path)
    tree = EasyDict(_load_file(path, (), tuple(search)))
    tree["CONFIG_FILE"] = str(path)
    apply_overrides(tree, overrides)
    return tree


def _load_file(path: Path, seen: tuple[Path, ...], search: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(str(p) for p in (*seen, resolved))
        raise ConfigError(f"{BASE_KEY} goes in a circle: {chain}")
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping at its top, got {type(raw).__name__}")
    return _resolve_bases(raw, path, (*seen, resolved), search)


def _resolve_bases(
    node: Mapping[str, Any], path: Path, seen: tuple[Path, ...], search: tuple[Path, ...]
) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    if BASE_KEY in node:
        merged = _load_file(_find_base(str(node[BASE_KEY]), path, search), seen, search)
    own = {
        key: _resolve_bases(value, path, seen, search) if isinstance(value, Mapping) else value
        for key, value in node.items()
        if key != BASE_KEY
    }
    return merge(merged, own)


def _find_base(name: str, path: Path, search: tuple[Path, ...]) -> Path:
    folders = [path.parent, Path(), *path.resolve().parents, *search]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    under = ", ".join(map(str, (Path.cwd(), *search)))
    raise ConfigError(f"{path} names the base {name!r}, which is neither beside it nor under {under}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees: mappings key by key, everything else from ``over``; neither argument is changed."""
    merged = deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
    return merged


def dump_config(tree: Mapping[str, Any]) -> str:
    """Write a configuration as YAML, its bases and overrides merged."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return yaml.safe_dump(plain(tree), sort_keys=False)


def apply_overrides(tree: EasyDict, overrides: Sequence[str]) -> None:
    """Set dotted keys of ``tree`` in place from ``[KEY, VALUE, ...]``.

    The key must exist and the type must stay; an int is taken where a float stands, anything where null stands.

    Raises:
        ConfigError: for an odd list, a key that does not exist, or a value of another type.
    """
    if len(overrides) % 2:
        raise ConfigError(f"--set takes KEY VALUE pairs, got {len(overrides)} words: {' '.join(overrides)}")
    for dotted, text in zip(overrides[::2], overrides[1::2], strict=True):
        *parents, leaf = dotted.split(".")
        node: Any = tree
        for depth, name in enumerate([*parents, leaf]):
            if not isinstance(node, Mapping) or name not in node:
                valid = ", ".join(map(str, node)) if isinstance(node, Mapping) else "none, it is a value"
                where = ".".join(dotted.split(".")[:depth]) or "the top level"
                raise ConfigError(f"--set {dotted}: no key {name!r} under {where}; keys there: {valid}")
            if depth < len(parents):
                node = node[name]
        node[leaf] = _cast_like(node[leaf], yaml.safe_load(text), dotted)


def _cast_like(old: Any, new: Any, dotted: str) -> Any:
    if isinstance(new, str) and isinstance(old, int | float) and not isinstance(old, bool):
        new = _number_or(new)
    if old is None or new is None or type(new) is type(old):
        return new
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return EasyDict(merge(old, new))
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return list(new)
    if isinstance(old, list | tuple) and isinstance(new, str) and "," in new:
        return [yaml.safe_load(part) for part in new.split(",")]
    raise ConfigError(f"--set {dotted} {new!r}: expected {type(old).__name__} like {old!r}, got {type(new).__name__}")


def _number_or(text: str) -> Any:
    """Read what YAML 1.1 leaves a string (``1e-3``) as a number."""
    try:
        return float(text)
    except ValueError:
        return text


def from_node(cls: type[T], node: Mapping[str, Any] | None, where: str) -> T:
    """Build one of our frozen dataclasses from a YAML mapping with UPPER_CASE keys.

    Args:
        cls: a dataclass; field ``score_thresh`` is read from ``SCORE_THRESH``; a field whose type is itself a
            dataclass is read from the mapping of that name.
        node: the mapping; None stands for an empty one, here and where a field is a dataclass with a default. A key
            that the class does not know may be there with null, which takes away what a base has.
        where: what errors call it, e.g. ``MODEL.DISTILL in cfgs/kitti/second_cakdp.yaml``.

    Raises:
        ConfigError: for an unknown key (the valid ones are listed), a missing one, an empty one that must not be empty,
            or a value the class refuses.
    """
    node = node or {}
    hints = typing.get_type_hints(cls)
    fields = {f.name.upper(): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    node = {key: value for key, value in node.items() if key in fields or value is not None}
    unknown = [key for key in node if key not in fields]
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)} in {where}; valid keys: {', '.join(fields)}")
    values: dict[str, Any] = {}
    for key, value in node.items():
        name = fields[key].name
        hint = next((h for h in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(h)), None)
        if value is None and not _may_be_none(hints[name]):
            if hint is None or _is_required(fields[key]):
                raise ConfigError(f"{key} of {where} is empty; give it a value, or leave it out where it has a default")
        elif hint is not None and isinstance(value, Mapping):
            values[name] = from_node(hint, value, f"{key} of {where}")  # type: ignore[arg-type]
        elif hints[name] in (float, float | None) and isinstance(value, int | str) and not isinstance(value, bool):
            values[name] = _number_or(str(value))
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _may_be_none(hint: Any) -> bool:
    """Tell whether a field takes None; of texts, which are paths and names, their classes say more than we could."""
    return hint in (Any, str) or type(None) in typing.get_args(hint)


def _is_required(of_class: dataclasses.Field[Any]) -> bool:
    return of_class.default is dataclasses.MISSING and of_class.default_factory is dataclasses.MISSING


def required(data_cfg: Mapping[str, Any], key: str, mode: str | None = None) -> Any:
    """Give the value of a key of ``DATA_CONFIG``, or of its entry for ``train`` or ``test``.

    Raises:
        ConfigError: where there is none.
    """
    if key not in data_cfg:
        raise ConfigError(f"DATA_CONFIG has no {key}")
    if mode is None:
        return data_cfg[key]
    if mode not in data_cfg[key]:
        raise ConfigError(f"{key} has no entry {mode!r}; it has {', '.join(data_cfg[key]) or 'none'}")
    return data_cfg[key][mode]


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a trained model comes from.

    Attributes:
        cfg: YAML that describes it, relative to the YAML that names it or to the working directory.
        ckpt: checkpoint file, or run folder whose last epoch is taken.
    """

    cfg: str
    ckpt: str
