"""What is known about single points?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PointFeatures:
    """Points of all frames and what is known about them.

    Attributes:
        xyz: ``(N, 3)`` metres, LiDAR frame.
        frames: ``(N,)`` int64 frame of each, ascending.
        features: ``(N, C)``.
    """

    xyz: Tensor
    frames: Tensor
    features: Tensor

    def counts(self, num_frames: int) -> Tensor:
        """Say how many points ``(num_frames,)`` int64 each frame has."""
        return torch.bincount(self.frames, minlength=num_frames)
