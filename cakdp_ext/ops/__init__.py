"""How boxes, points and voxels relate: each op runs natively where it is compiled, else in plain PyTorch."""

from cakdp_ext.ops.boxes import box_corners, limit_period
from cakdp_ext.ops.nms import nms, nms_in_frames
from cakdp_ext.ops.overlap import (
    boxes_overlap_bev,
    boxes_overlap_bev_aligned,
    iou_3d,
    iou_3d_aligned,
    iou_bev,
    iou_bev_aligned,
    nearest_bev_iou,
)
from cakdp_ext.ops.points import points_in_boxes
from cakdp_ext.ops.voxel_query import voxel_query

__all__ = [
    "box_corners",
    "boxes_overlap_bev",
    "boxes_overlap_bev_aligned",
    "iou_3d",
    "iou_3d_aligned",
    "iou_bev",
    "iou_bev_aligned",
    "limit_period",
    "nearest_bev_iou",
    "nms",
    "nms_in_frames",
    "points_in_boxes",
    "voxel_query",
]
