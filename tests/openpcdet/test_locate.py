"""Where OpenPCDet is, without importing it."""

from __future__ import annotations

import sys

import pytest
from stand_in import make_checkout

from cakdp_ext.config import ConfigError
from cakdp_ext.engine.choice import engine_name
from cakdp_ext.openpcdet.locate import make_importable, openpcdet_available, openpcdet_root, root_if_any


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A place where nothing says where OpenPCDet is."""
    monkeypatch.delenv("OPENPCDET_ROOT", raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "pcd" not in entry.lower()])
    monkeypatch.delitem(sys.modules, "pcdet", raising=False)
    return tmp_path


def test_flag_comes_before_variable_and_variable_before_the_installed_package(somewhere, monkeypatch):
    by_flag, by_variable, installed = (make_checkout(somewhere / name) for name in ("flag", "variable", "installed"))
    monkeypatch.syspath_prepend(installed)
    assert openpcdet_root() == installed
    monkeypatch.setenv("OPENPCDET_ROOT", str(by_variable))
    assert openpcdet_root() == by_variable
    assert openpcdet_root(by_flag) == by_flag
    assert "pcdet" not in sys.modules


def test_nowhere_is_an_error_that_names_every_way(somewhere):
    with pytest.raises(ConfigError, match=r"--openpcdet_root or OPENPCDET_ROOT, or install.*CAKDP_ENGINE=builtin"):
        openpcdet_root()
    assert root_if_any() is None
    assert not openpcdet_available()


def test_what_is_named_must_be_a_checkout(somewhere, monkeypatch):
    (make_checkout(somewhere / "half") / "tools" / "test.py").unlink()
    with pytest.raises(ConfigError, match=r"--openpcdet_root .*half is no checkout of OpenPCDet: .*test.py is missing"):
        openpcdet_root(somewhere / "half")
    with pytest.raises(ConfigError, match="half"):
        root_if_any(str(somewhere / "half"))
    monkeypatch.setenv("OPENPCDET_ROOT", str(somewhere / "gone"))
    assert not openpcdet_available()
    with pytest.raises(ConfigError, match=r"OPENPCDET_ROOT .*gone is no checkout"):
        openpcdet_root()


def test_a_package_without_scripts_asks_for_a_checkout(somewhere, monkeypatch):
    checkout = make_checkout(somewhere / "site")
    (checkout / "tools" / "train.py").unlink()
    monkeypatch.syspath_prepend(checkout)
    assert openpcdet_available()
    with pytest.raises(ConfigError, match="pcdet is installed in .*site.*name a checkout of the same version"):
        openpcdet_root()


def test_a_checkout_becomes_importable_unless_a_package_is_installed(somewhere, monkeypatch, caplog):
    one, other = make_checkout(somewhere / "one"), make_checkout(somewhere / "other")
    make_importable(one)
    assert sys.path[-1] == str(one)
    make_importable(one)
    assert sys.path.count(str(one)) == 1
    assert not caplog.records
    make_importable(other)
    assert str(other) not in sys.path
    assert "run with the package pcdet that is installed in" in caplog.text


def test_engine_is_openpcdet_where_there_is_one_and_what_is_asked_for_otherwise(somewhere, monkeypatch):
    monkeypatch.delenv("CAKDP_ENGINE")
    assert engine_name() == "builtin"
    monkeypatch.setenv("OPENPCDET_ROOT", str(somewhere / "a slip of the pen"))
    assert engine_name() == "openpcdet"
    monkeypatch.setenv("OPENPCDET_ROOT", "")
    monkeypatch.syspath_prepend(make_checkout(somewhere / "installed"))
    assert engine_name() == "openpcdet"
    monkeypatch.setenv("CAKDP_ENGINE", "builtin")
    assert engine_name() == "builtin"
    monkeypatch.setenv("CAKDP_ENGINE", "pcdet")
    with pytest.raises(ConfigError, match="CAKDP_ENGINE is 'pcdet'; it must be builtin or openpcdet"):
        engine_name()
