"""Tests that need a ``pcdet``, OpenPCDet itself or its stand-in; ``test_with_pcdet.py`` runs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

WHICH = os.environ.get("CAKDP_TESTED_PCDET", "")
"""``openpcdet`` or ``stand_in``; empty where these tests are not asked for."""
HERE = Path(__file__).resolve().parent
collect_ignore_glob = [] if WHICH else ["test_*.py"]

if WHICH:
    os.environ["CAKDP_ENGINE"] = "builtin"  # what these tests call OpenPCDet's they build themselves
    sys.path.insert(0, str(HERE.parents[1] / "engine"))
    import torch

    torch.set_num_threads(1)
if WHICH == "stand_in":
    import cakdp_ext  # noqa: F401

    sys.path.insert(0, str(HERE.parent / "stand_in"))
elif WHICH == "openpcdet":
    os.environ["CAKDP_OPENPCDET_CPU"] = "1"
    import cakdp_ext  # noqa: F401
    from cakdp_ext.openpcdet.locate import make_importable, openpcdet_root

    make_importable(openpcdet_root())


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """The tiny world in both engines. Not to be changed."""
    from both_engines import make_both

    return make_both(tmp_path_factory.mktemp("world"))


@pytest.fixture
def openpcdet(monkeypatch):
    """For what the stand-in does not have; what lies in OpenPCDet's ``tools`` can be imported."""
    if WHICH != "openpcdet":
        pytest.skip("the stand-in has no such thing")
    monkeypatch.setattr(sys, "path", [*sys.path, str(openpcdet_root() / "tools")])
