"""What do the maps of a center head say of every cell? Boxes from regressed values, classes from the head's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BRANCHES = {"center": 2, "center_z": 1, "dim": 3, "rot": 2}
"""Regressed maps of every part, in the order of the regression targets, and how many channels they have."""
CODE_SIZE = sum(BRANCHES.values())
"""Regressed values of a box: x and y in the cell, z, the logarithms of three sizes, cosine and sine of the heading."""


@dataclass(frozen=True)
class CenterCells:
    """The cells of a center head's map, row by row.

    Attributes:
        centers: ``(A, 2)`` metric x, y.
        size: metres of a cell along x and y.
    """

    centers: Tensor
    size: tuple[float, float]

    @torch.no_grad()
    def decode(self, codes_of_parts: Sequence[Tensor]) -> Tensor:
        """Make boxes of what the P parts of a head regress in every cell; no gradient flows.

        Args:
            codes_of_parts: P times ``(B, 8, H, W)``: x and y from the cell's lower corner, in cells; z in metres;
                logarithms of the sizes in metres; cosine and sine of the heading.

        Returns:
            ``(B, A, P, 7)`` float32, metres and radians.
        """
        codes = join_codes(codes_of_parts)
        size = codes.new_tensor(self.size)
        corners = (self.centers - size / 2)[:, None]
        heading = torch.atan2(codes[..., 7:8], codes[..., 6:7])
        return torch.cat([corners + codes[..., :2] * size, codes[..., 2:3], codes[..., 3:6].exp(), heading], dim=-1)


def codes_of(maps: Mapping[str, Tensor]) -> Tensor:
    """Join the regressed maps of one part: ``(B, 8, H, W)``."""
    return torch.cat([maps[name] for name in BRANCHES], dim=1)


def join_codes(codes_of_parts: Sequence[Tensor]) -> Tensor:
    """Bring what the P parts regress, ``(B, 8, H, W)`` each, into ``(B, A, P, 8)`` float32."""
    return torch.stack([part.flatten(2).transpose(1, 2) for part in codes_of_parts], dim=2).float()


@dataclass(frozen=True)
class ClassesOfParts:
    """Which part of a center head tells which of the detector's C classes.

    Attributes:
        order: ``(C,)`` int64, the place of each class among the parts' class maps, joined.
        parts: ``(C,)`` int64, the part that tells it.
    """

    order: Tensor
    parts: Tensor

    @classmethod
    def of(cls, labels_of_parts: Sequence[Tensor]) -> ClassesOfParts:
        """Read it from the labels that every part tells.

        Args:
            labels_of_parts: int64 labels in the order of each part's class maps; every label belongs to one part.
        """
        order = torch.cat(list(labels_of_parts)).argsort()
        parts = [torch.full_like(labels, number) for number, labels in enumerate(labels_of_parts)]
        return cls(order, torch.cat(parts)[order])

    def join(self, maps: Sequence[Tensor]) -> Tensor:
        """Bring the parts' maps ``(B, C_part, H, W)`` into ``(B, A, C)`` float32, classes in the detector's order."""
        return torch.cat([part.flatten(2) for part in maps], dim=1).transpose(1, 2)[:, :, self.order].float()

    def best_boxes(self, logits: Tensor, boxes: Tensor) -> Tensor:
        """Choose for every cell the box of the part with the best class.

        Args:
            logits: ``(B, A, C)``.
            boxes: ``(B, A, P, 7)`` of the P parts.

        Returns:
            ``(B, A, 7)``.
        """
        best = self.parts[logits.detach().argmax(dim=2)]
        return boxes.take_along_dim(best[:, :, None, None], dim=2).squeeze(2)

    def boxes_of_classes(self, boxes: Tensor) -> Tensor:
        """Give every class the box of its part.

        Args:
            boxes: ``(B, A, P, 7)`` of the P parts.

        Returns:
            ``(B, A, 7)`` where one part tells all classes, else ``(B, A, C, 7)``.
        """
        return boxes[:, :, 0] if boxes.shape[2] == 1 else boxes[:, :, self.parts]
