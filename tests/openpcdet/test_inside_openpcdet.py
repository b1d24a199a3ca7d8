"""Tests that need OpenPCDet itself, each file in a process of its own, because CPU support changes what a process is.

They stand in ``inside_*.py`` beside this file and run wherever the fixture ``checkout`` finds OpenPCDet.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FILES = sorted(path.name for path in HERE.glob("inside_*.py"))
EARLY = ["-p", "cakdp_ext"]
"""Imported before everything else, so that ``import pcdet`` finds what it needs."""


@pytest.mark.parametrize("file", FILES)
def test_inside(file, environment):
    words = [sys.executable, "-m", "pytest", "-q", *EARLY, "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / file)]
    done = subprocess.run(words, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
