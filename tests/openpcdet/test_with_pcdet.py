"""Runs the tests of ``with_pcdet`` twice, each time in a process of its own: on OpenPCDet itself and on its stand-in.

The stand-in keeps OpenPCDet's contract around the built-in engine's networks, so that the plugin is tested everywhere.
One of the two alone: ``CAKDP_TESTED_PCDET=stand_in pytest tests/openpcdet/with_pcdet`` (or ``openpcdet``).
"""

from __future__ import annotations

import ast
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import pytest
from processes import ROOT, environment_of

FOLDER = Path(__file__).resolve().parent / "with_pcdet"
TIMEOUT = 570
pytestmark = pytest.mark.xdist_group("pcdet")


def names_of(folder):
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.stem}.{node.name}"


@pytest.fixture(scope="module", params=["stand_in", "openpcdet"])
def outcomes(request, tmp_path_factory):
    """What became of every test: name -> (``passed``, ``skipped`` or ``failed``, why) for each set of parameters."""
    pytest.importorskip("spconv")
    folders, variables = [], {"CAKDP_TESTED_PCDET": request.param}
    if request.param == "openpcdet":
        folders = [request.getfixturevalue("checkout")]
        variables.update(CAKDP_OPENPCDET_CPU="1", OPENPCDET_ROOT=str(folders[0]))
    environment = environment_of(*folders, **variables)
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    report = tmp_path_factory.mktemp(request.param) / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(FOLDER)]
    done = subprocess.run(command, env=environment, cwd=ROOT, text=True, timeout=TIMEOUT, capture_output=True)
    assert done.returncode in (0, 1), (done.stdout + done.stderr)[-6000:]
    return read(report)


def read(report):
    found = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname').rpartition('.')[2]}.{case.get('name').partition('[')[0]}"
        bad = [*case.iter("failure"), *case.iter("error")]
        skipped = list(case.iter("skipped"))
        state = "failed" if bad else "skipped" if skipped else "passed"
        found[name].append(
            (state, "\n".join(f"{case.get('name')}: {e.get('message')}\n{e.text}" for e in (*bad, *skipped)))
        )
    return found


@pytest.mark.parametrize("name", names_of(FOLDER))
def test_with_pcdet(outcomes, name):
    assert outcomes[name], "it was not run"
    failed = [why for state, why in outcomes[name] if state == "failed"]
    if failed:
        pytest.fail("\n".join(failed), pytrace=False)
    if all(state == "skipped" for state, _ in outcomes[name]):
        pytest.skip(outcomes[name][0][1].partition("\n")[0])
