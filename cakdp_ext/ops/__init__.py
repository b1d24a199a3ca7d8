"""How boxes, points and voxels relate: each op runs natively where it is compiled, else in plain PyTorch."""

from cakdp_ext.ops.ball_query import ball_query
from cakdp_ext.ops.boxes import box_corners, limit_period
from cakdp_ext.ops.cells import Cells, group_by_cell, pool_cells
from cakdp_ext.ops.grouping import group_points
from cakdp_ext.ops.interpolation import three_interpolate, three_nn
from cakdp_ext.ops.neighbors import Neighbors, NeighborType, local_neighbors, local_three_nn, neighbors_in_boxes
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
from cakdp_ext.ops.roiaware_pool import roiaware_cells, roiaware_pool
from cakdp_ext.ops.sampling import farthest_point_sampling, farthest_point_sampling_stacked
from cakdp_ext.ops.vector_pool import mean_offsets, vector_cells, vector_pool
from cakdp_ext.ops.voxel_query import voxel_query

__all__ = [
    "Cells",
    "NeighborType",
    "Neighbors",
    "ball_query",
    "box_corners",
    "boxes_overlap_bev",
    "boxes_overlap_bev_aligned",
    "farthest_point_sampling",
    "farthest_point_sampling_stacked",
    "group_by_cell",
    "group_points",
    "iou_3d",
    "iou_3d_aligned",
    "iou_bev",
    "iou_bev_aligned",
    "limit_period",
    "local_neighbors",
    "local_three_nn",
    "mean_offsets",
    "nearest_bev_iou",
    "neighbors_in_boxes",
    "nms",
    "nms_in_frames",
    "points_in_boxes",
    "pool_cells",
    "roiaware_cells",
    "roiaware_pool",
    "three_interpolate",
    "three_nn",
    "vector_cells",
    "vector_pool",
    "voxel_query",
]
