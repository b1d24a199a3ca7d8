"""What do the points in balls around a place know? Set abstraction at one or several radii."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cakdp_ext import ops
from cakdp_ext.detectors.keypoints.aggregation import Aggregation
from cakdp_ext.detectors.keypoints.aggregation_config import BallPoolingConfig
from cakdp_ext.detectors.point_features import PointFeatures
from cakdp_ext.detectors.row_layers import RowConv2d, hidden_layers


class BallPooling(Aggregation):
    """Lifts the features of the points in each ball, their offsets from its centre beside them, and takes the largest.

    A ball without points pools one point without features at its centre.

    Args:
        in_channels: width of the source's features.
        config: radii and widths.

    Source: PointNet++ (Qi et al., NeurIPS 2017), section 3.2 and 3.3 (multi-scale grouping), as used in PV-RCNN (Shi et
        al., CVPR 2020), section 3.2, with OpenPCDet's tensor names.
    """

    def __init__(self, in_channels: int, config: BallPoolingConfig) -> None:
        super().__init__()
        self.config = config
        self.mlps = nn.ModuleList(hidden_layers(RowConv2d, 3 + in_channels, widths) for widths in config.mlps)
        self.out_channels = sum(widths[-1] for widths in config.mlps)
        self.start()

    def forward(self, source: PointFeatures, xyz: Tensor, counts: Tensor) -> Tensor:
        """Pool around places; see :meth:`Aggregation.forward`."""
        radii, sizes = list(self.config.pool_radius), list(self.config.nsample)
        found = ops.ball_query(source.xyz, source.counts(len(counts)), xyz, counts, radii, sizes)
        known = F.pad(torch.cat((source.xyz, source.features.float()), dim=1), (0, 0, 0, 1))
        pooled = [self._pool(mlp, known, xyz, *each) for mlp, each in zip(self.mlps, found, strict=True)]
        return torch.cat(pooled, dim=1)

    def _pool(self, mlp: nn.Module, known: Tensor, xyz: Tensor, index: Tensor, empty: Tensor) -> Tensor:
        """Pool one radius: ``known (N + 1, 3 + C)``, its last row zeros, ``index (Q, S)`` -> ``(Q, out)``."""
        nothing = len(known) - 1
        grouped = ops.group_points(known, index.masked_fill(empty.unsqueeze(1), nothing)).transpose(1, 2)
        centers = F.pad(xyz.masked_fill(empty.unsqueeze(1), 0.0), (0, known.shape[1] - 3))
        rows = (grouped - centers.unsqueeze(1)).flatten(0, 1)
        lifted = mlp(rows)
        return lifted.view(*index.shape, lifted.shape[1]).max(dim=1).values
