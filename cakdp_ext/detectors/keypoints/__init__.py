"""What do few points know of a whole scene? Keypoints, and how they gather what lies around them."""

from cakdp_ext.detectors.keypoints.aggregation import Aggregation
from cakdp_ext.detectors.keypoints.build import build_aggregation
from cakdp_ext.detectors.keypoints.voxel_set_abstraction import Keypoints, KeypointSources, VoxelSetAbstraction

__all__ = ["Aggregation", "KeypointSources", "Keypoints", "VoxelSetAbstraction", "build_aggregation"]
