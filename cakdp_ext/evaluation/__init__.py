"""How good is it? Average precision of detections by the rules of the data set they were made on."""

from cakdp_ext.evaluation.kitti import evaluate_kitti
from cakdp_ext.evaluation.waymo import evaluate_waymo

__all__ = ["evaluate_kitti", "evaluate_waymo"]
