"""What the table says: numbers in OpenPCDet's layout, a reason for every zero, and errors that name the frame."""

import numpy as np
import pytest
from random_frames import annotations, thing

from cakdp_ext.evaluation import evaluate_kitti


def text_of(frames, classes=("Car",)):
    return evaluate_kitti(*annotations(frames), classes).text


def reasons(text):
    return [line for line in text.splitlines() if " is 0 in " in line]


def test_table_holds_both_overlap_sets_and_both_recall_samplings():
    frames = [([thing()], [thing(score=0.9 - i / 100, location=(0.5, 1.6, 20.0))]) for i in range(41)]
    lines = text_of(frames).splitlines()
    for title in ("AP", "AP_R40"):
        strict, loose = lines.index(f"Car {title}@0.70, 0.70, 0.70:"), lines.index(f"Car {title}@0.70, 0.50, 0.50:")
        assert lines[strict + 1] == "bbox AP:100.0000, 100.0000, 100.0000"
        assert lines[strict + 2] == "bev  AP:0.0000, 0.0000, 0.0000"
        assert lines[loose + 2] == "bev  AP:100.0000, 100.0000, 100.0000"
        assert lines[loose + 3] == "3d   AP:100.0000, 100.0000, 100.0000"
        assert lines[loose + 4] == "aos  AP:100.0000, 100.0000, 100.0000"


def test_a_table_without_zeros_gives_no_reasons():
    assert reasons(text_of([([thing()], [thing(score=0.9 - i / 100)]) for i in range(3)])) == []


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (([thing()], []), "there are no detections at all"),
        (([thing()], [thing("Cyclist", score=0.5)]), "there are no detections of this class"),
        (([thing("Truck")], [thing(score=0.5)]), "there is no ground truth of this class"),
        (([thing(occluded=3)], [thing(score=0.5)]), "there is no ground truth of this class at this difficulty"),
        (([thing()], [thing(score=0.5)]), "only the first of 41 recall positions was reached (1 of 1 found)"),
        (
            ([thing()], [thing(score=0.5, bbox=(0.0, 100.0, 120.0, 120.0))]),
            "every detection of this class is lower in the image than this difficulty asks for",
        ),
        (
            ([thing("Van"), thing(bbox=(0.0, 100.0, 120.0, 180.0))], [thing("Car", score=0.5)]),
            "every detection that overlaps enough went to a ground truth that does not count",
        ),
    ],
)
def test_every_zero_has_its_reason(frame, reason):
    if "went to" in reason:
        frame[0][0]["dimensions"] = frame[0][1]["dimensions"]
    text = text_of([frame])
    assert len(reasons(text)) == 1
    assert reason in reasons(text)[0]
    for place in ("bbox/easy", "bev/moderate", "3d/hard"):
        assert place in reasons(text)[0]


def test_too_little_overlap_is_told_with_the_best_one():
    frames = [([thing()], [thing(score=0.5, bbox=(0.0, 100.0, 60.0, 180.0), location=(9.0, 1.6, 20.0))])]
    image, boxes = reasons(text_of(frames))
    assert image.endswith("none overlaps a ground truth enough (best 0.50, more than 0.70 needed)")
    assert boxes.endswith("none overlaps a ground truth enough (best 0.00, more than 0.70 needed)")
    assert "bbox/easy" in image
    assert "bev/easy, bev/moderate, bev/hard, 3d/easy" in boxes


def test_a_zero_at_one_difficulty_is_told_for_that_one():
    frames = [([thing(occluded=1)], [thing(score=0.9 - i / 100)]) for i in range(3)]
    (line,) = reasons(text_of(frames))
    assert line.startswith("Car AP_R40 is 0 in bbox/easy, bev/easy, 3d/easy: there is no ground truth")


def test_orientation_is_left_out_and_said_so_when_a_detection_has_no_alpha():
    frames = [([thing()], [thing(score=0.9 - i / 100, alpha=-10.0 if i == 2 else 0.3)]) for i in range(3)]
    evaluation = evaluate_kitti(*annotations(frames), ["Car"])
    assert not [key for key in evaluation.metrics if "aos" in key]
    assert "aos is not computed: some detections have no alpha (-10)" in evaluation.text
    assert "aos is not computed: there are no detections" in text_of([([thing()], [])])


def test_no_frames_give_zeros():
    evaluation = evaluate_kitti([], [], ["Car"])
    assert set(evaluation.metrics.values()) == {0.0}
    assert "there are no detections at all" in evaluation.text


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["Car", "Tram"], "no rule for class Tram; it has one for Car, Pedestrian, Cyclist"),
        ([], "non-empty list"),
        ("Car", "non-empty list"),
        (["Car", "Car"], "must be different"),
    ],
)
def test_class_names_that_cannot_be_evaluated_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        evaluate_kitti([], [], classes)


def test_frames_that_differ_in_number_are_refused():
    truth, found = annotations([([thing()], [])] * 2)
    with pytest.raises(ValueError, match="2 frames of ground truth and 1 of detections"):
        evaluate_kitti(truth, found[:1], ["Car"])


def test_frames_in_another_order_are_refused():
    truth, found = annotations([([thing()], [])] * 2)
    truth = [{**frame, "frame_id": name} for frame, name in zip(truth, ("000001", "000002"), strict=True)]
    found = [{**frame, "frame_id": np.str_(name)} for frame, name in zip(found, ("000002", "000001"), strict=True)]
    with pytest.raises(ValueError, match="frame 0 is 000001 in the ground truth and 000002 in the detections"):
        evaluate_kitti(truth, found, ["Car"])
    assert evaluate_kitti(truth, found[::-1], ["Car"]).metrics["Car_3d/easy_R40"] == 0


@pytest.mark.parametrize("key", ["score", "bbox", "dimensions", "location", "rotation_y", "alpha"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_names_its_frame_and_object(key, value):
    _, found = annotations([([], [thing(score=0.5)]), ([], []), ([], [thing(score=0.5), thing(score=0.4)])])
    truth, _ = annotations([([], [])] * 3)
    found[2][key][1] = value
    found[2]["frame_id"] = "000142"
    with pytest.raises(ValueError, match=f"{key} of object 1 in the detections of frame 000142 is"):
        evaluate_kitti(truth, found, ["Car"])


def test_ground_truth_is_checked_too():
    truth, found = annotations([([thing()], [])] * 2)
    truth[1]["truncated"][0] = np.nan
    with pytest.raises(ValueError, match="truncated of object 0 in the ground truth of frame 1"):
        evaluate_kitti(truth, found, ["Car"])


def test_a_missing_key_names_the_frame():
    truth, found = annotations([([thing()], [thing(score=0.5)])])
    del found[0]["score"]
    with pytest.raises(ValueError, match="detections of frame 0 lack score"):
        evaluate_kitti(truth, found, ["Car"])


def test_arrays_of_another_length_are_refused():
    truth, found = annotations([([thing()], [thing(score=0.5)])])
    found[0]["bbox"] = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"bbox in the detections of frame 0 must have shape \(1, 4\)"):
        evaluate_kitti(truth, found, ["Car"])
