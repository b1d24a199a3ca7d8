"""How good is it? Average precision of detections by the rules of the data set they were made on."""

from collections.abc import Callable, Mapping

from cakdp_ext.evaluation.kitti import evaluate_kitti
from cakdp_ext.evaluation.waymo import evaluate_waymo
from cakdp_ext.types import Evaluation

EVALUATIONS: Mapping[str, Callable[..., Evaluation]] = {"kitti": evaluate_kitti, "waymo": evaluate_waymo}
"""``MODEL.POST_PROCESSING.EVAL_METRIC`` -> what takes ground truths, detections and class names."""

__all__ = ["EVALUATIONS", "evaluate_kitti", "evaluate_waymo"]
