"""A stock checkout of OpenPCDet, and programs that run it on CPU in processes of their own."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from processes import PROGRAMS, results_of


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Folder that holds ``pcdet`` and ``tools``; never written to."""
    named = os.environ.get("OPENPCDET_ROOT")
    if named:
        return Path(named).resolve()
    found = importlib.util.find_spec("pcdet")
    if found is None or found.origin is None:
        pytest.skip("OpenPCDet is not here; install it or set OPENPCDET_ROOT to a checkout")
    return Path(found.origin).resolve().parents[1]


@pytest.fixture(scope="session")
def run_program(checkout):
    """``run_program(name, *arguments, launcher=(), **variables)`` runs a program on OpenPCDet: results, output."""
    pytest.importorskip("spconv")

    def run(name, *arguments, launcher=(), **variables):
        command = [*launcher, PROGRAMS / name, checkout, *arguments]
        return results_of(command, checkout, CAKDP_OPENPCDET_CPU="1", **variables)

    return run


@pytest.fixture(scope="session")
def run_python():
    """``run_python(*arguments)`` runs Python without OpenPCDet: results, output."""
    return lambda *arguments: results_of(arguments)


@pytest.fixture(scope="session")
def made_up_report(tmp_path_factory):
    """What ``stand_ins.py`` says; it needs no OpenPCDet."""
    pytest.importorskip("spconv")
    return results_of([PROGRAMS / "stand_ins.py", tmp_path_factory.mktemp("made_up")])[0][0]


@pytest.fixture(scope="session")
def raw_kitti(real_kitti, tmp_path_factory):
    """All real frames as train and as val split, without infos: folders of links and lists."""
    folder = tmp_path_factory.mktemp("kitti")
    (folder / "training").mkdir()
    (folder / "testing").mkdir()
    for part in (real_kitti / "training").iterdir():
        (folder / "training" / part.name).symlink_to(part, target_is_directory=True)
    lists = folder / "ImageSets"
    lists.mkdir()
    ids = sorted(path.stem for path in (real_kitti / "training" / "velodyne").iterdir())
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("".join(f"{frame}\n" for frame in ids))
    (lists / "test.txt").write_text("")
    return folder


@pytest.fixture(scope="session")
def kitti(raw_kitti, run_program):
    """``raw_kitti`` with infos and the database of objects, made by OpenPCDet's own program."""
    run_program("make_infos.py", raw_kitti)
    return raw_kitti
