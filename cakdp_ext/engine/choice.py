"""Which engine runs? OpenPCDet where there is one, the built-in one otherwise or when asked for."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.launch import require_openpcdet
from cakdp_ext.openpcdet.locate import VARIABLE, openpcdet_available, openpcdet_root

ENGINE = "CAKDP_ENGINE"
BUILTIN, OPENPCDET = "builtin", "openpcdet"


def adapter(name: str) -> ModuleType:
    """Import a module of ``cakdp_ext.openpcdet`` that cannot do without OpenPCDet.

    Raises:
        ConfigError: where OpenPCDet cannot be found or imported, with what to do.
    """
    root = openpcdet_root()
    require_openpcdet(root)
    return import_module(f"cakdp_ext.openpcdet.{name}")


def engine_name() -> str:
    """Give ``CAKDP_ENGINE`` where it is set; otherwise ``openpcdet`` where it can be found, else ``builtin``.

    ``OPENPCDET_ROOT`` asks for OpenPCDet even where it names no checkout, so that a slip of the pen is an error
    later on and not another engine.

    Raises:
        ConfigError: for another name.
    """
    asked = os.environ.get(ENGINE, "")
    if asked not in ("", BUILTIN, OPENPCDET):
        raise ConfigError(f"{ENGINE} is {asked!r}; it must be {BUILTIN} or {OPENPCDET}")
    if asked:
        return asked
    return OPENPCDET if os.environ.get(VARIABLE) or openpcdet_available() else BUILTIN
