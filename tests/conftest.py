"""Where the test material lies, and how many threads a test may take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ["CAKDP_ENGINE"] = "builtin"  # also where there is an OpenPCDet; tests of it say so themselves


def shared_data() -> Path:
    """Folder of the real sensor data that tests use where it is present."""
    return Path(os.environ.get("CAKDP_SHARED_DATA", ROOT.parent / "shared" / "data"))


def pytest_configure(config: pytest.Config) -> None:
    """Give each parallel test process one thread."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_kitti() -> Path:
    """KITTI's raw layout with a few real frames."""
    path = shared_data() / "kitti"
    if not path.is_dir():
        pytest.skip(f"real KITTI frames are not at {path}; set CAKDP_SHARED_DATA")
    return path
