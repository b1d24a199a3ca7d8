import math

import numpy as np
import pytest
from waymo_reference import slow_metrics

from cakdp_ext.evaluation import evaluate_waymo
from cakdp_ext.evaluation.waymo_measure import area_under_curve

CLASSES = ["Vehicle", "Pedestrian", "Cyclist"]
SIZES = {"Vehicle": (4.7, 2.1, 1.7), "Pedestrian": (0.9, 0.8, 1.7), "Cyclist": (1.8, 0.8, 1.8), "Sign": (0.1, 0.5, 0.5)}


def thing(name="Vehicle", place=0.0, heading=0.0, shift=0.0):
    """A box; ``shift`` moves it along its length."""
    return name, (20.0 * place + shift * math.cos(heading), shift * math.sin(heading), 1.0, *SIZES[name], heading)


def truth(*things, points=100, difficulty=0):
    names, boxes = zip(*things, strict=True) if things else ((), ())
    every = np.ones(len(names))
    return {
        "name": np.array(names, dtype=str),
        "gt_boxes_lidar": np.array(boxes, dtype=float).reshape(-1, 7),
        "num_points_in_gt": np.array(points * every, dtype=int),
        "difficulty": np.array(difficulty * every, dtype=int),
    }


def found(*things, scores=()):
    names, boxes = zip(*things, strict=True) if things else ((), ())
    boxes = np.array(boxes, dtype=float).reshape(-1, 7)
    return {"name": np.array(names, dtype=str), "boxes_lidar": boxes, "score": np.array(scores, dtype=float)}


def metrics(truths, finds, names=("Vehicle",)):
    return evaluate_waymo(truths, finds, names).metrics


def vehicle(level, kind="AP"):
    return f"OBJECT_TYPE_TYPE_VEHICLE_LEVEL_{level}/{kind}"


def test_what_is_found_exactly_gives_100():
    frames = [(name, place) for place, name in enumerate(CLASSES)]
    things = [thing(name, place, heading=1.0) for name, place in frames]
    result = metrics([truth(*things)], [found(*things, scores=(0.9, 0.5, 1.0))], CLASSES)
    assert list(result.values()) == [pytest.approx(100.0)] * len(result)
    assert len(result) == 3 * 4 + 4


def test_a_wrong_detection_below_the_right_one_costs_nothing_and_one_above_does():
    truths = [truth(thing(place=0))]
    for wrong, expected in ((0.3, 100.0), (0.9, 50.0)):
        finds = [found(thing(place=0), thing(place=3), scores=(0.6, wrong))]
        assert metrics(truths, finds)[vehicle(2)] == pytest.approx(expected)


def test_two_of_four_found_gives_half():
    truths = [truth(*(thing(place=k) for k in range(4)))]
    finds = [found(thing(place=0), thing(place=1), scores=(0.9, 0.4))]
    assert metrics(truths, finds)[vehicle(2)] == pytest.approx(50.0)


@pytest.mark.parametrize(("turn", "weight"), [(0.0, 1.0), (math.pi / 2, 0.5), (math.pi, 0.0), (-math.pi / 4, 0.75)])
def test_heading_weighs_aph_only(turn, weight):
    name, box = thing("Pedestrian")
    square = (*box[:3], 0.8, 0.8, 1.7)
    finds = [found((name, (*square, turn)), scores=(0.7,))]
    result = metrics([truth((name, (*square, 0.0)))], finds, ["Pedestrian"])
    key = "OBJECT_TYPE_TYPE_PEDESTRIAN_LEVEL_1"
    assert result[f"{key}/AP"] == pytest.approx(100.0)
    assert result[f"{key}/APH"] == pytest.approx(100.0 * weight, abs=1e-6)


def test_headings_a_full_turn_apart_agree():
    finds = [found(thing(heading=3.1 - 2 * math.pi), scores=(0.7,))]
    assert metrics([truth(thing(heading=3.1))], finds)[vehicle(1, "APH")] == pytest.approx(100.0)


@pytest.mark.parametrize(("points", "difficulty", "level"), [(6, 0, 1), (5, 0, 2), (100, 2, 2), (1, 1, 1)])
def test_level_of_a_ground_truth(points, difficulty, level):
    easy, judged = truth(thing(place=0)), truth(thing(place=1), points=points, difficulty=difficulty)
    finds = [found(thing(place=0), scores=(0.9,)), found()]
    result = metrics([easy, judged], finds)
    assert result[vehicle(1)] == pytest.approx(50.0 if level == 1 else 100.0)
    assert result[vehicle(2)] == pytest.approx(50.0)


def test_a_found_ground_truth_of_level_2_is_right_at_level_1_too():
    truths = [truth(thing(place=0)), truth(thing(place=1), difficulty=2)]
    finds = [found(), found(thing(place=1), scores=(0.9,))]
    assert metrics(truths, finds)[vehicle(1)] == pytest.approx(50.0)  # 1 right, 1 of level 1 missed


def test_an_object_without_points_is_left_out():
    truths = [truth(thing(place=0)), truth(thing(place=1), points=0)]
    finds = [found(thing(place=0), scores=(0.9,)), found(thing(place=1), scores=(0.95,))]
    result = metrics(truths, finds)
    assert result[vehicle(2)] == pytest.approx(50.0)  # complete, and the other detection is wrong


@pytest.mark.parametrize(("name", "shift", "matched"), [
    ("Vehicle", 0.8, True), ("Vehicle", 0.85, False), ("Cyclist", 0.55, True), ("Cyclist", 0.65, False),
])  # fmt: skip
def test_least_overlap_of_a_class(name, shift, matched):
    result = metrics([truth(thing(name))], [found(thing(name, shift=shift), scores=(0.5,))], [name])
    assert result[f"OBJECT_TYPE_TYPE_{name.upper()}_LEVEL_1/AP"] == pytest.approx(100.0 * matched)


def test_sum_of_overlaps_decides_and_not_the_score():
    """The better-scored detection overlaps both ground truths, the other one only the one that it likes best."""
    first, second = thing("Pedestrian", shift=0.0), thing("Pedestrian", shift=0.2)
    finds = [found(thing("Pedestrian", shift=0.18), thing("Pedestrian", shift=0.42), scores=(0.9, 0.5))]
    result = metrics([truth(first, second)], finds, ["Pedestrian"])
    assert result["OBJECT_TYPE_TYPE_PEDESTRIAN_LEVEL_1/AP"] == pytest.approx(100.0)


def test_classes_do_not_meet():
    result = metrics([truth(thing("Vehicle"))], [found(("Cyclist", thing("Vehicle")[1]), scores=(0.9,))], CLASSES)
    assert set(result.values()) == {0.0}


def test_a_score_on_a_cutoff_reaches_it():
    """0.29 is below the 29th double of its kind and not below the 29th float."""
    truths, finds = [truth(thing(place=0))], [found(thing(place=0), thing(place=1), scores=(0.29, 0.2899))]
    assert metrics(truths, finds)[vehicle(1)] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("recalls", "precisions", "expected"),
    [
        ([1.0, 0.5], [0.5, 0.5], 0.5),
        ([0.04, 0.02], [0.5, 1.0], 0.02 * 1.0 + 0.02 * 0.75),
        ([1.0, 0.5], [0.2, 0.8], 0.45 * 0.2 + 0.05 * 0.5 + 0.5 * 0.8),
        ([0.6, 0.5], [0.2, 0.8], 0.05 * 0.2 + 0.05 * 0.5 + 0.5 * 0.8),
        ([0.5, 0.5, 0.0], [0.2, 0.8, 1.0], 0.4),
        ([0.0, 0.0], [1.0, 1.0], 0.0),
    ],
)
def test_area_under_a_curve(recalls, precisions, expected):
    assert area_under_curve(np.array(precisions), np.array(recalls)) == pytest.approx(expected)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nothing_at_all_is_zero(count):
    result = evaluate_waymo([truth()] * count, [found()] * count, CLASSES)
    assert set(result.metrics.values()) == {0.0}
    assert "there are no detections" in result.text


def random_frame(rng, crowd):
    """Ground truths, and detections around them and elsewhere; in a crowd they overlap each other."""
    things = []
    for _ in range(rng.integers(0, 7)):
        name = str(rng.choice(CLASSES))
        x, y = rng.normal(0, 1.0 if crowd else 30.0, 2)
        things.append((name, (x, y, 1 + rng.normal(0, 0.1), *SIZES[name], rng.uniform(-7, 7))))
    frame = truth(*things)
    frame["num_points_in_gt"] = rng.integers(0, 12, len(things))
    frame["difficulty"] = rng.choice([0, 0, 1, 2], len(things))
    seen = []
    for name, box in things * 2 + things[:2]:
        noise = np.array((0.12, 0.12, 0.08, 0.1, 0.05, 0.08, 0.4)) * rng.normal(size=7)
        if rng.random() < 0.8:
            seen.append((name if rng.random() < 0.9 else "Cyclist", tuple(np.array(box) + noise)))
    seen += [thing(str(rng.choice(CLASSES)), rng.uniform(5, 9)) for _ in range(rng.integers(0, 3))]
    scores = np.round(rng.uniform(0, 1, len(seen)), rng.integers(1, 4))
    return frame, found(*seen, scores=scores)


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_against_plain_loops(seed, crowd):
    rng = np.random.default_rng(seed)
    truths, finds = zip(*(random_frame(rng, crowd) for _ in range(6)), strict=True)
    result = metrics(truths, finds, CLASSES)
    slow = slow_metrics(truths, finds, CLASSES)
    assert {key: result[key] for key in slow} == pytest.approx(slow, abs=1e-4)
    assert sum(0 < value < 100 for value in slow.values()) > 4
    mean = sum(slow[f"OBJECT_TYPE_TYPE_{name.upper()}_LEVEL_2/APH"] for name in CLASSES) / 3
    assert result["mAP_LEVEL_2/APH"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize(
    ("truths", "finds", "names", "message"),
    [
        ([truth()], [found()], ["Car"], "Waymo has no rule for Car; CLASS_NAMES may hold Vehicle, Pedestrian"),
        ([truth()], [], CLASSES, "there are 1 frames of ground truth and 0 of detections"),
        ([truth(thing())], [found(thing(), scores=(1.5,))], CLASSES, r"takes scores in \[0, 1\], got 1.5"),
        ([truth(thing())], [{"name": [], "score": []}], CLASSES, "annotations lack boxes_lidar"),
        ([{"name": ["Vehicle"], "gt_boxes_lidar": np.zeros((1, 7))}], [found()], CLASSES, "lack difficulty, num_point"),
        ([truth(thing())], [found((*thing()[:1], (math.nan,) * 7), scores=(0.5,))], CLASSES, "must be finite"),
    ],
)
def test_what_cannot_be_evaluated(truths, finds, names, message):
    with pytest.raises(ValueError, match=message):
        evaluate_waymo(truths, finds, names)
