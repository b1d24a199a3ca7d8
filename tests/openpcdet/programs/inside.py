"""Run a file of tests beside OpenPCDet on CPU, a program of its own: ``inside.py CHECKOUT FILE``."""

from __future__ import annotations

import sys

import pytest

import cakdp_ext  # noqa: F401 (before pcdet, which then finds what it needs)

if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", sys.argv[2]]))
