"""Where is OpenPCDet? Its package may be installed; its scripts are part of a checkout only."""

from __future__ import annotations

import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from cakdp_ext.config import ConfigError

LOG = logging.getLogger("cakdp_ext")
VARIABLE = "OPENPCDET_ROOT"
SCRIPTS = ("train", "test")


def openpcdet_root(flag: str | Path | None = None) -> Path:
    """Find the checkout whose scripts are driven.

    Args:
        flag: what ``--openpcdet_root`` says; it comes before ``OPENPCDET_ROOT``, and both before the folder beside an
            importable ``pcdet``.

    Returns:
        The folder that holds ``pcdet`` and ``tools``, absolute.

    Raises:
        ConfigError: where none of the three names a checkout.
    """
    for name, value in (("--openpcdet_root", flag), (VARIABLE, os.environ.get(VARIABLE))):
        if value:
            return _checked(Path(value), f"{name} {value}")
    package = _installed()
    if package is None:
        raise ConfigError(
            "OpenPCDet is not found: name its checkout with --openpcdet_root or "
            f"{VARIABLE}, or install it from one (pip install --no-build-isolation -e OpenPCDet); "
            "CAKDP_ENGINE=builtin needs none"
        )
    return _checked(
        package.parent,
        f"pcdet is installed in {package}, and the folder around it",
        f"; name a checkout of the same version with --openpcdet_root or {VARIABLE}",
    )


def root_if_any(flag: str | Path | None = None) -> Path | None:
    """Find the checkout, or nothing where none is asked for by ``--openpcdet_root``."""
    try:
        return openpcdet_root(flag)
    except ConfigError:
        if flag:
            raise
        return None


def openpcdet_available() -> bool:
    """Tell whether there is an OpenPCDet: an importable ``pcdet``, or a checkout at ``OPENPCDET_ROOT``.

    Nothing of it is imported.
    """
    root = os.environ.get(VARIABLE)
    return _installed() is not None or bool(root and _lacking(Path(root)) is None)


def make_importable(root: Path) -> None:
    """Put a checkout last on ``sys.path`` where no ``pcdet`` is installed; warn where another one is."""
    package = _installed()
    if package is None:
        sys.path.append(str(root))
    elif package.parent != root:
        LOG.warning("the scripts of %s run with the package pcdet that is installed in %s", root, package)


def _installed() -> Path | None:
    """Folder of the package ``pcdet``, or None; importing it would start CUDA."""
    loaded = sys.modules.get("pcdet")
    origin = getattr(loaded, "__file__", None) or getattr(find_spec("pcdet"), "origin", None)
    return Path(origin).resolve().parent if origin else None


def _checked(root: Path, what: str, cure: str = "") -> Path:
    lacking = _lacking(root)
    if lacking is not None:
        raise ConfigError(f"{what} is no checkout of OpenPCDet: {lacking} is missing{cure}")
    return root.resolve()


def _lacking(root: Path) -> Path | None:
    parts = [root / "pcdet" / "__init__.py", *(root / "tools" / f"{script}.py" for script in SCRIPTS)]
    return next((part for part in parts if not part.is_file()), None)
