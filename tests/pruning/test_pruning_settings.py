"""What MODEL.PRUNING asks for: budgets with units, and where a plan differs from what is asked for now."""

from __future__ import annotations

import pytest

from cakdp_ext.config import ConfigError, ModelSource, from_node
from cakdp_ext.pruning import Budget, PruningConfig, first_difference, read_amount

STUDENT = {"CFG": "a.yaml", "CKPT": "a.pth"}


def config(**keys):
    return from_node(PruningConfig, {"STUDENT": STUDENT, **keys}, "MODEL.PRUNING")


@pytest.mark.parametrize(
    ("kind", "amount", "value"),
    [
        ("params", "1.5M", 1.5e6),
        ("params", 1502728, 1502728),
        ("params", "1e6", 1e6),
        ("params", "800k", 8e5),
        ("macs", "30G", 3e10),
        ("macs", "2.5 b", 2.5e9),
        ("latency", "20ms", 20),
        ("latency", 20, 20),
        ("latency", "0.02s", 20),
    ],
)
def test_amounts_are_read_with_their_units(kind, amount, value):
    assert read_amount(kind, amount) == pytest.approx(value)
    assert config(**{kind.upper(): amount}).budget == Budget(kind, read_amount(kind, amount))


@pytest.mark.parametrize(
    ("kind", "amount"),
    [("params", "1.5X"), ("params", 0), ("params", "-1M"), ("macs", "20ms"), ("latency", "20G"), ("latency", "fast"),
     ("macs", True), ("macs", "nan"), ("macs", "1.2.3G"), ("params", "1e999"), ("macs", "")],
)  # fmt: skip
def test_what_is_no_amount_is_refused(kind, amount):
    example = "20ms or 0.02s" if kind == "latency" else "1.5M or 30G"
    with pytest.raises(ConfigError, match=f"{kind.upper()} must be a number above 0, like {example}, got"):
        config(**{kind.upper(): amount})


def test_one_budget_is_given_and_no_more():
    assert config(KEEP_RATIO="5e-1").budget == Budget("keep_ratio", 0.5)
    assert config(KEEP_RATIO=None, MACS="30G").budget == Budget("macs", 3e10)
    with pytest.raises(ConfigError, match="one of KEEP_RATIO, PARAMS, MACS, LATENCY must say how large"):
        config()
    with pytest.raises(ConfigError, match="KEEP_RATIO 0.5 and MACS 30G contradict each other: give one of KEEP_RATIO"):
        config(KEEP_RATIO=0.5, MACS="30G")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ROUND_TO", 0, "ROUND_TO must be a whole number of at least 1, got 0"),
        ("ROUND_TO", 8.0, "ROUND_TO must be a whole number of at least 1, got 8.0"),
        ("PROTECT", [1], r"PROTECT must be a list of layer names or patterns, got \[1\]"),
    ],
)
def test_rules_that_make_no_sense_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        config(KEEP_RATIO=0.5, **{key: value})


def test_protected_layers_may_be_one_name_or_many():
    assert config(KEEP_RATIO=0.5, PROTECT="conv_out").protect == ("conv_out",)
    assert config(KEEP_RATIO=0.5, PROTECT=["a", "b*"]).rules.protect == ("a", "b*")


OLD = {"criterion": "CaPr", "keep_ratio": 0.5, "min_filters": 4, "removal": "channel", "split": "held_out"}


@pytest.mark.parametrize(
    ("source", "keys", "difference"),
    [
        (OLD, {"KEEP_RATIO": 0.5, "MIN_FILTERS": 4}, None),
        (OLD, {"KEEP_RATIO": 0.3, "MIN_FILTERS": 4}, ("KEEP_RATIO 0.5", "0.3")),
        (OLD, {"MACS": "30G", "MIN_FILTERS": 4}, ("KEEP_RATIO 0.5", "MACS 30G")),
        (OLD, {"KEEP_RATIO": 0.5, "MIN_FILTERS": 5}, ("MIN_FILTERS 4", "5")),
        (OLD, {"KEEP_RATIO": 0.5, "MIN_FILTERS": 4, "ROUND_TO": 8}, ("ROUND_TO 1", "8")),
        (OLD, {"KEEP_RATIO": 0.5, "MIN_FILTERS": 4, "PROTECT": ["a"]}, ("PROTECT []", "['a']")),
        (OLD, {"KEEP_RATIO": 0.5, "MIN_FILTERS": 4, "REMOVAL": "zero_weight"}, ("REMOVAL channel", "zero_weight")),
        (OLD, {"KEEP_RATIO": 0.5, "MIN_FILTERS": 4, "SPLIT": "val", "SCORES": "table.txt"}, None),
        ({"params": 1.5e6, "criterion": "CaPr"}, {"PARAMS": 1500000}, None),
        ({"latency": 20.0}, {"LATENCY": "25ms"}, ("LATENCY 20ms", "25ms")),
        ({"protect": ["a"], "keep_ratio": 0.5}, {"KEEP_RATIO": 0.5, "PROTECT": ["a"]}, None),
        ({"split": "val"}, {"KEEP_RATIO": 0.5, "ROUND_TO": 8}, ("SPLIT val", "held_out")),
        ({"made": "by hand"}, {"KEEP_RATIO": 0.5, "ROUND_TO": 8}, None),
    ],
)
def test_where_a_plan_differs_from_what_is_asked_for(source, keys, difference):
    assert first_difference(source, config(**keys)) == difference


def test_a_config_says_what_it_asks_for():
    asked = PruningConfig(ModelSource("a", "b"), macs="30G", round_to=8, protect=("x",)).asked()
    assert asked == {"criterion": "CaPr", "macs": 3e10, "min_filters": 0, "round_to": 8, "protect": ["x"]}
