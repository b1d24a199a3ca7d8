"""Registration happens when OpenPCDet is imported, whoever comes first, and costs nothing where it never is."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from processes import environment_of

PACKAGE = {
    "pcdet/__init__.py": "",
    "pcdet/models/__init__.py": "from . import detectors, dense_heads",
    "pcdet/models/detectors/__init__.py": """
from torch import nn
class SECONDNet(nn.Module): pass
class CenterPoint(nn.Module): pass
__all__ = {"SECONDNet": SECONDNet, "CenterPoint": CenterPoint}
""",
    "pcdet/models/dense_heads/center_head.py": """
from torch import nn
class SeparateHead(nn.Module): pass
class CenterHead(nn.Module): pass
""",
    "pcdet/models/dense_heads/__init__.py": """
from torch import nn
from .center_head import CenterHead
class AnchorHeadSingle(nn.Module): pass
__all__ = {"AnchorHeadSingle": AnchorHeadSingle, "CenterHead": CenterHead}
""",
}
"""As much of OpenPCDet as registration needs."""

KNOWN = """
import sys
from pcdet.models import dense_heads, detectors
assert detectors.__all__["SECONDNetCaKDP"].__module__ == "cakdp_ext.openpcdet.detectors"
assert dense_heads.__all__["AnchorHeadSingleIoU"].__module__ == "cakdp_ext.openpcdet.heads"
"""


@pytest.fixture
def python(tmp_path):
    """``python(code, files)``: run code where a ``pcdet`` of these files, over the stand-in's, can be imported."""
    pytest.importorskip("spconv")

    def run(code, files=None, package=PACKAGE):
        for name, text in {**package, **(files or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return subprocess.run(
            [sys.executable, "-c", code], env=environment_of(tmp_path), cwd=tmp_path, capture_output=True, text=True
        )

    return run


def assert_fine(done):
    assert done.returncode == 0, done.stderr[-3000:]


def test_names_are_there_when_we_are_imported_before_openpcdet(python):
    code = """
import sys, cakdp_ext
assert not {"torch", "numpy", "pcdet"} & set(sys.modules), "importing cakdp_ext imports more than itself"
import pcdet
assert "torch" not in sys.modules
import pcdet.models.dense_heads
"""
    assert_fine(python(code + KNOWN))


def test_names_are_there_when_we_are_imported_after_openpcdet(python):
    assert_fine(python("import pcdet.models, cakdp_ext" + KNOWN))


def test_importing_and_registering_again_changes_nothing(python):
    code = """
import importlib, sys, cakdp_ext, cakdp_ext.openpcdet
importlib.reload(cakdp_ext)
assert sum(type(finder).__name__ == "AfterImport" for finder in sys.meta_path) == 1
import pcdet.models
before = dict(pcdet.models.detectors.__all__), dict(pcdet.models.dense_heads.__all__)
cakdp_ext.openpcdet.register()
importlib.reload(cakdp_ext)
importlib.reload(pcdet.models)
assert before == (pcdet.models.detectors.__all__, pcdet.models.dense_heads.__all__)
"""
    assert_fine(python(code + KNOWN))


@pytest.mark.parametrize("order", ["import cakdp_ext, pcdet.models", "import pcdet.models, cakdp_ext"])
def test_a_name_that_somebody_else_has_is_an_error_and_nothing_is_entered(python, order):
    taken = PACKAGE["pcdet/models/dense_heads/__init__.py"] + '__all__["AnchorHeadSingleIoU"] = AnchorHeadSingle\n'
    code = f"""
try:
    {order}
except ValueError as error:
    print(error)
from sys import modules
assert list(modules["pcdet.models.detectors"].__all__) == ["SECONDNet", "CenterPoint"]
heads = modules["pcdet.models.dense_heads"]
assert heads.__all__["AnchorHeadSingleIoU"] is heads.AnchorHeadSingle
"""
    done = python(code, {"pcdet/models/dense_heads/__init__.py": taken})
    assert_fine(done)
    assert "knows 'AnchorHeadSingleIoU' already, as pcdet.models.dense_heads.AnchorHeadSingle; rename" in done.stdout


@pytest.mark.skipif(find_spec("pcdet") is not None, reason="OpenPCDet is installed here")
def test_without_openpcdet_nothing_is_imported_and_nothing_is_in_the_way(python):
    code = """
import sys
before = set(sys.modules)
import cakdp_ext
added = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert added == {"cakdp_ext"}, added
for name in ("pcdet", "pcdet.models"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        assert error.name == "pcdet"
import importlib.util
assert importlib.util.find_spec("pcdet") is None
import cakdp_ext.openpcdet
try:
    cakdp_ext.openpcdet.register()
except ImportError as error:
    print(error)
"""
    done = python(code, package={})
    assert_fine(done)
    assert "No module named 'pcdet'" in done.stdout


def test_an_import_that_fails_says_why_and_may_be_tried_again(python):
    first = (
        'import sys\nif not hasattr(sys, "second"):\n    raise OSError("no driver")\n'
        + PACKAGE["pcdet/models/__init__.py"]
    )
    code = """
import sys, cakdp_ext
try:
    import pcdet.models
except OSError as error:
    assert str(error) == "no driver"
assert "torch" not in sys.modules
sys.second = True
"""
    assert_fine(python(code + KNOWN, {"pcdet/models/__init__.py": first}))


def test_a_fork_may_import_us_in_its_own_package(python):
    for name in ("pcdet/__init__.py", "pcdet/models/__init__.py"):
        assert_fine(python("import pcdet.models" + KNOWN, {name: "import cakdp_ext\n" + PACKAGE[name]}))
