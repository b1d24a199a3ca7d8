"""From a configuration to a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.registry import DETECTORS
from cakdp_ext.pruning import narrow_, read_width
from cakdp_ext.types import LidarGeometry


def build_detector(model_cfg: Mapping[str, Any], class_names: Sequence[str], geometry: LidarGeometry) -> nn.Module:
    """Build the detector that MODEL describes, with fresh weights, as narrow as MODEL.WIDTH says.

    Args:
        model_cfg: MODEL's mapping; never changed.
        class_names: classes by label.
        geometry: range and voxel grid of the points.

    Raises:
        ConfigError: for an unknown NAME anywhere (the known ones are listed), unknown or missing keys, or sections
            that do not fit each other.
    """
    if not class_names:
        raise ConfigError("CLASS_NAMES is empty; name at least one class")
    detector: nn.Module = DETECTORS.find(model_cfg.get("NAME"))(deepcopy(model_cfg), tuple(class_names), geometry)
    width = read_width(model_cfg)
    if width is not None:
        narrow_(detector, width, geometry)
    return detector
