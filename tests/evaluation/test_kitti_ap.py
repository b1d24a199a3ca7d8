"""KITTI AP in cases that can be worked out by hand."""

import math

import numpy as np
import pytest
from random_frames import annotation, annotations, thing

from cakdp_ext.evaluation import evaluate_kitti

METRICS = ("image", "bev", "3d")
LEVELS = ("easy", "moderate", "hard")


def score_of(frames, classes=("Car",)):
    return evaluate_kitti(*annotations(frames), classes).metrics


def found_frames(count, **changes):
    """Frames with one object each, found exactly, with falling scores."""
    return [([thing()], [thing(score=0.9 - 0.8 * i / count, **changes)]) for i in range(count)]


@pytest.mark.parametrize(
    ("count", "r40", "positions_of_11"),
    [(1, 0.0, 1), (2, 2.5, 1), (3, 5.0, 1), (5, 10.0, 2), (40, 97.5, 10), (41, 100.0, 11), (100, 100.0, 11)],
)
def test_perfect_detections_give_one_recall_position_for_each_ground_truth(count, r40, positions_of_11):
    metrics = score_of(found_frames(count))
    for metric in (*METRICS, "aos"):
        for level in LEVELS:
            assert metrics[f"Car_{metric}/{level}_R40"] == pytest.approx(r40, abs=1e-9)
            assert metrics[f"Car_{metric}/{level}"] == pytest.approx(100 * positions_of_11 / 11, abs=1e-9)


def test_one_false_positive_above_three_right_ones():
    # precision 1/2, 2/3, 3/4 at the three positions, 3/4 at all of them once it may not rise again
    frames = found_frames(3)
    frames[0][1].append(thing(place=3, score=0.95))
    metrics = score_of(frames)
    for metric in METRICS:
        assert metrics[f"Car_{metric}/easy_R40"] == pytest.approx(2 * 0.75 / 40 * 100)
        assert metrics[f"Car_{metric}/easy"] == pytest.approx(0.75 / 11 * 100)


def test_a_false_positive_between_right_ones_costs_only_lower_recall():
    # precision 1, 1, 3/4
    frames = found_frames(3)
    between = (frames[1][1][0]["score"] + frames[2][1][0]["score"]) / 2
    frames[0][1].append(thing(place=3, score=between))
    assert score_of(frames)["Car_3d/easy_R40"] == pytest.approx((1 + 0.75) / 40 * 100)


def test_missed_ground_truths_cap_recall():
    # 10 of 20 found: recall runs to 0.5 in steps of 1/20 = two positions each, but each score is one position
    frames = [*found_frames(10), *([([thing()], [])] * 10)]
    assert score_of(frames)["Car_3d/hard_R40"] == pytest.approx(9 / 40 * 100)


@pytest.mark.parametrize(("turn", "share"), [(math.pi / 2, 0.5), (math.pi / 3, 0.75), (2 * math.pi, 1.0)])
def test_orientation_similarity_is_the_mean_of_half_of_one_plus_cosine(turn, share):
    metrics = score_of(found_frames(41, alpha=0.3 + turn))
    assert metrics["Car_aos/moderate_R40"] == pytest.approx(100 * share)
    assert metrics["Car_image/moderate_R40"] == pytest.approx(100)


def test_a_false_positive_with_the_top_score_lowers_every_number():
    frames = found_frames(60)
    before = score_of(frames)
    frames[7][1].append(thing(place=3, score=0.99))
    after = score_of(frames)
    assert all(after[key] < before[key] for key in before)


def test_a_duplicate_with_a_lower_score_lowers_every_number():
    frames = found_frames(60)
    before = score_of(frames)
    frames[0][1].append(thing(score=0.4))
    after = score_of(frames)
    assert all(after[key] < before[key] for key in before)


def test_a_duplicate_below_every_sampled_score_costs_nothing():
    frames = found_frames(60)
    before = score_of(frames)
    frames[0][1].append(thing(score=0.01))
    assert score_of(frames) == before


def test_dont_care_regions_excuse_false_positives_in_the_image_only():
    frames = found_frames(41)
    region = thing("DontCare", bbox=(590.0, 90.0, 730.0, 190.0), location=(-1000.0, -1000.0, -1000.0))
    frames[0][0].append(region)
    frames[0][1].append(thing(place=3, score=0.99))
    metrics = score_of(frames)
    assert metrics["Car_image/easy_R40"] == pytest.approx(100)
    assert metrics["Car_bev/easy_R40"] == pytest.approx(100 * 41 / 42)
    assert metrics["Car_3d/easy_R40"] == pytest.approx(100 * 41 / 42)


@pytest.mark.parametrize(("right", "value"), [(684.0, 100 * 41 / 42), (684.5, 100.0)])
def test_dont_care_must_hold_more_than_the_minimum_overlap_of_the_detection(right, value):
    # 84 of the 120 pixels of width are 0.7 of a Car's box exactly
    frames = found_frames(41)
    frames[0][0].append(thing("DontCare", bbox=(590.0, 90.0, right, 190.0)))
    frames[0][1].append(thing(place=3, score=0.99))
    assert score_of(frames)["Car_image/easy_R40"] == pytest.approx(value)


@pytest.mark.parametrize(("name", "neighbour"), [("Car", "Van"), ("Pedestrian", "Person_sitting")])
def test_a_detection_on_the_neighbouring_class_is_neither_right_nor_wrong(name, neighbour):
    frames = [([thing(name)], [thing(name, score=0.9 - i / 100)]) for i in range(41)]
    frames[0][0].append(thing(neighbour, place=2))
    frames[0][1].append({**thing(neighbour, place=2, score=0.99), "name": name})
    metrics = score_of(frames, (name,))
    assert [metrics[f"{name}_{metric}/easy_R40"] for metric in METRICS] == pytest.approx([100, 100, 100])


def test_a_detection_on_another_class_is_wrong():
    frames = found_frames(41)
    frames[0][0].append(thing("Truck", place=2))
    frames[0][1].append({**thing("Truck", place=2, score=0.99), "name": "Car"})
    assert score_of(frames)["Car_3d/easy_R40"] == pytest.approx(100 * 41 / 42)


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({"occluded": 1}, ("moderate", "hard")),
        ({"occluded": 2}, ("hard",)),
        ({"occluded": 3}, ()),
        ({"truncated": 0.15}, LEVELS),
        ({"truncated": 0.2}, ("moderate", "hard")),
        ({"truncated": 0.4}, ("hard",)),
        ({"truncated": 0.51}, ()),
        ({"bbox": (0.0, 100.0, 120.0, 140.0)}, ("moderate", "hard")),
        ({"bbox": (0.0, 100.0, 120.0, 125.0)}, ()),
    ],
)
def test_only_ground_truths_within_the_difficulty_are_to_be_found(changes, levels):
    # 41 easy ones are found; a further one is missed, which costs recall exactly where it counts
    frames = [*found_frames(41), ([thing(**changes)], [])]
    metrics = score_of(frames)
    got = {level for level in LEVELS if metrics[f"Car_3d/{level}_R40"] < 100 - 1e-9}
    assert got == set(levels)


def test_a_detection_on_a_ground_truth_beyond_the_difficulty_is_neither_right_nor_wrong():
    frames = [*found_frames(41), ([thing(occluded=3)], [thing(score=0.99)])]
    metrics = score_of(frames)
    assert [metrics[f"Car_{metric}/hard_R40"] for metric in METRICS] == pytest.approx([100, 100, 100])


@pytest.mark.parametrize(("height", "levels"), [(24.9, ()), (25.0, ("moderate", "hard")), (40.0, LEVELS)])
def test_a_false_positive_counts_from_the_minimum_height_on(height, levels):
    frames = found_frames(41)
    frames[0][1].append(thing(place=3, score=0.99, bbox=(600.0, 100.0, 720.0, 100.0 + height)))
    metrics = score_of(frames)
    assert {level for level in LEVELS if metrics[f"Car_bev/{level}_R40"] < 100 - 1e-9} == set(levels)


def test_a_ground_truth_prefers_a_detection_that_counts_to_a_lower_one_that_overlaps_more():
    low = thing(score=0.95, bbox=(0.0, 100.0, 120.0, 120.0))
    proper = thing(score=0.94, location=(0.1, 1.6, 20.0))
    frames = [*found_frames(100), ([thing()], [low, proper])]
    assert score_of(frames)["Car_3d/easy_R40"] == pytest.approx(100)
    frames[-1][1][0]["bbox"] = proper["bbox"]
    assert score_of(frames)["Car_3d/easy_R40"] < 100 - 0.1


def test_the_minimum_overlap_must_be_exceeded():
    # image boxes of 100 x 80 and 70 x 80 inside it: IoU 0.7 exactly
    truth = thing(bbox=(0.0, 100.0, 100.0, 180.0))
    for right, value in ((70.0, 0.0), (70.5, 100.0)):
        frames = [([truth], [thing(score=0.9 - i / 100, bbox=(0.0, 100.0, right, 180.0))]) for i in range(41)]
        assert score_of(frames)["Car_image/easy_R40"] == pytest.approx(value)


def test_quarter_turn_in_the_camera_frame_swaps_length_and_width():
    turned = {"rotation_y": 0.4 + math.pi / 2, "dimensions": (1.6, 1.56, 3.9)}
    metrics = score_of(found_frames(41, **turned))
    assert metrics["Car_bev/easy_R40"] == pytest.approx(100)
    assert metrics["Car_3d/easy_R40"] == pytest.approx(100)


def test_location_is_the_bottom_of_the_box():
    # same bottom, a fifth higher: the taller box holds the lower one, so IoU is 1/1.2 = 0.83; without that
    # convention, centres 0.156 m apart would give 0.69 and no match
    taller = {"dimensions": (3.9, 1.56 * 1.2, 1.6), "location": (0.0, 1.6, 20.0)}
    assert score_of(found_frames(41, **taller))["Car_3d/easy_R40"] == pytest.approx(100)
    lifted = {**taller, "location": (0.0, 1.6 - 0.5, 20.0)}
    metrics = score_of(found_frames(41, **lifted))
    assert metrics["Car_3d/easy_R40"] == 0
    assert metrics["Car_bev/easy_R40"] == pytest.approx(100)


def test_frames_do_not_touch_each_other():
    # each frame's detection fits the other frame's ground truth
    frames = [([thing(place=1)], [thing(place=2, score=0.9)]), ([thing(place=2)], [thing(place=1, score=0.8)])]
    assert set(score_of(frames).values()) == {0.0}


def test_the_order_of_frames_is_of_no_consequence_without_ties():
    rng = np.random.default_rng(0)
    frames = [
        ([thing(place=p) for p in range(3)], [thing(place=int(rng.integers(5)), score=rng.uniform()) for _ in range(4)])
        for _ in range(30)
    ]
    shuffled = [frames[i] for i in rng.permutation(30)]
    assert score_of(frames) == pytest.approx(score_of(shuffled), abs=1e-9)


def test_means_are_over_the_classes_asked_for():
    frames = [([thing()], [thing(score=0.9 - i / 100)]) for i in range(41)]
    metrics = score_of(frames, ("Car", "Cyclist"))
    assert metrics["mAP_3d/moderate_R40"] == pytest.approx(50)
    assert metrics["mAP_aos/easy"] == pytest.approx(50)
    assert metrics["Cyclist_3d/moderate_R40"] == 0


def test_names_are_those_of_openpcdets_logs_and_their_means():
    keys = set(score_of(found_frames(2), ("Car", "Pedestrian")))
    groups = [f"{name}_{metric}/{level}" for name in ("Car", "Pedestrian", "mAP") for metric in (*METRICS, "aos")
              for level in LEVELS]  # fmt: skip
    assert keys == {*groups, *(f"{group}_R40" for group in groups)}


def test_class_names_are_compared_without_regard_to_case():
    frames = [([thing()], [{**thing(score=0.9 - i / 100), "name": "car"}]) for i in range(41)]
    assert score_of(frames)["Car_3d/easy_R40"] == pytest.approx(100)


def test_lists_serve_as_well_as_arrays():
    truth, found = annotations(found_frames(5))
    lists = [{key: value.tolist() for key, value in frame.items()} for frame in found]
    assert evaluate_kitti(truth, lists, ["Car"]) == evaluate_kitti(truth, found, ["Car"])


def test_empty_frames_may_hold_flat_empty_arrays():
    truth, found = annotations([([thing()], [thing(score=0.5)]), ([thing()], [thing(score=0.4)])])
    flat = {key: np.zeros(0) for key in found[0]} | {"name": np.zeros(0, dtype=str)}
    got = evaluate_kitti([*truth, annotation([])], [*found, flat], ["Car"])
    assert got.metrics == evaluate_kitti(truth, found, ["Car"]).metrics
