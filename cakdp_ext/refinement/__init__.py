"""Which boxes are false? IoU labels, the loss of the IoU head, and what its scores do before NMS."""

from cakdp_ext.refinement.branch import (
    PRIOR_PROBABILITY,
    CenterIoUHeadConfig,
    IoUHeadConfig,
    anchor_branch_loss,
    anchor_branch_targets,
    center_branch_loss,
    center_branch_targets,
    start_from_prior,
)
from cakdp_ext.refinement.loss import iou_loss
from cakdp_ext.refinement.mask import IoURefinement, refine_scores
from cakdp_ext.refinement.targets import anchor_iou_targets, center_cell_targets, decoded_iou_targets

__all__ = [
    "PRIOR_PROBABILITY",
    "CenterIoUHeadConfig",
    "IoUHeadConfig",
    "IoURefinement",
    "anchor_branch_loss",
    "anchor_branch_targets",
    "anchor_iou_targets",
    "center_branch_loss",
    "center_branch_targets",
    "center_cell_targets",
    "decoded_iou_targets",
    "iou_loss",
    "refine_scores",
    "start_from_prior",
]
