import pytest

from cakdp_ext.config import ConfigError, ModelSource, from_node
from cakdp_ext.distillation import DistillConfig, StudentMotivatedKD, build_method, register_method
from cakdp_ext.distillation import methods as methods_module

TEACHER = {"CFG": "cfgs/kitti/voxel_rcnn.yaml", "CKPT": "teacher.pth"}


def read(**changes):
    return from_node(DistillConfig, {"TEACHER": TEACHER, **changes}, "MODEL.DISTILL")


def test_a_teacher_is_all_that_must_be_given():
    config = read()
    assert config.teacher == ModelSource(cfg=TEACHER["CFG"], ckpt="teacher.pth")
    assert config == DistillConfig(config.teacher, "SKD", 1.0, "logits", 0.25, 0.7, 2048, 200)


def test_every_key_is_read():
    config = read(ALPHA=2, SPACE="probability", SCORE_THRESH=0.1, NMS_PRE_MAXSIZE=4096, NMS_POST_MAXSIZE=500)
    assert (config.alpha, config.space, config.score_thresh) == (2, "probability", 0.1)
    assert (config.nms_pre_maxsize, config.nms_post_maxsize) == (4096, 500)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SCORE_THRESHOLD": 0.1}, "unknown key SCORE_THRESHOLD .* SCORE_THRESH, NMS_THRESH"),
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
    ],
)
def test_what_makes_no_sense_is_refused_by_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)


def test_the_method_is_built_by_name():
    method = build_method(read(METHOD="SKD", ALPHA=2.0))
    assert isinstance(method, StudentMotivatedKD)
    assert method.config.alpha == 2.0


def test_an_unknown_method_lists_the_valid_ones():
    with pytest.raises(ConfigError, match="unknown distillation METHOD 'KD'; valid methods: .*SKD, TKD, TSKD"):
        build_method(read(METHOD="KD"))


def test_a_method_can_be_registered_from_outside_but_not_replaced(monkeypatch):
    monkeypatch.setattr(methods_module, "_METHODS", dict(methods_module._METHODS))
    register_method("MINE")(StudentMotivatedKD)
    assert isinstance(build_method(read(METHOD="MINE")), StudentMotivatedKD)
    with pytest.raises(ValueError, match="'SKD' is .* already"):
        register_method("SKD")(lambda config: None)
    assert isinstance(build_method(read()), StudentMotivatedKD)
