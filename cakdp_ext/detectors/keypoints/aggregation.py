"""Gathering what points know around given places."""

from __future__ import annotations

from torch import Tensor, nn

from cakdp_ext.detectors.point_features import PointFeatures


class Aggregation(nn.Module):
    """Base of modules that gather what points know around given places.

    Attributes:
        out_channels: width of what is gathered.
    """

    out_channels: int

    def forward(self, source: PointFeatures, xyz: Tensor, counts: Tensor) -> Tensor:
        """Gather.

        Args:
            source: points of B frames that know something; there may be none.
            xyz: ``(Q, 3)`` metres, the places, frame after frame.
            counts: ``(B,)`` int64, places in each frame.

        Returns:
            ``(Q, out_channels)``; no rows for no places.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Give fresh convolutions weights that keep the scale of what they read (He et al., 2015)."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
