"""The fast evaluation gives what the rule, applied object by object, gives."""

import numpy as np
import pytest
from kitti_reference import overlap, reference_ap, sampled
from random_frames import annotations, random_frames

from cakdp_ext.evaluation import evaluate_kitti, overlaps
from cakdp_ext.evaluation.kitti_annotations import read_detections, read_ground_truth
from cakdp_ext.evaluation.kitti_measure import build_scene, measure
from cakdp_ext.evaluation.precision import recall_thresholds

CLASSES = ("Car", "Pedestrian", "Cyclist")
LEVELS = ("easy", "moderate", "hard")
METRICS = ("image", "bev", "3d")
BOUNDS = {
    "strict": {"Car": (0.7, 0.7, 0.7), "Pedestrian": (0.5, 0.5, 0.5), "Cyclist": (0.5, 0.5, 0.5)},
    "loose": {"Car": (0.7, 0.5, 0.5), "Pedestrian": (0.5, 0.25, 0.25), "Cyclist": (0.5, 0.25, 0.25)},
}


def overlap_tables(frames, metric):
    def cell(truth, found):
        return 0.0 if truth["name"] == "DontCare" else overlap(truth, found, metric)

    return [[[cell(truth, found) for found in detections] for truth in truths] for truths, detections in frames]


def expected(frames, strictness):
    for i, metric in enumerate(METRICS):
        tables = overlap_tables(frames, metric)
        for name in CLASSES:
            for level in LEVELS:
                bound = BOUNDS[strictness][name][i]
                yield name, metric, level, *reference_ap(frames, tables, name, level, metric, bound)


@pytest.mark.parametrize("block", range(10))
def test_strict_numbers_equal_the_rule_on_small_random_sets(block):
    rng = np.random.default_rng(block)
    for _ in range(25):
        frames = random_frames(rng, num_frames=int(rng.integers(1, 5)), num_truths=6, num_detections=9)
        truth, found = annotations(frames)
        metrics = evaluate_kitti(truth, found, CLASSES).metrics
        has_aos = any(len(frame["name"]) for frame in found)
        assert ("Car_aos/easy_R40" in metrics) == has_aos
        for name, metric, level, ap, aos in expected(frames, "strict"):
            got = [metrics[f"{name}_{metric}/{level}"], metrics[f"{name}_{metric}/{level}_R40"]]
            assert got == pytest.approx(ap, abs=1e-6), (name, metric, level)
            if metric == "image" and has_aos:
                got = [metrics[f"{name}_aos/{level}"], metrics[f"{name}_aos/{level}_R40"]]
                assert got == pytest.approx(aos, abs=1e-6), (name, level)


@pytest.mark.parametrize("seed", range(2))
def test_both_overlap_sets_equal_the_rule_where_recall_is_sampled_sparsely(seed):
    rng = np.random.default_rng(100 + seed)
    frames = random_frames(rng, num_frames=400, num_truths=5, num_detections=8)
    truth, found = annotations(frames)
    results = measure(build_scene(read_ground_truth(truth), read_detections(found)), CLASSES)
    assert max(cell.num_found for cell in results.values()) > 45
    for strictness in BOUNDS:
        for name, metric, level, ap, aos in expected(frames, strictness):
            cell = results[name, metric, level, strictness]
            assert tuple(cell.ap) == pytest.approx(ap, abs=1e-6), (name, metric, level, strictness)
            if metric == "image":
                assert tuple(cell.aos) == pytest.approx(aos, abs=1e-6), (name, level)


@pytest.mark.parametrize("total", [1, 2, 3, 20, 39, 40, 41, 60, 80, 81, 400, 1237])
def test_recall_is_sampled_where_the_rule_samples_it(total):
    rng = np.random.default_rng(total)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        scores = rng.integers(0, 50, int(round(share * total))) / 50
        got = recall_thresholds(scores, total)
        assert got.tolist() == sampled(scores.tolist(), total)
        assert len(got) <= 41


def test_overlaps_do_not_depend_on_how_many_pairs_are_held_at_once(monkeypatch):
    frames = random_frames(np.random.default_rng(0), num_frames=50, num_truths=5, num_detections=8)
    truth, found = annotations(frames)
    whole = evaluate_kitti(truth, found, CLASSES)
    monkeypatch.setattr(overlaps, "PAIR_LIMIT", 7)
    assert evaluate_kitti(truth, found, CLASSES) == whole
