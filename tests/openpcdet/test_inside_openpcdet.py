"""Tests that need OpenPCDet itself, each file in a process of its own, because CPU support changes what a process is.

They stand in ``inside_*.py`` beside this file and run on CPU wherever ``pcdet`` can be imported, or ``OPENPCDET_ROOT``
names a checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cakdp_ext.openpcdet.locate import openpcdet_available

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("inside_*.py"))


@pytest.mark.skipif(not openpcdet_available(), reason="no OpenPCDet: pcdet is not importable, OPENPCDET_ROOT not set")
@pytest.mark.parametrize("file", FILES)
def test_inside(file):
    paths = [HERE.parents[1], os.environ.get("OPENPCDET_ROOT"), os.environ.get("PYTHONPATH")]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
        "CAKDP_OPENPCDET_CPU": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    early = ["-p", "cakdp_ext"]  # imported first of all, so that `import pcdet` finds what it needs
    words = [sys.executable, "-m", "pytest", "-q", *early, "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / file)]
    done = subprocess.run(words, env=env, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
