"""Waymo's 3D detection metrics from annotations to numbers and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cakdp_ext.evaluation.tables import check_frames
from cakdp_ext.evaluation.waymo_boxes import MIN_OVERLAP, read_finds, read_truths
from cakdp_ext.evaluation.waymo_measure import LEVELS, LevelResult, measure_class
from cakdp_ext.types import Annotations, Evaluation

Results = Mapping[str, Mapping[int, LevelResult]]


def evaluate_waymo(ground_truth: Annotations, detections: Annotations, class_names: Sequence[str]) -> Evaluation:
    """Compute Waymo's AP and APH by the rules of its metrics library, with the settings of OpenPCDet.

    At each of the 101 score cutoffs 0, 0.01, ..., 1 the detections of a frame and a class are matched with its ground
    truths for the greatest sum of 3D IoUs (Hungarian), of which each must reach the class's minimum. Ground truths
    without a point are left out. LEVEL_1 has the ground truths with more than five points that the annotators did not
    call hard, LEVEL_2 all of them. A detection that is matched is right at both levels; a ground truth that is not
    matched counts as missed at its level and above. APH weighs each right detection by ``1 - angle / pi``, with the
    angle between the two headings; its recall is that of AP. Precision is integrated over recall as
    :func:`area_under_curve` says. No-label zones are not known here, as in OpenPCDet.

    Args:
        ground_truth: one mapping a frame: name, gt_boxes_lidar ``(n, 7)`` or wider, difficulty, num_points_in_gt.
        detections: the same frames in the same order: name, boxes_lidar ``(n, 7)``, score in [0, 1]. Frame ids are
            compared where both sides have a ``frame_id``.
        class_names: some of Vehicle, Pedestrian, Cyclist, Sign.

    Returns:
        ``metrics`` in percent, named as OpenPCDet names them (it prints shares of 1):
        ``OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1/AP``, ``.../APH``, LEVEL_2 and other classes likewise, and the means over
        ``class_names``, ``mAP_LEVEL_1/AP`` and so on. Without frames, ground truths or detections they are zero.

    Raises:
        ValueError: for a class without a rule, frames that differ in number or id, a missing key, another shape, a
            number that is not finite, or a score out of range.

    Source:
        Sun et al., CVPR 2020, section 4; waymo-open-dataset, ``metrics/{detection_metrics,metrics_utils,matcher}.cc``
        (behaviour).
    """
    unknown = [name for name in class_names if name not in MIN_OVERLAP]
    if unknown or not class_names:
        raise ValueError(
            f"Waymo has no rule for {', '.join(unknown) or 'no classes'}; CLASS_NAMES may hold {', '.join(MIN_OVERLAP)}"
        )
    check_frames(ground_truth, detections)
    truths, finds = read_truths(ground_truth), read_finds(detections)
    results = {
        name: measure_class(truths.of_class(name), finds.of_class(name), MIN_OVERLAP[name]) for name in class_names
    }
    return Evaluation(metrics=_named(results), text=_table(results, len(finds.scores)))


def _named(results: Results) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, levels in results.items():
        for level, result in levels.items():
            metrics[f"OBJECT_TYPE_TYPE_{name.upper()}_LEVEL_{level}/AP"] = result.ap
            metrics[f"OBJECT_TYPE_TYPE_{name.upper()}_LEVEL_{level}/APH"] = result.aph
    for level in LEVELS:
        of_level = [levels[level] for levels in results.values()]
        metrics[f"mAP_LEVEL_{level}/AP"] = sum(result.ap for result in of_level) / len(of_level)
        metrics[f"mAP_LEVEL_{level}/APH"] = sum(result.aph for result in of_level) / len(of_level)
    return metrics


def _table(results: Results, num_finds: int) -> str:
    lines = ["class       level      AP      APH   ground truths"]
    for name, levels in results.items():
        lines += [
            f"{name:<12}{level:>5}{result.ap:>8.2f}{result.aph:>9.2f}{result.num_truths:>16}"
            for level, result in levels.items()
        ]
    metrics = _named(results)
    lines += [
        f"{'mean':<12}{level:>5}{metrics[f'mAP_LEVEL_{level}/AP']:>8.2f}{metrics[f'mAP_LEVEL_{level}/APH']:>9.2f}"
        for level in LEVELS
    ]
    if num_finds == 0:
        lines.append("there are no detections")
    return "\n".join(lines) + "\n"
