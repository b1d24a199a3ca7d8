"""Street scenes from a generator, written in KITTI's or Waymo's layout, for whoever has no data set at hand.

A spinning LiDAR is cast against cars, pedestrians, cyclists and what is easily taken for them; every label is true by
construction. What a KITTI reader, ground-truth sampling and KITTI's evaluation need is all there.
"""

from cakdp_ext.datasets.scenes.config import (
    LidarConfig,
    SceneConfig,
    SequenceConfig,
    StreetConfig,
    TrafficConfig,
    read_scene_config,
)
from cakdp_ext.datasets.scenes.frame import FrameGenerator, SceneFrame
from cakdp_ext.datasets.scenes.segments import SegmentGenerator
from cakdp_ext.datasets.scenes.writer import SceneSummary, write_scenes

__all__ = [
    "FrameGenerator",
    "LidarConfig",
    "SceneConfig",
    "SceneFrame",
    "SceneSummary",
    "SegmentGenerator",
    "SequenceConfig",
    "StreetConfig",
    "TrafficConfig",
    "read_scene_config",
    "write_scenes",
]
