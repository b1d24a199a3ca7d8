"""From MODEL.DISTILL to the methods that it names, and their keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cakdp_ext.config import ConfigError, ModelSource, from_node
from cakdp_ext.distillation.config import DistillConfig, MethodChoice, check_weight
from cakdp_ext.distillation.methods import all_methods, find_method


@dataclass(frozen=True)
class _Common:
    """The keys that belong to no method."""

    teacher: ModelSource
    method: Any = "SKD"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_weight("ALPHA", self.alpha)


def read_config(node: Mapping[str, Any], where: str) -> DistillConfig:
    """Read the section.

    ``METHOD`` is a name, or a list of names and of mappings ``{NAME, WEIGHT, ...}`` with keys of the method's own. Keys
    beside ``METHOD`` go to every method that knows them; a mapping's own keys go before them. ``ALPHA`` is the weight
    of every method that has no ``WEIGHT``. The keys of any method may stand there even where nobody asks for them, so
    that one word of a YAML changes the method.

    Args:
        node: MODEL.DISTILL's mapping.
        where: what errors call it.

    Raises:
        ConfigError: for an unknown method or key (the valid ones are listed), or a value that makes no sense.
    """
    own = {key: value for key, value in node.items() if key in _keys(_Common)}
    shared = {key: value for key, value in node.items() if key not in own}
    common = from_node(_Common, own, where)
    entries = [_entry(item, where) for item in _as_list(common.method)]
    known = [*_keys(_Common), *(key for name, _ in entries for key in _keys(find_method(name).Config))]
    of_others = {key for method in all_methods() for key in _keys(method.Config)}
    unknown = [key for key, value in shared.items() if value is not None and key not in {*known, *of_others}]
    if unknown:
        valid = ", ".join(dict.fromkeys(known))
        raise ConfigError(f"unknown key {', '.join(unknown)} in {where}; valid keys: {valid}")
    choices = tuple(_choice(name, keys, shared, common.alpha, where) for name, keys in entries)
    try:
        return DistillConfig(common.teacher, choices)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _choice(name: str, own: Mapping[str, Any], shared: Mapping[str, Any], alpha: float, where: str) -> MethodChoice:
    options: type = find_method(name).Config
    usual = {key: value for key, value in shared.items() if key in _keys(options)}
    keys = {key: value for key, value in own.items() if key != "WEIGHT"}
    place = f"METHOD {name} of {where}" if own else where
    settings: Any = from_node(options, {**usual, **keys}, place)
    weight = own.get("WEIGHT")
    try:
        return MethodChoice(name, alpha if weight is None else weight, settings)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error


def _as_list(method: Any) -> list[Any]:
    return list(method) if isinstance(method, list | tuple) else [method]


def _entry(item: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """Take a method's name and its own keys out of an entry of METHOD."""
    name, keys = item, {}
    if isinstance(item, Mapping):
        keys = {key: value for key, value in item.items() if key != "NAME"}
        name = item.get("NAME")
    if not isinstance(name, str):
        raise ConfigError(
            f"METHOD of {where} must be a name, or a list of names and of mappings with NAME, got {item!r}"
        )
    return name, keys


def _keys(of_class: type) -> list[str]:
    return [field.name.upper() for field in dataclasses.fields(of_class)]
