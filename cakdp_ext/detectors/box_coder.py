"""How is a box written as residuals with respect to an anchor?"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SIZE = 1e-5
"""Smallest size, metres, that is encoded: the logarithm of nothing is not a number."""


class ResidualCoder:
    """Seven residuals: offsets by the anchor's BEV diagonal and height, log ratios of the sizes, heading difference.

    Source: SECOND (Yan et al., Sensors 2018), section 3.3.1, equation for box regression targets.
    """

    code_size = 7

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Write boxes as deltas.

        Args:
            boxes: ``(..., 7)``, metres and radians.
            anchors: ``(..., 7)``, broadcastable to ``boxes``.

        Returns:
            ``(..., 7)`` deltas.
        """
        sizes, anchor_sizes = boxes[..., 3:6].clamp(min=MIN_SIZE), anchors[..., 3:6].clamp(min=MIN_SIZE)
        offsets = (boxes[..., :3] - anchors[..., :3]) / _units(anchor_sizes)
        return torch.cat([offsets, torch.log(sizes / anchor_sizes), boxes[..., 6:7] - anchors[..., 6:7]], dim=-1)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Turn deltas back into boxes; the inverse of :meth:`encode`.

        Args:
            deltas: ``(..., 7)``.
            anchors: ``(..., 7)``, broadcastable to ``deltas``.

        Returns:
            ``(..., 7)`` boxes, metres and radians; headings are not brought into one period.
        """
        centers = deltas[..., :3] * _units(anchors[..., 3:6]) + anchors[..., :3]
        sizes = torch.exp(deltas[..., 3:6]) * anchors[..., 3:6]
        return torch.cat([centers, sizes, deltas[..., 6:7] + anchors[..., 6:7]], dim=-1)


def _units(sizes: Tensor) -> Tensor:
    """Give what one unit of x, y and z offset is, in metres, for anchors of ``sizes (..., 3)``."""
    diagonal = sizes[..., :2].norm(dim=-1, keepdim=True)
    return torch.cat([diagonal, diagonal, sizes[..., 2:3]], dim=-1)
