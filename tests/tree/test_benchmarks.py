"""The benchmarks answer, and that of the ops measures every row; how fast anything is, no test asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted(
    p.name for p in (ROOT / "benchmarks").iterdir() if p.suffix == ".py" or (p / "__main__.py").exists()
)


def benchmark(name, *arguments):
    command = [sys.executable, ROOT / "benchmarks" / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_answers_help(name):
    done = benchmark(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


def test_every_row_of_the_ops_is_measured():
    done = benchmark("ops", "--quick", "--device", "cpu", "--threads", "1", "--markdown")
    assert done.returncode == 0, done.stderr
    assert "fails" not in done.stdout, done.stderr
    assert "measured: copy" in done.stdout
    head, rule, *rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    assert {len(cells) for cells in (head, rule, *rows)} == {11}
    assert f"[{len(rows)}/{len(rows)}]" in done.stderr
    for cells in rows:
        cell = dict(zip((name.strip() for name in head), (text.strip() for text in cells), strict=True))
        assert float(cell["reference ms"]) > 0
        assert float(cell["bound ms"]) >= 0


def test_rows_of_the_ops_are_chosen_by_name():
    done = benchmark("ops", "--quick", "--device", "cpu", "--only", "nms, axis")
    assert done.returncode == 0, done.stderr
    assert "nms, axis-aligned" in done.stdout
    assert "iou_3d" not in done.stdout
    refused = benchmark("ops", "--only", "nothing")
    assert refused.returncode == 2
    assert "no row has it in its name" in refused.stderr
