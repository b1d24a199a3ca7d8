"""What does a closer look at proposals say? Second stages of two-stage detectors."""

from cakdp_ext.detectors.roi_heads.proposals import Proposals
from cakdp_ext.detectors.roi_heads.roi_head import RoiHead, RoiOutput
from cakdp_ext.detectors.roi_heads.roi_targets import RoiTargets
from cakdp_ext.detectors.roi_heads.voxel_rcnn_head import VoxelRCNNHead

__all__ = ["Proposals", "RoiHead", "RoiOutput", "RoiTargets", "VoxelRCNNHead"]
