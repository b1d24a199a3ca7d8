"""What may a PFE section say? Frozen dataclasses, one a subsection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.keypoints.aggregation_config import read_aggregation
from cakdp_ext.detectors.keypoints.sampling import SectorSamplingConfig

POINT_SOURCES = ("raw_points", "voxel_centers")
SAMPLE_METHODS = ("FPS", "SPC")


@dataclass(frozen=True)
class SourceConfig:
    """What an entry of SA_LAYER says beside how features are gathered.

    Attributes:
        downsample_factor: stride of the source's voxels; checked against the backbone where given.
        input_channels: changes nothing, as the width is the backbone's; files for OpenPCDet have it.
        filter_neighbor_with_roi: gather from points near rois only.
        radius_of_neighbor_with_roi: metres beyond half a roi's diagonal that still are near.
    """

    downsample_factor: int | None = None
    input_channels: int | None = None
    filter_neighbor_with_roi: bool = False
    radius_of_neighbor_with_roi: float | None = None

    def __post_init__(self) -> None:
        if self.filter_neighbor_with_roi and self.radius_of_neighbor_with_roi is None:
            raise ValueError("FILTER_NEIGHBOR_WITH_ROI needs RADIUS_OF_NEIGHBOR_WITH_ROI in metres")


@dataclass(frozen=True)
class VoxelSetAbstractionConfig:
    """A PFE section of NAME VoxelSetAbstraction.

    Attributes:
        point_source: keypoints are chosen among ``raw_points`` or ``voxel_centers``.
        num_keypoints: how many of a frame.
        num_output_features: width of a keypoint's features.
        features_source: what keypoints gather from: ``bev``, ``raw_points``, or scales of the 3D backbone.
        sa_layer: how, source by source, name in either case; ``bev`` needs no entry.
        sample_method: ``FPS``, farthest points, or ``SPC``, near rois and sector by sector.
        spc_sampling: settings of ``SPC``.
    """

    point_source: str
    num_keypoints: int
    num_output_features: int
    features_source: tuple[str, ...]
    sa_layer: Mapping[str, Any]
    sample_method: str = "FPS"
    spc_sampling: SectorSamplingConfig | None = None

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("POINT_SOURCE", self.point_source, POINT_SOURCES),
            ("SAMPLE_METHOD", self.sample_method, SAMPLE_METHODS),
        ):
            if value not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}, got {value!r}")
        if self.sample_method == "SPC" and self.spc_sampling is None:
            raise ValueError("SAMPLE_METHOD SPC needs SPC_SAMPLING with NUM_SECTORS and SAMPLE_RADIUS_WITH_ROI")
        if self.num_keypoints < 1:
            raise ValueError(f"NUM_KEYPOINTS must be at least 1, got {self.num_keypoints}")
        if not self.features_source:
            raise ValueError("FEATURES_SOURCE must name at least one source, e.g. x_conv4")

    @property
    def voxel_sources(self) -> tuple[str, ...]:
        """The scales of the 3D backbone among the sources, in their order."""
        return tuple(name for name in self.features_source if name not in ("bev", "raw_points"))

    def source(self, name: str) -> tuple[SourceConfig, Any]:
        """Give the settings of one source, and how its features are gathered.

        Raises:
            ConfigError: when there are none, or unusable ones.
        """
        nodes = {key.upper(): node for key, node in self.sa_layer.items()}
        if name.upper() not in nodes:
            raise ConfigError(f"SA_LAYER of MODEL.PFE has no entry for {name} of FEATURES_SOURCE; add one")
        return read_aggregation(nodes[name.upper()], SourceConfig, f"MODEL.PFE.SA_LAYER.{name}")
