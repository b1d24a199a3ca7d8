"""Stock models of OpenPCDet on CPU: built from their own YAMLs, trained and evaluated on a real frame."""

from __future__ import annotations

import math

import pytest

PARAMETERS = {
    "second": 5_325_576,
    "voxel_rcnn": 7_586_620,
    "pv_rcnn": 13_115_697,
    "part_a2": 63_814_772,
    "pv_rcnn_plusplus": 14_114_680,
    "centerpoint": 7_758_811,
}
"""As counted on GPUs; none of it depends on the range."""


@pytest.fixture(scope="module")
def runs(run_program, checkout, kitti):
    results, _ = run_program("models.py", kitti, *PARAMETERS)
    return {result["model"]: result for result in results}


@pytest.mark.real_data
@pytest.mark.parametrize("name", PARAMETERS)
def test_model_is_built_trained_and_evaluated(runs, name):
    run = runs[name]
    assert run["parameters"] == PARAMETERS[name]
    assert math.isfinite(run["loss"])
    assert run["loss"] > 0
    for part, (with_gradient, parameters, norm) in run["gradients"].items():
        assert with_gradient == parameters, part
        assert 0 < norm < math.inf, part
    assert run["peak_gib"] < 4


@pytest.mark.real_data
@pytest.mark.parametrize("name", PARAMETERS)
def test_detections_are_boxes_in_order_of_their_scores(runs, name):
    found = runs[name]["found"]
    assert len(found["pred_scores"]) == len(found["pred_boxes"]) == len(found["pred_labels"]) > 10
    assert found["pred_scores"] == sorted(found["pred_scores"], reverse=True)
    assert all(len(box) == 7 and min(box[3:6]) > 0 for box in found["pred_boxes"])
    assert runs[name]["recall"]["gt"] > 0


@pytest.mark.real_data
def test_references_of_the_ops_give_what_the_native_ones_give(runs, run_program, kitti):
    (slow,), _ = run_program("models.py", kitti, "voxel_rcnn", CAKDP_NATIVE="0")
    fast = runs["voxel_rcnn"]
    assert slow["loss"] == pytest.approx(fast["loss"], rel=1e-5)
    for part, (_, _, norm) in fast["gradients"].items():
        assert slow["gradients"][part][2] == pytest.approx(norm, rel=1e-4)
    assert len(slow["found"]["pred_scores"]) == len(fast["found"]["pred_scores"])
    assert slow["found"]["pred_scores"] == pytest.approx(fast["found"]["pred_scores"], abs=1e-5)
    for one, other in zip(slow["found"]["pred_boxes"], fast["found"]["pred_boxes"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
