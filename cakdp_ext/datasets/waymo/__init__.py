"""Waymo: its processed segments, its ground-truth database, its frames."""

from cakdp_ext.datasets.waymo.dataset import SweepReader, WaymoDataset
from cakdp_ext.datasets.waymo.infos import make_waymo_infos
from cakdp_ext.datasets.waymo.writer import WaymoLabel, WaymoSweep, write_segment
from cakdp_ext.waymo_layout import WaymoFolder

__all__ = [
    "SweepReader",
    "WaymoDataset",
    "WaymoFolder",
    "WaymoLabel",
    "WaymoSweep",
    "make_waymo_infos",
    "write_segment",
]
