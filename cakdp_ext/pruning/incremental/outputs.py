"""What do differences do to the category predictions? Class logits as elements of nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from cakdp_ext.pruning.incremental.delta import Delta, split
from cakdp_ext.pruning.incremental.nodes import Node


class Output:
    """Class logits that are elements of one node.

    Args:
        number: of the node.
        node: the node.
        logits: ``(B, A, C)`` of the complete network.
        inside: ``(B, A, C)`` number of the element of the node that each logit is.
        is_mine: ``(B, A, C)`` which of them are its.
    """

    def __init__(self, number: int, node: Node, logits: Tensor, inside: Tensor, is_mine: Tensor) -> None:
        self.number, self.num_sites, self.num_anchors = number, node.sites.count, logits.shape[1]
        self.num_frames, size = len(logits), node.sites.count * node.width
        self.logits = logits.new_zeros(size)
        self._weights = torch.zeros(len(logits), size, device=logits.device)
        self._is_mine, self._elements = is_mine, []
        for frame, weights in enumerate(self._weights):
            place = inside[frame][is_mine[frame]]
            site = place.div(node.width, rounding_mode="floor")
            element = node.sites.label[site] * node.width + place - site * node.width
            self._elements.append(element)
            weights.index_add_(0, element, weights.new_ones(len(element)))
            self.logits[element] = logits[frame][is_mine[frame]]
        self.logits, self._weights = self.logits.view(-1, node.width), self._weights.view(len(logits), -1, node.width)
        self._scores = self.logits.float().sigmoid()

    def gaps(self, delta: Delta, num_removals: int) -> Tensor:
        """Give ``(removals, B)`` float64: Eq. 4's summand, see :meth:`IncrementalReplay.gaps`."""
        delta = delta.over_all(self.logits.shape[1])
        removal, site = split(delta.rows, self.num_sites)
        scores = (self.logits.index_select(0, site) + delta.values[:-1]).float().sigmoid()
        change = (scores - self._scores.index_select(0, site)).abs()
        gaps = torch.zeros(num_removals, self.num_frames, dtype=torch.float64, device=change.device)
        lengths = removal.bincount(minlength=num_removals).tolist()
        for frame, weights in enumerate(self._weights):
            of_rows = (change * weights.index_select(0, site)).sum(dim=1, dtype=torch.float64)
            gaps[:, frame] = torch.stack([part.sum() for part in of_rows.split(lengths)])
        return gaps / self.num_anchors

    def write(self, delta: Delta, logits: Tensor) -> None:
        """Add the differences of one removal to ``(B, A, C)`` logits."""
        change = torch.zeros_like(self.logits)
        change[delta.rows] = delta.over_all(self.logits.shape[1]).values[:-1].to(change.dtype)
        for frame, element in enumerate(self._elements):
            logits[frame][self._is_mine[frame]] += change.view(-1)[element]
