"""Voxel set abstraction: keypoints gather what voxels, raw points and the bird's-eye view know around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.backbones_3d import BackboneFeatures
from cakdp_ext.detectors.keypoints.aggregation import Aggregation
from cakdp_ext.detectors.keypoints.build import build_aggregation
from cakdp_ext.detectors.keypoints.config import SourceConfig, VoxelSetAbstractionConfig
from cakdp_ext.detectors.keypoints.sampling import near_rois, sample_farthest, sample_sectors
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.registry import POINT_ENCODERS
from cakdp_ext.types import Batch, LidarGeometry
from cakdp_ext.voxel_norm import VoxelBatchNorm1d

RAW_POINTS = "raw_points"


@dataclass(frozen=True)
class KeypointSources:
    """What keypoints are chosen from and gather from, before there are rois.

    Attributes:
        batch_size: number of frames B.
        candidates: ``(N, 3)`` metres, where keypoints may lie, frame after frame.
        counts: ``(B,)`` int64, how many candidates each frame has.
        clouds: what raw points and voxels know, by name of the source.
        bev_map: ``(B, C, H, W)`` that the 2D backbone reads.
        stride: of that map with respect to the voxel grid.
    """

    batch_size: int
    candidates: Tensor
    counts: Tensor
    clouds: Mapping[str, PointFeatures]
    bev_map: Tensor
    stride: int


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of all frames.

    Attributes:
        fused: with features of NUM_OUTPUT_FEATURES channels.
        gathered: the same points with what was gathered, source beside source.
    """

    fused: PointFeatures
    gathered: PointFeatures


@POINT_ENCODERS.register("VoxelSetAbstraction")
class VoxelSetAbstraction(nn.Module):
    """Chooses keypoints and gathers features from every source at each of them.

    Args:
        config: the section's keys.
        widths: channels of the sources by name: ``bev``, ``raw_points`` (without x, y and z) and the scales of the 3D
            backbone.
        strides: of the scales with respect to the voxel grid.
        geometry: range and voxel grid of the points.

    Attributes:
        num_point_features: width of a keypoint's features.
        num_gathered_features: width of what was gathered, before it is fused.
        needs_rois: whether keypoints, or what they gather, depend on rois.

    Raises:
        ConfigError: for sources that are not there, or settings that do not fit them.

    Source: PV-RCNN (Shi et al., CVPR 2020), section 3.2; PV-RCNN++ (Shi et al., IJCV 2023), with OpenPCDet's tensor
        names.
    """

    Config = VoxelSetAbstractionConfig
    settings: dict[str, SourceConfig]
    needs_rois: bool

    def __init__(
        self,
        config: VoxelSetAbstractionConfig,
        widths: Mapping[str, int],
        strides: Mapping[str, int],
        geometry: LidarGeometry,
    ) -> None:
        super().__init__()
        unknown = [name for name in config.features_source if name not in widths]
        if unknown:
            raise ConfigError(
                f"FEATURES_SOURCE of MODEL.PFE names {', '.join(unknown)}; this detector has {', '.join(widths)}"
            )
        self.config, self.geometry = config, geometry
        self.settings = {}
        layers = {name: self._layer(name, widths, strides) for name in config.features_source if name != "bev"}
        self.SA_layers = nn.ModuleList(layers[name] for name in config.voxel_sources)
        if RAW_POINTS in layers:
            self.SA_rawpoints = layers[RAW_POINTS]
        self.num_gathered_features = sum(layer.out_channels for layer in layers.values())
        if "bev" in config.features_source:
            self.num_gathered_features += widths["bev"]
        self.num_point_features = config.num_output_features
        self.vsa_point_feature_fusion = nn.Sequential(
            nn.Linear(self.num_gathered_features, self.num_point_features, bias=False),
            VoxelBatchNorm1d(self.num_point_features),
            nn.ReLU(),
        )
        is_filtered = any(settings.filter_neighbor_with_roi for settings in self.settings.values())
        self.needs_rois = config.sample_method == "SPC" or is_filtered

    def _layer(self, name: str, widths: Mapping[str, int], strides: Mapping[str, int]) -> Aggregation:
        self.settings[name], aggregation = self.config.source(name)
        stride = self.settings[name].downsample_factor
        if name != RAW_POINTS and stride not in (None, strides[name]):
            raise ConfigError(
                f"DOWNSAMPLE_FACTOR of MODEL.PFE.SA_LAYER.{name} is {stride}, but the backbone's stride there is "
                f"{strides[name]}; write that"
            )
        return build_aggregation(widths[name], aggregation, f"MODEL.PFE.SA_LAYER.{name}")

    def sources(self, batch: Batch, backbone: BackboneFeatures, bev_map: Tensor) -> KeypointSources:
        """Bring together what keypoints need of a batch.

        Args:
            batch: with its points, where they are a source.
            backbone: the scales of the 3D backbone.
            bev_map: ``(B, C, H, W)`` that the 2D backbone reads.

        Raises:
            ValueError: for a batch without its points where they are needed.
        """
        clouds = {
            name: PointFeatures.of_sparse(backbone.multi_scale[name], backbone.strides[name], self.geometry)
            for name in self.config.voxel_sources
        }
        if RAW_POINTS in (self.config.point_source, *self.config.features_source):
            clouds[RAW_POINTS] = PointFeatures.of_points(_points_of(batch))
        if self.config.point_source == RAW_POINTS:
            candidates = clouds[RAW_POINTS]
        else:
            coords = batch.voxel_coords
            candidates = PointFeatures.of_voxels(coords, coords.new_zeros(len(coords), 0), 1, self.geometry)
        counts = candidates.counts(batch.batch_size)
        stride = backbone.strides["encoded"]
        return KeypointSources(batch.batch_size, candidates.xyz, counts, clouds, bev_map, stride)

    def forward(self, sources: KeypointSources, rois: Tensor | None = None) -> Keypoints:
        """Choose keypoints and describe them.

        Args:
            sources: of :meth:`sources`, B frames.
            rois: ``(B, K, 7)`` metres and radians, where ``needs_rois``; rows of zeros are padding.

        Returns:
            The keypoints; none in a frame without points.

        Raises:
            ValueError: without rois where they are needed.
        """
        if self.needs_rois and rois is None:
            raise ValueError("these keypoints lie around rois; give them")
        rows = self._sample(sources, rois)
        xyz, counts = sources.candidates[rows], sources.counts
        frames = torch.arange(len(counts), device=xyz.device).repeat_interleave(counts)[rows]
        with torch.autocast(xyz.device.type, enabled=False):
            gathered = self._gather(sources, xyz, frames, rois)
            fused = self.vsa_point_feature_fusion(gathered)
        return Keypoints(PointFeatures(xyz, frames, fused), PointFeatures(xyz, frames, gathered))

    def _sample(self, sources: KeypointSources, rois: Tensor | None) -> Tensor:
        config = self.config
        if config.sample_method == "FPS" or rois is None or config.spc_sampling is None:
            return sample_farthest(sources.candidates, sources.counts, config.num_keypoints)
        return sample_sectors(sources.candidates, sources.counts, rois, config.num_keypoints, config.spc_sampling)

    def _gather(self, sources: KeypointSources, xyz: Tensor, frames: Tensor, rois: Tensor | None) -> Tensor:
        """Put what every source knows side by side: the map, raw points, then voxels ``(P, C)``."""
        counts = torch.bincount(frames, minlength=sources.batch_size)
        found = []
        if "bev" in self.config.features_source:
            found.append(self._read_map(sources, xyz, frames))
        layers = dict(zip(self.config.voxel_sources, self.SA_layers, strict=True))
        if RAW_POINTS in self.settings:
            layers = {RAW_POINTS: self.SA_rawpoints, **layers}
        for name, layer in layers.items():
            found.append(layer(self._near(name, sources, rois), xyz, counts))
        return torch.cat(found, dim=1)

    def _near(self, name: str, sources: KeypointSources, rois: Tensor | None) -> PointFeatures:
        """Give the points of a source that may be gathered from."""
        cloud, radius = sources.clouds[name], self.settings[name].radius_of_neighbor_with_roi
        if not self.settings[name].filter_neighbor_with_roi or rois is None or radius is None:
            return cloud
        return cloud.where(near_rois(cloud.xyz, cloud.counts(sources.batch_size), rois, radius))

    def _read_map(self, sources: KeypointSources, xyz: Tensor, frames: Tensor) -> Tensor:
        """Interpolate the map at places ``(P, 3)``."""
        geometry = self.geometry
        x, y = (
            (xyz[:, axis] - geometry.point_cloud_range[axis]) / geometry.voxel_size[axis] / sources.stride
            for axis in range(2)
        )
        return interpolate_map(sources.bev_map.float(), frames, x, y)


def interpolate_map(bev_map: Tensor, frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate between the four nearest cells of a map whose value belongs to the lower corner of its cell.

    Args:
        bev_map: ``(B, C, H, W)``.
        frames: ``(P,)`` int64.
        x: ``(P,)`` in cells, along W.
        y: ``(P,)`` in cells, along H.

    Returns:
        ``(P, C)``, zeros beyond the first and from the last row or column on, as OpenPCDet's checkpoints expect.
    """
    _, channels, height, width = bev_map.shape
    left, low = x.floor(), y.floor()
    is_within = (left >= 0) & (left < width - 1) & (low >= 0) & (low < height - 1)
    right_share, high_share = x - left, y - low
    weights = torch.stack(
        [
            (1 - right_share) * (1 - high_share),
            right_share * (1 - high_share),
            (1 - right_share) * high_share,
            right_share * high_share,
        ],
        dim=1,
    )
    corner = (frames * height + low.long()) * width + left.long()
    cells = torch.stack([corner, corner + 1, corner + width, corner + width + 1], dim=1)
    cells = cells.masked_fill(~is_within.unsqueeze(1), 0)
    weights = weights.masked_fill(~is_within.unsqueeze(1), 0.0)
    table = bev_map.permute(0, 2, 3, 1).reshape(-1, channels)
    return F.embedding_bag(cells, table, per_sample_weights=weights, mode="sum")


def _points_of(batch: Batch) -> Tensor:
    if batch.points is None:
        raise ValueError(
            "MODEL.PFE reads raw points, but the batch has none; set DATA_CONFIG.KEEP_POINTS: True (or change "
            "POINT_SOURCE and FEATURES_SOURCE)"
        )
    return batch.points
