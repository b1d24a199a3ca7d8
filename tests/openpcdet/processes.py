"""Programs in processes of their own, because running OpenPCDet on CPU changes what a process thinks of CUDA."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).resolve().parent / "programs"
MARK = "RESULT "
"""What begins the lines that a program wants to be read."""


def environment_of(*folders, **variables):
    """Variables of a process of one thread that has no GPU and finds this tree's package, then what lies in folders."""
    path = os.pathsep.join(filter(None, [str(ROOT), *map(str, folders), os.environ.get("PYTHONPATH")]))
    fixed = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    dropped = ("CAKDP_OPENPCDET_CPU", "CAKDP_NATIVE", "CAKDP_COMPAT", "LOCAL_WORLD_SIZE")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**inherited, **fixed, **variables}


def results_of(command, *folders, **variables):
    """Run a program with ``environment_of``; give the results that it printed, and all that it printed."""
    command = [sys.executable, *map(str, command)]
    env = environment_of(*folders, **variables)
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    lines = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    return [json.loads(line) for line in lines], done.stdout + done.stderr
