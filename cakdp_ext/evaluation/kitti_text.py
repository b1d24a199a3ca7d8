"""The table that people read, and a reason for every zero in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cakdp_ext.evaluation.kitti_measure import Case, Measured
from cakdp_ext.evaluation.kitti_rules import CLASS_RULES, DIFFICULTIES, METRICS, STRICTNESS

_LABELS = {"image": "bbox", "bev": "bev ", "3d": "3d  "}
_TITLES = {"r11": "AP", "r40": "AP_R40"}


def result_text(results: Mapping[Case, Measured], class_names: Sequence[str], num_detections: int) -> str:
    """Write the table in the layout that OpenPCDet's logs have, each line easy, moderate, hard.

    Args:
        results: every cell.
        class_names: the classes, in the order of the table.
        num_detections: of all classes together.

    Returns:
        Lines; after a class's numbers one line for each reason that made some of its strict numbers zero.
    """
    lines: list[str] = []
    for name in class_names:
        for strictness in STRICTNESS:
            for recall in _TITLES:
                lines += _block(results, name, strictness, recall)
        lines += _reasons(results, name, num_detections)
    if all(cell.aos is None for cell in results.values()):
        missing = "there are no detections" if num_detections == 0 else "some detections have no alpha (-10)"
        lines.append(f"aos is not computed: {missing}")
    return "\n".join(lines) + "\n"


def _block(results: Mapping[Case, Measured], name: str, strictness: str, recall: str) -> list[str]:
    bounds = ", ".join(f"{CLASS_RULES[name].min_overlap(metric, strictness):.2f}" for metric in METRICS)
    lines = [f"{name} {_TITLES[recall]}@{bounds}:"]
    for metric, label in _LABELS.items():
        cells = [results[Case(name, metric, difficulty.name, strictness)] for difficulty in DIFFICULTIES]
        lines.append(f"{label} AP:" + ", ".join(f"{getattr(cell.ap, recall):.4f}" for cell in cells))
    cells = [results[Case(name, "image", difficulty.name, strictness)] for difficulty in DIFFICULTIES]
    similarities = [getattr(cell.aos, recall) for cell in cells if cell.aos is not None]
    if similarities:
        lines.append("aos  AP:" + ", ".join(f"{value:.4f}" for value in similarities))
    return lines


def _reasons(results: Mapping[Case, Measured], name: str, num_detections: int) -> list[str]:
    places: dict[str, list[str]] = {}
    for metric in METRICS:
        for difficulty in DIFFICULTIES:
            cell = results[Case(name, metric, difficulty.name, "strict")]
            if cell.ap.r40 == 0.0:
                reason = why_zero(cell, num_detections)
                places.setdefault(reason, []).append(f"{_LABELS[metric].strip()}/{difficulty.name}")
    return [f"{name} AP_R40 is 0 in {', '.join(where)}: {reason}" for reason, where in places.items()]


def why_zero(cell: Measured, num_detections: int) -> str:
    """Say why a cell's average precision over 40 recall positions is zero.

    Args:
        cell: the cell.
        num_detections: of all classes together.

    Returns:
        One clause.
    """
    if num_detections == 0:
        return "there are no detections at all"
    if cell.num_class_detections == 0:
        return "there are no detections of this class"
    if cell.num_class_ground_truth == 0:
        return "there is no ground truth of this class"
    if cell.num_ground_truth == 0:
        return "there is no ground truth of this class at this difficulty"
    if cell.num_detections == 0:
        return "every detection of this class is lower in the image than this difficulty asks for"
    if cell.best_overlap <= cell.min_overlap:
        return (
            f"detections exist, but none overlaps a ground truth enough "
            f"(best {cell.best_overlap:.2f}, more than {cell.min_overlap:.2f} needed)"
        )
    if cell.num_found == 0:
        return "every detection that overlaps enough went to a ground truth that does not count"
    if cell.ap.r11 > 0:
        return (
            f"only the first of 41 recall positions was reached ({cell.num_found} of {cell.num_ground_truth} found), "
            "and R40 begins at the second"
        )
    return "no ground truth is found at any sampled score"
