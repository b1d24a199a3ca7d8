from pathlib import Path

import pytest

from cakdp_ext.config import ConfigError, ModelSource, load_config
from cakdp_ext.distillation import (
    DistillMethod,
    MethodChoice,
    SkdConfig,
    StudentMotivatedKD,
    find_method,
    read_config,
    register_method,
)
from cakdp_ext.distillation import methods as methods_module

ROOT = Path(__file__).resolve().parents[2]
TEACHER = {"CFG": "cfgs/kitti/voxel_rcnn.yaml", "CKPT": "teacher.pth"}


def read(**changes):
    return read_config({"TEACHER": TEACHER, **changes}, "MODEL.DISTILL")


def test_a_teacher_is_all_that_must_be_given():
    config = read()
    assert config.teacher == ModelSource(cfg=TEACHER["CFG"], ckpt="teacher.pth")
    assert config.methods == (MethodChoice("SKD", 1.0, SkdConfig("logits", 0.25, 0.7, 2048, 200)),)


def test_every_key_is_read():
    (choice,) = read(ALPHA=2, SPACE="probability", SCORE_THRESH=0.1, NMS_PRE_MAXSIZE=4096, NMS_POST_MAXSIZE=500).methods
    assert (choice.weight, choice.options.space, choice.options.score_thresh) == (2, "probability", 0.1)
    assert (choice.options.nms_pre_maxsize, choice.options.nms_post_maxsize) == (4096, 500)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"SCORE_THRESHOLD": 0.1},
            "unknown key SCORE_THRESHOLD .* TEACHER, METHOD, ALPHA, SPACE, SCORE_THRESH, NMS_THRESH",
        ),
        ({"TEMPERATURES": 2.0}, "unknown key TEMPERATURES in MODEL.DISTILL"),
        ({"TEACHER": {**TEACHER, "NAME": "x"}}, "unknown key NAME in TEACHER of MODEL.DISTILL"),
        ({"TEACHER": {"CFG": "a.yaml"}}, "ckpt"),
        ({"TEACHER": {**TEACHER, "CKPT": None}}, "CKPT of TEACHER must be the path of a file, got None"),
        ({"TEACHER": "voxel_rcnn.yaml"}, "TEACHER must be a mapping with CFG and CKPT"),
        ({"SPACE": "softmax"}, "valid spaces: logits, probability"),
        ({"ALPHA": -1.0}, "ALPHA"),
        ({"ALPHA": float("nan")}, "ALPHA"),
        ({"SCORE_THRESH": 1.5}, r"SCORE_THRESH must lie in \[0, 1\], got 1.5"),
        ({"NMS_THRESH": -0.1}, "NMS_THRESH must lie"),
        ({"NMS_POST_MAXSIZE": 0}, "NMS_POST_MAXSIZE must be a whole number"),
        ({"NMS_PRE_MAXSIZE": 10.5}, "NMS_PRE_MAXSIZE must be a whole number"),
        ({"METHOD": "KD"}, "unknown distillation METHOD 'KD'; valid methods: .*SKD, .*TKD, TSKD"),
        ({"METHOD": []}, "must name at least one method"),
        ({"METHOD": ["SKD", {"NAME": "SKD"}]}, "none twice"),
        ({"METHOD": [{"WEIGHT": 1.0}]}, "METHOD of MODEL.DISTILL must be a name, or a list of names"),
        ({"METHOD": ["TKD", {"NAME": "SKD", "WEIGHT": -1}]}, "METHOD SKD of MODEL.DISTILL: WEIGHT must be a finite"),
        (
            {"METHOD": [{"NAME": "SKD", "TEMPERATUR": 2}]},
            "unknown key TEMPERATUR in METHOD SKD of MODEL.DISTILL; valid",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)


def test_several_methods_have_weights_and_keys_of_their_own_and_share_those_beside_them():
    skd, tkd = read(
        ALPHA=0.5, SCORE_THRESH=0.1, METHOD=[{"NAME": "SKD", "WEIGHT": 2, "SPACE": "probability"}, "TKD"]
    ).methods
    assert (skd.weight, skd.options.space, skd.options.score_thresh) == (2, "probability", 0.1)
    assert (tkd.weight, tkd.options.space, tkd.options.score_thresh) == (0.5, "logits", 0.1)


def test_one_word_changes_the_method_of_a_yaml_with_the_keys_of_skd():
    keys = {"ALPHA": 2.0, "SPACE": "logits", "SCORE_THRESH": 0.25, "NMS_PRE_MAXSIZE": 2048}
    (choice,) = read(**keys, METHOD="VanillaKD").methods
    assert (choice.name, choice.weight) == ("VanillaKD", 2.0)
    (choice,) = read(**keys, METHOD="VanillaKD", TEMPERATURE=3).methods
    assert choice.options.temperature == 3


@pytest.mark.parametrize("name", ["SKD", "TSKD", "VanillaKD", "GID", "PointDistiller", "SparseKD"])
def test_one_word_changes_the_method_of_every_shipped_yaml(name):
    files = sorted((ROOT / "cfgs").glob("*/methods/*.yaml"))
    sections = {file: load_config(file).MODEL.get("DISTILL") for file in files}
    assert sum(map(bool, sections.values())) >= 6
    for file, section in sections.items():
        if section:
            (choice,) = read_config({**section, "METHOD": name}, str(file)).methods
            assert choice.name == name


def test_a_method_can_be_registered_from_outside_but_not_replaced(monkeypatch):
    monkeypatch.setattr(methods_module, "_METHODS", dict(methods_module._METHODS))

    class Mine(StudentMotivatedKD):
        pass

    register_method("MINE")(Mine)
    assert find_method("MINE") is Mine
    with pytest.raises(ValueError, match="'SKD' is .* already"):
        register_method("SKD")(Mine)
    with pytest.raises(ValueError, match="'my.kd' has a dot"):
        register_method("my.kd")(Mine)
    with pytest.raises(TypeError, match="subclasses of DistillMethod"):
        register_method("other")(lambda config: None)
    assert find_method("SKD") is StudentMotivatedKD
    assert issubclass(Mine, DistillMethod)
