"""KITTI: its files, its info files, its frames."""

from cakdp_ext.datasets.kitti.annotations import to_annotation, write_kitti_labels
from cakdp_ext.datasets.kitti.calibration import Calibration
from cakdp_ext.datasets.kitti.dataset import KittiDataset
from cakdp_ext.datasets.kitti.infos import InfoSummary, make_infos
from cakdp_ext.datasets.kitti.labels import ObjectLabel, read_labels
from cakdp_ext.datasets.kitti.raw import KittiFolder

__all__ = [
    "Calibration",
    "InfoSummary",
    "KittiDataset",
    "KittiFolder",
    "ObjectLabel",
    "make_infos",
    "read_labels",
    "to_annotation",
    "write_kitti_labels",
]
