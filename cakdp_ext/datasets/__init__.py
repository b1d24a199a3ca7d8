"""Where frames come from: data sets, augmentation, voxels, batches."""

from cakdp_ext.datasets.collate import collate
from cakdp_ext.datasets.frame import Frame, RawFrame
from cakdp_ext.datasets.kitti import KittiDataset, make_infos, write_kitti_labels
from cakdp_ext.datasets.registry import LidarDataset, build_dataset, register_dataset
from cakdp_ext.datasets.waymo import WaymoDataset, make_waymo_infos

__all__ = [
    "Frame",
    "KittiDataset",
    "LidarDataset",
    "RawFrame",
    "WaymoDataset",
    "build_dataset",
    "collate",
    "make_infos",
    "make_waymo_infos",
    "register_dataset",
    "write_kitti_labels",
]
