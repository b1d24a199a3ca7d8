"""KITTI's evaluation from annotations to numbers and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cakdp_ext.evaluation.kitti_annotations import read_detections, read_ground_truth
from cakdp_ext.evaluation.kitti_measure import Case, Measured, build_scene, measure
from cakdp_ext.evaluation.kitti_rules import DIFFICULTIES, METRICS, check_class_names
from cakdp_ext.evaluation.kitti_text import result_text
from cakdp_ext.evaluation.precision import AveragePrecision
from cakdp_ext.evaluation.tables import check_frames
from cakdp_ext.types import Annotations, Evaluation


def evaluate_kitti(ground_truth: Annotations, detections: Annotations, class_names: Sequence[str]) -> Evaluation:
    """Compute KITTI's average precision by the rules of its object development kit.

    A ground truth of a neighbouring class (Van for Car, Person_sitting for Pedestrian) or beyond a difficulty is
    ignored, and so is a detection too low in the image; DontCare regions excuse detections in the image metric only.
    The official AP does not reach 100 with few ground truths: n of them, all found and nothing else, give
    ``100 * min(n - 1, 40) / 40`` over 40 recall positions.

    Args:
        ground_truth: one mapping a frame in KITTI's terms: name, truncated, occluded, alpha, bbox, dimensions
            (l, h, w), location, rotation_y; DontCare regions included.
        detections: the same frames in the same order: name, score, alpha, bbox, dimensions, location, rotation_y;
            empty arrays where nothing was found. Frame ids are compared where both sides have a ``frame_id``.
        class_names: some of Car, Pedestrian, Cyclist, Van, Person_sitting, Truck.

    Returns:
        ``metrics`` in percent by the benchmark's strict overlaps: ``Car_3d/moderate_R40`` over 40 recall positions,
        ``Car_3d/moderate`` over 11, likewise ``image``, ``bev`` and, when every detection has an alpha, ``aos``;
        easy and hard likewise; ``mAP_3d/moderate_R40`` and so on are means over ``class_names``. ``text`` holds
        also the looser overlaps and a reason for every zero. Without frames or detections everything is zero.

    Raises:
        ValueError: for a class without a rule, frames that differ in number or id, a missing key, another shape, or
            a number that is not finite.

    Source:
        Geiger et al., CVPR 2012 (matching, AOS); Simonelli et al., ICCV 2019 (40 recall positions).
    """
    check_class_names(class_names)
    check_frames(ground_truth, detections)
    scene = build_scene(read_ground_truth(ground_truth), read_detections(detections))
    results = measure(scene, class_names)
    text = result_text(results, class_names, num_detections=len(scene.detections.scores))
    return Evaluation(metrics=named_metrics(results, class_names), text=text)


def named_metrics(results: Mapping[Case, Measured], class_names: Sequence[str]) -> dict[str, float]:
    """Name the strict results as OpenPCDet's logs name them, and add the means over classes.

    Args:
        results: every cell.
        class_names: the classes.

    Returns:
        Name -> percent.
    """
    metrics: dict[str, float] = {}
    for metric in ("aos", *METRICS):
        for difficulty in DIFFICULTIES:
            values = [_pick(results, name, metric, difficulty.name) for name in class_names]
            known = [value for value in values if value is not None]
            for name, value in zip(class_names, known, strict=False):
                metrics[f"{name}_{metric}/{difficulty.name}"] = value.r11
                metrics[f"{name}_{metric}/{difficulty.name}_R40"] = value.r40
            if known:
                metrics[f"mAP_{metric}/{difficulty.name}"] = sum(value.r11 for value in known) / len(known)
                metrics[f"mAP_{metric}/{difficulty.name}_R40"] = sum(value.r40 for value in known) / len(known)
    return metrics


def _pick(results: Mapping[Case, Measured], name: str, metric: str, difficulty: str) -> AveragePrecision | None:
    if metric == "aos":
        return results[Case(name, "image", difficulty, "strict")].aos
    return results[Case(name, metric, difficulty, "strict")].ap
