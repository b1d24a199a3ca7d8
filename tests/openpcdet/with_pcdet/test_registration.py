"""Our names in OpenPCDet's registries."""

from __future__ import annotations

import sys

import pytest
import torch
from pcdet.models import dense_heads, detectors

import cakdp_ext.openpcdet
from cakdp_ext.openpcdet.hook import WATCHED, AfterImport, install

OURS = ((detectors.__all__, "SECONDNetCaKDP"), (dense_heads.__all__, "AnchorHeadSingleIoU"))


def test_importing_both_has_entered_our_names():
    for registry, name in OURS:
        assert registry[name].__name__ == name
        assert registry[name].__module__.startswith("cakdp_ext.openpcdet.")


def test_registering_again_changes_nothing():
    before = [dict(registry) for registry, _ in OURS]
    cakdp_ext.openpcdet.register()
    cakdp_ext.openpcdet.register()
    assert [dict(registry) for registry, _ in OURS] == before


def test_a_name_that_is_somebody_elses_is_an_error_and_nothing_is_entered(monkeypatch):
    class Other(torch.nn.Module):
        pass

    (registry, ours), (second, theirs) = OURS
    monkeypatch.delitem(registry, ours)
    monkeypatch.setitem(second, theirs, Other)
    with pytest.raises(ValueError, match=rf"knows '{theirs}' already, as .*Other; rename that one"):
        cakdp_ext.openpcdet.register()
    assert ours not in registry
    assert second[theirs] is Other


def test_nobody_elses_entry_is_touched():
    names = {"SECONDNet", "VoxelRCNN", "CenterPoint", "Detector3DTemplate"}
    assert names <= set(detectors.__all__)
    assert not any(detectors.__all__[name].__module__.startswith("cakdp_ext") for name in names)


def test_the_import_leaves_no_trace_in_the_module():
    module = sys.modules[WATCHED]
    assert not type(module.__spec__.loader).__module__.startswith("cakdp_ext")
    assert module.__loader__ is module.__spec__.loader
    assert sum(isinstance(finder, AfterImport) for finder in sys.meta_path) == 1


def test_where_openpcdet_is_imported_already_names_are_entered_at_once():
    calls = []
    install(lambda: calls.append("now"))
    assert calls == ["now"]
    assert sum(isinstance(finder, AfterImport) for finder in sys.meta_path) == 1
