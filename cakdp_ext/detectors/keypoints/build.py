"""From a section to the module that gathers."""

from __future__ import annotations

from typing import Any

from cakdp_ext.detectors.keypoints.aggregation import Aggregation
from cakdp_ext.detectors.keypoints.aggregation_config import BallPoolingConfig
from cakdp_ext.detectors.keypoints.ball_pooling import BallPooling
from cakdp_ext.detectors.keypoints.vector_pooling import VectorPooling


def build_aggregation(in_channels: int, config: Any, where: str) -> Aggregation:
    """Build the module that a section describes.

    Args:
        in_channels: width of the source's features.
        config: a value of ``aggregation_config.AGGREGATIONS``.
        where: what errors call the section.

    Raises:
        ConfigError: for widths that do not fit each other.
    """
    if isinstance(config, BallPoolingConfig):
        return BallPooling(in_channels, config)
    return VectorPooling(in_channels, config, where)
