"""How does a sparse 3D tensor become a bird's-eye view?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.registry import MAPS_TO_BEV


def height_to_channels(encoded: Any) -> Tensor:
    """Lay a sparse tensor's height layers out as channels of a dense map.

    Args:
        encoded: ``SparseConvTensor`` with ``(V, C)`` features and spatial shape ``(D, H, W)``; V may be 0.

    Returns:
        ``(B, C * D, H, W)``, channel ``c * D + d``; zero where no voxel is active. Laid out channels-last in memory on
        CPU, where the convolutions behind it are twice as fast that way.
    """
    features, (depth, height, width) = encoded.features, encoded.spatial_shape
    frame, z, y, x = encoded.indices.long().unbind(1)
    canvas = features.new_zeros(encoded.batch_size, height, width, features.shape[1], depth)
    canvas.transpose(3, 4)[frame, y, x, z] = features
    bev = canvas.flatten(3).permute(0, 3, 1, 2)
    return bev if bev.device.type == "cpu" else bev.contiguous()


@dataclass(frozen=True)
class HeightCompressionConfig:
    """Keys of MAP_TO_BEV.

    Attributes:
        num_bev_features: channels that the map is expected to have; checked where given.
    """

    num_bev_features: int | None = None


@MAPS_TO_BEV.register("HeightCompression")
class HeightCompression(nn.Module):
    """Height layers become channels; how many there are is read off the tensor, so a pruned backbone just works.

    Args:
        config: the section's keys.
        in_channels: channels of the sparse tensor.
        num_heights: its layers along z.
    """

    Config = HeightCompressionConfig

    def __init__(self, config: HeightCompressionConfig, in_channels: int, num_heights: int) -> None:
        super().__init__()
        self.num_bev_features = in_channels * num_heights
        if config.num_bev_features not in (None, self.num_bev_features):
            raise ConfigError(
                f"MODEL.MAP_TO_BEV.NUM_BEV_FEATURES is {config.num_bev_features}, but the 3D backbone leaves "
                f"{in_channels} channels x {num_heights} height layers; write {self.num_bev_features}"
            )

    def forward(self, encoded: Any) -> Tensor:
        """Make the ``(B, C * D, H, W)`` map of a ``SparseConvTensor``."""
        return height_to_channels(encoded)
