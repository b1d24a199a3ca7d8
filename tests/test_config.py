"""YAML with nested bases, overrides, and errors that name key and file."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cakdp_ext.config import ConfigError, ModelSource, from_node, load_config, merge


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Section:
    ratio: float
    names: tuple[str, ...] = ()
    inner: Inner = Inner()
    source: ModelSource | None = None

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ValueError(f"RATIO must lie in (0, 1], got {self.ratio}")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_bases_nest_and_are_found_beside_the_file_that_names_them(tmp_path, monkeypatch):
    write(tmp_path / "a/root.yaml", "X: {P: 1, Q: [1, 2], R: 3}\nY: old\n")
    write(tmp_path / "a/b/mid.yaml", "_BASE_CONFIG_: ../root.yaml\nX: {Q: [9]}\n")
    write(tmp_path / "a/b/data.yaml", "PATH: here\n")
    leaf = write(
        tmp_path / "a/b/c/leaf.yaml", "_BASE_CONFIG_: ../mid.yaml\nX: {P: 5}\nD: {_BASE_CONFIG_: ../data.yaml, N: 1}\n"
    )
    monkeypatch.chdir("/")
    config = load_config(leaf)
    assert config.X == {"P": 5, "Q": [9], "R": 3}
    assert config.Y == "old"
    assert config.D == {"PATH": "here", "N": 1}


def test_base_relative_to_working_directory_as_openpcdet_writes_it(tmp_path, monkeypatch):
    write(tmp_path / "cfgs/dataset_configs/k.yaml", "RANGE: [0, 1]\n")
    leaf = write(tmp_path / "cfgs/kitti_models/m.yaml", "D: {_BASE_CONFIG_: cfgs/dataset_configs/k.yaml}\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(leaf).D.RANGE == [0, 1]
    monkeypatch.chdir("/")
    assert load_config(leaf).D.RANGE == [0, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"m.yaml": "_BASE_CONFIG_: gone.yaml\n"}, "gone.yaml"),
        ({"m.yaml": "_BASE_CONFIG_: n.yaml\n", "n.yaml": "_BASE_CONFIG_: m.yaml\n"}, "circle"),
        ({"m.yaml": "A: [1\n"}, "not valid YAML"),
        ({"m.yaml": "- 1\n"}, "mapping"),
    ],
)
def test_bad_files_are_named(tmp_path, files, message):
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "m.yaml")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file at .*nothing.yaml"):
        load_config(tmp_path / "nothing.yaml")


def test_overrides_keep_types_and_take_an_int_for_a_float(tmp_path):
    path = write(tmp_path / "m.yaml", "A: {LR: 0.1, N: 3, S: text, L: [1, 2], F: false, Z: null}\n")
    words = "A.LR 1 A.N 4 A.S other A.L [3] A.F true A.Z x".split()
    assert load_config(path, words).A == {"LR": 1.0, "N": 4, "S": "other", "L": [3], "F": True, "Z": "x"}
    assert isinstance(load_config(path, words).A.LR, float)
    assert load_config(path, ["A.LR", "1e-3"]).A.LR == 0.001
    assert load_config(path, ["A.L", "4,5"]).A.L == [4, 5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["A.GONE", "1"], "keys there: LR, N"),
        (["B.LR", "1"], "no key 'B' under the top level"),
        (["A.LR.X", "1"], "none, it is a value"),
        (["A.N", "1.5"], "expected int"),
        (["A.N", "text"], "expected int"),
        (["A.N"], "KEY VALUE"),
    ],
)
def test_bad_overrides_are_explained(tmp_path, words, message):
    path = write(tmp_path / "m.yaml", "A: {LR: 0.1, N: 3}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(path, words)


def test_merge_leaves_its_arguments_alone():
    base, over = {"a": {"b": 1, "l": [1]}}, {"a": {"l": [2]}}
    assert merge(base, over) == {"a": {"b": 1, "l": [2]}}
    assert base == {"a": {"b": 1, "l": [1]}}


def test_section_becomes_a_frozen_dataclass():
    node = {"RATIO": 0.5, "NAMES": ["a"], "INNER": {"DEPTH": 2}, "SOURCE": {"CFG": "c", "CKPT": "k"}}
    section = from_node(Section, node, "HERE")
    assert section == Section(0.5, ("a",), Inner(2), ModelSource("c", "k"))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"RATIO": 0.5, "RATOI": 1}, "unknown key RATOI in HERE; valid keys: RATIO, NAMES"),
        ({"RATIO": 0.5, "INNER": {"WIDTH": 1}}, "unknown key WIDTH in INNER of HERE"),
        ({}, "HERE: .*ratio"),
        ({"RATIO": 3}, "RATIO must lie in"),
        (None, "ratio"),
    ],
)
def test_bad_sections_name_key_and_place(node, message):
    with pytest.raises(ConfigError, match=message):
        from_node(Section, node, "HERE")
