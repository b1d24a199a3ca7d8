"""What sees objects? The built-in engine's detectors, compatible with OpenPCDet's configurations and checkpoints."""

from cakdp_ext.detectors.backbones_2d import BaseBEVBackbone, BEVBackboneConfig
from cakdp_ext.detectors.backbones_3d import BackboneFeatures, VoxelBackBone8x, VoxelResBackBone8x
from cakdp_ext.detectors.build import build_detector
from cakdp_ext.detectors.center_head import CenterHead, CenterHeadIoU, PartMaps
from cakdp_ext.detectors.dense_heads import AnchorHeadSingle, AnchorHeadSingleIoU, HeadOutput
from cakdp_ext.detectors.first_stage import FirstStage, FirstStageOutput
from cakdp_ext.detectors.map_to_bev import HeightCompression
from cakdp_ext.detectors.one_stage import CenterPoint, SECONDNet
from cakdp_ext.detectors.part_a2 import PartA2Net
from cakdp_ext.detectors.point_head import PointHeadSimple
from cakdp_ext.detectors.pv_rcnn import PVRCNN, PVRCNNPlusPlus
from cakdp_ext.detectors.registry import (
    BACKBONES_2D,
    BACKBONES_3D,
    DENSE_HEADS,
    DETECTORS,
    MAPS_TO_BEV,
    ROI_HEADS,
    VOXEL_FEATURES,
)
from cakdp_ext.detectors.two_stage import RoiPredictions, TwoStageDetector
from cakdp_ext.detectors.unet import UNetV2
from cakdp_ext.detectors.voxel_features import MeanVFE
from cakdp_ext.detectors.voxel_rcnn import VoxelRCNN
from cakdp_ext.voxel_norm import VoxelBatchNorm1d

__all__ = [
    "BACKBONES_2D",
    "BACKBONES_3D",
    "DENSE_HEADS",
    "DETECTORS",
    "MAPS_TO_BEV",
    "ROI_HEADS",
    "VOXEL_FEATURES",
    "AnchorHeadSingle",
    "AnchorHeadSingleIoU",
    "BEVBackboneConfig",
    "BackboneFeatures",
    "BaseBEVBackbone",
    "CenterHead",
    "CenterHeadIoU",
    "CenterPoint",
    "FirstStage",
    "FirstStageOutput",
    "HeadOutput",
    "HeightCompression",
    "MeanVFE",
    "PVRCNN",
    "PVRCNNPlusPlus",
    "PartA2Net",
    "PartMaps",
    "PointHeadSimple",
    "RoiPredictions",
    "SECONDNet",
    "TwoStageDetector",
    "UNetV2",
    "VoxelBackBone8x",
    "VoxelBatchNorm1d",
    "VoxelRCNN",
    "VoxelResBackBone8x",
    "build_detector",
]
