"""Which engine runs? OpenPCDet where there is one, the built-in one otherwise or when asked for."""

from __future__ import annotations

import os

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.locate import VARIABLE, openpcdet_available

ENGINE = "CAKDP_ENGINE"
BUILTIN, OPENPCDET = "builtin", "openpcdet"


def engine_name() -> str:
    """Give ``CAKDP_ENGINE`` where it is set; otherwise ``openpcdet`` where it can be found, else ``builtin``.

    ``OPENPCDET_ROOT`` asks for OpenPCDet even where it names no checkout, so that a slip of the pen is an error later
    on and not another engine.

    Raises:
        ConfigError: for another name.
    """
    asked = os.environ.get(ENGINE, "")
    if asked not in ("", BUILTIN, OPENPCDET):
        raise ConfigError(f"{ENGINE} is {asked!r}; it must be {BUILTIN} or {OPENPCDET}")
    if asked:
        return asked
    return OPENPCDET if os.environ.get(VARIABLE) or openpcdet_available() else BUILTIN
