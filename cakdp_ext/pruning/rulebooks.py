"""What does a sparse convolution connect? Pairs of its rulebook, counted, and rulebooks found once used again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

_FINDERS = ("get_indice_pairs", "get_indice_pairs_implicit_gemm")
_SCRATCH = ("alloc", "timer")


def num_pairs(conv: Any, input: Any, output: Any) -> int:
    """Count the (input voxel, output voxel) pairs that one call of a sparse convolution multiplied.

    Args:
        conv: spconv convolution of any kind.
        input: sparse tensor that it was given.
        output: sparse tensor that it gave.

    Returns:
        Pairs over all kernel offsets; multiplied by input and output channels they are its multiply-accumulates.
    """
    if conv.conv1x1:
        return int(input.features.shape[0])
    rulebook = output.indice_dict.get(conv.indice_key) if conv.indice_key is not None else None
    if rulebook is None:
        return _pairs_per_offset(conv.subm, _find(conv, input), len(input.indices))
    if hasattr(rulebook, "pair_fwd"):
        return int((rulebook.pair_fwd >= 0).sum())
    return _pairs_per_offset(rulebook.is_subm, rulebook.indice_pair_num, len(rulebook.indices))


def _pairs_per_offset(is_submanifold: bool, counts: Tensor, num_voxels: int) -> int:
    """Sum a native rulebook's counts; a submanifold one counts half of its offsets and leaves out the centre."""
    if not is_submanifold:
        return int(counts.sum())
    return 2 * int(counts[: len(counts) // 2].sum()) + num_voxels


def _find(conv: Any, input: Any) -> Tensor:
    """Count the pairs of a convolution that keeps no rulebook."""
    from spconv.core import ConvAlgo
    from spconv.pytorch import ops

    return ops.get_indice_pairs(
        input.indices,
        input.batch_size,
        input.spatial_shape,
        ConvAlgo.Native,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.output_padding,
        conv.subm,
        conv.transposed,
    )[2]


class RulebookMemory:
    """Answers spconv's searches for rulebooks with those found before for the very same voxel indices.

    Rulebooks depend on voxel indices, never on features, so forwards that differ in their channels alone share them.
    Does nothing where spconv is not loaded. Not for use from several threads.

    Attributes:
        is_learning: whether rulebooks that are found now are remembered.
    """

    def __init__(self) -> None:
        self.is_learning = True
        self._found: dict[Any, tuple[Tensor, Any]] = {}

    @contextmanager
    def installed(self) -> Iterator[RulebookMemory]:
        """Answer while the context is open, then put spconv's own functions back and forget."""
        ops = sys.modules.get("spconv.pytorch.ops")
        originals = {name: getattr(ops, name) for name in _FINDERS if ops is not None}
        try:
            for name, find in originals.items():
                setattr(ops, name, self._answering(find))
            yield self
        finally:
            for name, find in originals.items():
                setattr(ops, name, find)
            self._found.clear()

    def _answering(self, find: Callable[..., Any]) -> Callable[..., Any]:
        def answer(indices: Tensor, *args: Any, **kwargs: Any) -> Any:
            question = {name: value for name, value in kwargs.items() if name not in _SCRATCH}
            key = (indices.data_ptr(), tuple(indices.shape), repr(args), repr(question))
            if key in self._found:
                return self._found[key][1]
            rulebook = find(indices, *args, **kwargs)
            if self.is_learning:
                self._found[key] = (indices, rulebook)
            return rulebook

        return answer
