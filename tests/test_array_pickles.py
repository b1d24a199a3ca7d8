"""Pickles are read without running what they ask for, and written for every NumPy."""

from __future__ import annotations

import os
import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest

from cakdp_ext.pickles import RefusedPickleError, dump_arrays, load_arrays

VALUE = [
    {
        "name": np.array(["Car", "Van"]),
        "boxes": np.arange(14, dtype=np.float64).reshape(2, 7),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "none": np.zeros((0, 4), dtype=np.int32),
        "index": 3,
        "score": -1.0,
        "ids": ("000001", {1, 2}, None, True),
    }
]


def assert_same(got, expected):
    for key, value in expected[0].items():
        if isinstance(value, np.ndarray):
            assert got[0][key].dtype == value.dtype
            np.testing.assert_array_equal(got[0][key], value)
        else:
            assert got[0][key] == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_numpy_pickles_is_read(tmp_path, protocol):
    path = tmp_path / "value.pkl"
    path.write_bytes(pickle.dumps([{**VALUE[0], "scalar": np.float64(2.5), np.str_("text"): np.int32(7)}], protocol))
    assert_same(load_arrays(path), [{**VALUE[0], "scalar": 2.5, "text": 7}])


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_files_of_numpy_1_and_2_are_read(tmp_path, module):
    text = pickle.dumps(np.arange(3, dtype=np.int32), protocol=0)
    text = text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path = tmp_path / "value.pkl"
    path.write_bytes(text.replace(b"numpy.core.multiarray", module.encode()))
    np.testing.assert_array_equal(load_arrays(path), [0, 1, 2])


def test_what_is_written_names_no_module_that_moves_between_versions(tmp_path):
    path = tmp_path / "value.pkl"
    dump_arrays(VALUE, path)
    text = path.read_bytes()
    strings = {arg for _, arg, _ in pickletools.genops(text) if isinstance(arg, str)}
    assert {name for name in strings if name.startswith("numpy")} == {"numpy"}
    assert_same(load_arrays(path), VALUE)
    assert_same(pickle.loads(text), VALUE)
    assert pickle.loads(text)[0]["boxes"].flags.writeable


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_code_in_a_pickle_does_not_run_and_is_named(tmp_path):
    path, target = tmp_path / "value.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps([np.zeros(2), Attack(target)]))
    with pytest.raises(RefusedPickleError, match=r"value\.pkl asks for (posix|nt)\.system"):
        load_arrays(path)
    assert not target.exists()


@pytest.mark.parametrize("value", [OrderedDict(a=1), np.random.default_rng(0), print, os.path.join])
def test_anything_but_arrays_and_plain_containers_is_refused(tmp_path, value):
    path = tmp_path / "value.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(RefusedPickleError):
        load_arrays(path)


@pytest.mark.parametrize("keep", [0, 1, 50, 200])
def test_a_truncated_pickle_is_named(tmp_path, keep):
    path = tmp_path / "value.pkl"
    path.write_bytes(pickle.dumps(VALUE)[:keep])
    with pytest.raises(ValueError, match=r"value\.pkl is damaged"):
        load_arrays(path)


def test_text_is_no_pickle(tmp_path):
    path = tmp_path / "value.pkl"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"value\.pkl is damaged or no pickle"):
        load_arrays(path)
