"""Layers over rows of features, under the names and shapes that OpenPCDet's 1x1 convolutions have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cakdp_ext.voxel_norm import VoxelBatchNorm1d


class RowConv1d(nn.Conv1d):
    """A 1x1 convolution over rows of one column, computed as the matrix product that it is.

    For the first layer of a second stage that is several times faster on CPU.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: add one.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, 1, bias=bias)
        nn.init.xavier_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(R, in)`` to ``(R, out)``."""
        return F.linear(input, self.weight.squeeze(-1), self.bias)


class RowBatchNorm1d(VoxelBatchNorm1d):
    """Batch norm over very many rows that keeps float32's precision in training.

    PyTorch adds up the rows of a matrix one by one in float32 on CPU; the columns of a transposed one it adds up in
    float64.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(R, C)`` features."""
        if not self.training or input.is_cuda or len(input) < 2:
            return super().forward(input)
        return nn.BatchNorm1d.forward(self, input.t().contiguous().unsqueeze(0)).squeeze(0).t()


class RowConv2d(nn.Conv2d):
    """A 1x1 convolution without bias over rows of one pixel, computed as the matrix product that it is.

    Args:
        in_features: width of the input.
        out_features: width of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, 1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(R, in)`` to ``(R, out)``."""
        return F.linear(input, self.weight.flatten(1))


class GroupedRowConv1d(nn.Conv1d):
    """A 1x1 convolution without bias of G groups over rows, each group a matrix product of its own.

    Args:
        groups: G.
        in_features: width of the input of one group.
        out_features: width of the output of one group.
    """

    def __init__(self, groups: int, in_features: int, out_features: int) -> None:
        super().__init__(groups * in_features, groups * out_features, 1, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(R, G, in)`` to ``(R, G * out)``."""
        weight = self.weight.squeeze(-1).unflatten(0, (self.groups, -1))
        return torch.bmm(input.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1).flatten(1)


def hidden_layers(layer: Callable[[int, int], nn.Module], in_features: int, widths: Sequence[int]) -> nn.Sequential:
    """Stack layers over rows, batch norm and ReLU behind each; bears one row and none.

    Args:
        layer: makes a layer of two widths.
        in_features: width of the input.
        widths: of the layers.
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += [layer(in_features, width), RowBatchNorm1d(width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers)


def shared_layers(
    in_features: int, widths: Sequence[int], dropout: float, layer: Callable[[int, int], nn.Module] | None = None
) -> nn.Sequential:
    """Stack the layers that all branches share: batch norm and ReLU behind each, dropout between two.

    Args:
        in_features: width of the input.
        widths: of the layers; none gives an identity.
        dropout: share that is dropped; 0 leaves the dropout layers out.
        layer: makes a layer of two widths; ``RowConv1d`` by default.
    """
    layer = layer or RowConv1d
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        if index and dropout > 0:
            layers.append(nn.Dropout(dropout))
        layers += [layer(in_features, width), nn.BatchNorm1d(width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers)


def branch_layers(
    in_features: int, widths: Sequence[int], out_features: int, dropout: float, spread: float
) -> nn.Sequential:
    """Stack the layers of a branch: batch norm and ReLU behind each, dropout behind the first, an output with bias.

    Args:
        in_features: width of the input.
        widths: of the hidden layers; there may be none.
        out_features: width of the output.
        dropout: share that is dropped.
        spread: standard deviation of the fresh output's weights.
    """
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        layers += [RowConv1d(in_features, width), nn.BatchNorm1d(width), nn.ReLU()]
        if index == 0:
            layers.append(nn.Dropout(dropout))
        in_features = width
    output = RowConv1d(in_features, out_features, bias=True)
    nn.init.normal_(output.weight, std=spread)
    return nn.Sequential(*layers, output)
