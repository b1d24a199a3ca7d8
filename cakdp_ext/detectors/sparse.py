"""Sparse convolution blocks that bear emptiness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cakdp_ext.spconv_on_cpu import cure_cpu_faults, load_spconv

spconv = load_spconv()
cure_cpu_faults()


class SparseBlock(spconv.SparseSequential):  # type: ignore[name-defined]
    """A sparse convolution followed by modules that work on its features; no active voxel gives none, without error.

    spconv refuses an empty input and skips the norms behind an empty output, which would take their parameters out of
    the graph and let a distributed run wait for gradients that never come.
    """

    def forward(self, input: Any) -> Any:
        """Run the block on a ``SparseConvTensor``."""
        for module in self.children():
            if isinstance(module, spconv.SparseModule):
                input = convolve(module, input)
            else:
                input = input.replace_feature(module(input.features))
        return input


class SparseResidual(spconv.SparseModule):  # type: ignore[name-defined]
    """Two submanifold convolutions, each with a norm, whose result is added to what came in; bears no active voxel.

    Args:
        channels: of the input and of the output.
        norm: makes a norm from a number of channels.
        key: under which spconv keeps the rulebook.
        use_bias: give the convolutions a bias, as every published checkpoint has it, although a norm follows.

    Source: He et al., Deep Residual Learning for Image Recognition (2016), section 3.3, with OpenPCDet's tensor names.
    """

    def __init__(self, channels: int, norm: Callable[[int], nn.Module], key: str, use_bias: bool = True) -> None:
        super().__init__()
        self.conv1 = spconv.SubMConv3d(channels, channels, 3, padding=1, bias=use_bias, indice_key=key)
        self.bn1 = norm(channels)
        self.conv2 = spconv.SubMConv3d(channels, channels, 3, padding=1, bias=use_bias, indice_key=key)
        self.bn2 = norm(channels)
        self.relu = nn.ReLU()

    def forward(self, input: Any) -> Any:
        """Run the block on a ``SparseConvTensor``; its voxels stay the same."""
        hidden = convolve(self.conv1, input)
        hidden = convolve(self.conv2, hidden.replace_feature(self.relu(self.bn1(hidden.features))))
        return hidden.replace_feature(self.relu(self.bn2(hidden.features) + input.features))


def convolve(conv: Any, input: Any) -> Any:
    """Run a sparse convolution on a ``SparseConvTensor``, which may have no active voxel."""
    return conv(input) if len(input.features) else convolve_nothing(conv, input)


def convolve_nothing(conv: Any, empty: Any) -> Any:
    """Give what a sparse convolution makes of a tensor without active voxels.

    Args:
        conv: a sparse convolution that is neither transposed nor inverse; see :func:`convolve_back` for the latter.
        empty: a ``SparseConvTensor`` with no voxel.

    Returns:
        A ``SparseConvTensor`` with no voxel, the convolution's channels and output shape; gradients reach weight and
        bias, as zeros.
    """
    from spconv.pytorch import ops

    out = empty.replace_feature(_convolved_nothing(conv, empty.features))
    if not conv.subm:
        shape = ops.get_conv_output_size(
            empty.spatial_shape, conv.kernel_size, conv.stride, conv.padding, conv.dilation
        )
        out.spatial_shape = list(shape)
    return out


def _convolved_nothing(conv: Any, features: Tensor) -> Tensor:
    """Give ``(0, out)`` features for ``(0, in)``, with weight and bias in the graph."""
    weight = conv.weight.reshape(len(conv.weight), -1, conv.weight.shape[-1])[:, 0]
    out = features @ weight.T
    return out if conv.bias is None else out + conv.bias


def convolve_back(conv: Any, input: Any, finer: Any) -> Any:
    """Run an inverse sparse convolution, which goes back from the voxels of a strided one to those it came from.

    Args:
        conv: the inverse convolution, of the same key as the strided one, without bias.
        input: a ``SparseConvTensor`` on the coarse voxels; there may be none.
        finer: a ``SparseConvTensor`` on the voxels that the strided convolution read.

    Returns:
        A ``SparseConvTensor`` on the voxels of ``finer``, zeros where no coarse voxel is near.
    """
    if len(input.features):
        return conv(input)
    nothing = _convolved_nothing(conv, input.features).sum(dim=0)
    return finer.replace_feature(nothing.expand(len(finer.features), -1))


class InverseBlock(spconv.SparseSequential):  # type: ignore[name-defined]
    """An inverse sparse convolution with a norm and a ReLU; bears no active voxel.

    Args:
        in_channels: of the coarse voxels.
        out_channels: of the fine ones.
        norm: makes a norm from a number of channels.
        key: of the strided convolution whose way it goes back.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Callable[[int], nn.Module], key: str) -> None:
        conv = spconv.SparseInverseConv3d(in_channels, out_channels, 3, indice_key=key, bias=False)
        super().__init__(conv, norm(out_channels), nn.ReLU())

    def forward(self, input: Any, finer: Any) -> Any:
        """Carry a ``SparseConvTensor`` back to the voxels of ``finer``."""
        conv, norm, relu = self.children()
        fine = convolve_back(conv, input, finer)
        return fine.replace_feature(relu(norm(fine.features)))


def conv_block(conv: Any, norm: Callable[[int], nn.Module]) -> SparseBlock:
    """Put a norm and a ReLU behind a sparse convolution.

    Args:
        conv: the convolution.
        norm: makes the norm from a number of channels.
    """
    return SparseBlock(conv, norm(conv.out_channels), nn.ReLU())
