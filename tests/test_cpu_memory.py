"""Does memory that was freed stay with the process?"""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from cakdp_ext.cpu_memory import keep_freed_memory

FAULTS = """
import resource, sys, torch
from cakdp_ext.cpu_memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else False)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(100):
    if turn == 80:
        before = faults()
    torch.ones(64 * 2**20, dtype=torch.uint8)
print(faults() - before)
"""


def faults_once_settled(mode):
    answer = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True).stdout
    taken, faults = answer.split()
    return taken == "True", int(faults)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another malloc than glibc's")
def test_a_tensor_takes_the_place_of_a_freed_one_without_the_system():
    _, mapped_afresh = faults_once_settled("give back")
    taken, kept = faults_once_settled("keep")
    assert taken
    assert kept < 20 < 20 * 32 <= mapped_afresh  # 20 tensors; the system maps pages of 4 KiB to 2 MiB


def test_no_setting_where_the_library_has_none(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert keep_freed_memory() is False


FREED = """
import torch
from cakdp_ext.cpu_memory import keep_freed_memory
from cakdp_ext.pruning import peak_memory
keep_freed_memory()
kept = torch.ones(64 * 2**20, dtype=torch.uint8)
torch.ones(1024 * 2**20, dtype=torch.uint8)
with peak_memory("cpu") as peak:
    pass
print(peak.num_bytes or 0)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another malloc than glibc's")
def test_what_was_freed_before_is_in_no_peak():
    answer = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True).stdout
    assert int(answer) < 1024 * 2**20
