"""Tests that need OpenPCDet itself: ``inside_*.py`` beside this file, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

FILES = sorted(Path(__file__).resolve().parent.glob("inside_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_inside(file, run_program):
    _, said = run_program("inside.py", file)
    assert " passed" in said
