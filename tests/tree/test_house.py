"""The tree keeps its own rules: who may import whom, quiet imports, tools that answer."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYER = {
    "types": 0, "config": 0, "files": 0, "pickles": 0, "center_maps": 0, "voxel_rows": 0, "voxel_norm": 0,
    "cpu_memory": 0, "held_out": 1, "waymo_layout": 1, "checkpoint": 1, "own_modules": 1, "spconv_on_cpu": 1, "ops": 1,
    "taps": 1, "contract": 1, "looking": 1,
    "distillation": 2, "pruning": 2, "refinement": 2,
    "detectors": 3, "datasets": 3, "evaluation": 3, "openpcdet": 3, "engine": 4,
}  # fmt: skip


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cakdp_ext":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("cakdp_ext."))


@pytest.mark.parametrize(
    "part", sorted(p.name for p in (ROOT / "cakdp_ext").iterdir() if p.is_dir() and p.name in LAYER)
)
def test_imports_point_down_the_house(part):
    for path in (ROOT / "cakdp_ext" / part).rglob("*.py"):
        for other in imported_parts(path):
            if other in LAYER and other != part:
                assert LAYER[other] < LAYER[part], f"{path.relative_to(ROOT)} imports {other}"


def test_only_the_plugin_imports_openpcdet():
    for path in (ROOT / "cakdp_ext").rglob("*.py"):
        if "openpcdet" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
            names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
            assert not [n for n in names if n.split(".")[0] == "pcdet"], path


def python(code):
    environment = {name: value for name, value in os.environ.items() if name != "CAKDP_OPENPCDET_CPU"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)


def test_importing_the_package_loads_no_torch():
    done = python("import sys, cakdp_ext; assert 'torch' not in sys.modules; print(cakdp_ext.__version__)")
    assert done.returncode == 0, done.stderr


IMPORT_ALL = """
import importlib, pkgutil, sys, spconv.pytorch, torch

def start():
    raise RuntimeError("CUDA was started")

torch.cuda.is_available, torch.cuda.device_count, torch.cuda._lazy_init = lambda: True, lambda: 1, start
import cakdp_ext

for module in pkgutil.walk_packages(cakdp_ext.__path__, "cakdp_ext."):
    try:
        module.name.endswith("__main__") or importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name != "pcdet":
            raise
print("imported", *sorted(name for name in sys.modules if name.startswith("cakdp_ext.")))
"""


def test_importing_every_module_starts_no_cuda_where_there_is_a_device():
    done = python(IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert {"cakdp_ext.types", "cakdp_ext.engine.compress"} <= set(done.stdout.split())
    control = python(IMPORT_ALL + "torch.cuda.init()")
    assert "CUDA was started" in control.stderr


TOOLS = sorted(p.name for p in (ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_answers_help(tool):
    done = subprocess.run([sys.executable, ROOT / "tools" / tool, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


@pytest.mark.parametrize("tool", [name for name in TOOLS if name != "waymo_from_records.py"])  # which reads no YAML
def test_every_tool_names_a_missing_yaml_in_one_line(tool, tmp_path):
    command = [sys.executable, ROOT / "tools" / tool, "--cfg", "cfgs/nothing.yaml"]
    command += ["--out", str(tmp_path)] if tool == "make_scenes.py" else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "cfgs/nothing.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_tool_hides_the_standard_librarys_profile():
    """A script has its own folder in front of the standard library, and torch imports cProfile."""
    done = python(f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import cProfile; cProfile.run('1 + 1')")
    assert done.returncode == 0, done.stderr
    assert "function calls" in done.stdout


@pytest.mark.parametrize(
    "script", ["dist_train.sh", "dist_test.sh", "dist_compress.sh", "dist_compare.sh", "dist_score_filters.sh"]
)
def test_shell_scripts_explain_themselves(script):
    done = subprocess.run(["bash", ROOT / "tools" / script], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"usage: bash tools/{script} NUM_GPUS" in done.stderr
