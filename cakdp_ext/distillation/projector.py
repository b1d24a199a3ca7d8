"""How does a feature of the student become one that can be compared with the teacher's? By what is trained with it."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class MapProjector(nn.Module):
    """Brings maps of the student to the channels and the cells of the teacher's; both cover the same range.

    Where nothing differs it changes nothing and has no parameters. Otherwise a 1x1 convolution with bias mixes the
    channels, and where the cells differ the map is resized behind it: averaged over the cells within a coarser one,
    interpolated between the centres of cells for a finer one. It must be used in every step that makes it train.

    Args:
        student: ``(B, C, H, W)`` of the student; only its shape counts.
        teacher: ``(B, C', H', W')`` of the teacher.
    """

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        self.size = (int(teacher.shape[2]), int(teacher.shape[3]))
        is_same = student.shape[1:] == teacher.shape[1:]
        self.mix = nn.Identity() if is_same else nn.Conv2d(student.shape[1], teacher.shape[1], 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Project ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        mixed: Tensor = self.mix(maps)
        if mixed.shape[2:] == self.size:
            return mixed
        if mixed.shape[2] >= self.size[0] and mixed.shape[3] >= self.size[1]:
            return F.adaptive_avg_pool2d(mixed, self.size)
        return F.interpolate(mixed, self.size, mode="bilinear", align_corners=False)


class RowProjector(nn.Module):
    """Brings rows of features of the student, such as those of voxels, to the width of the teacher's.

    Where the widths are the same it changes nothing and has no parameters. It must be used in every step that makes it
    train.

    Args:
        student: ``(N, C)`` of the student; only its shape counts.
        teacher: ``(M, C')`` of the teacher.
    """

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        is_same = student.shape[1] == teacher.shape[1]
        self.mix = nn.Identity() if is_same else nn.Linear(student.shape[1], teacher.shape[1])

    def forward(self, rows: Tensor) -> Tensor:
        """Project ``(N, C)`` to ``(N, C')``."""
        projected: Tensor = self.mix(rows)
        return projected
