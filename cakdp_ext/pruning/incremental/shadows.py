"""Which value lies where? A shadow beside the memory of every tensor says which node's element each value is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from cakdp_ext.pruning.incremental.tables import NotUnderstoodError

NONE = -1
"""Element of a value that is zero in every forward; below it stand values that are something else in every forward."""
_EXACT_IN_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Layout:
    """How a node's matrix lies in memory: the tensor's geometry and which of its axes counts channels."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    axis: int

    @classmethod
    def of(cls, tensor: Tensor, axis: int) -> Layout:
        """Read it off a tensor, the channel axis put last."""
        moved = tensor.movedim(axis, -1)
        return cls(tuple(moved.shape), moved.stride(), int(tensor.storage_offset()), tensor.ndim - 1)


@dataclass
class Shadow:
    """What one piece of memory holds.

    Attributes:
        node: number of the node that all of it is; None where ``elements`` tells.
        layout: of that node.
        start: element number of the node's first value.
        elements: one number a value; NONE for zeros, see :func:`constants` for others that never change.
    """

    node: int | None
    layout: Layout | None = None
    start: int = 0
    elements: Tensor | None = None


class Shadows:
    """Remembers for the memory of every tensor which elements it holds; views need no care that way."""

    def __init__(self) -> None:
        self._found: dict[StorageWeakRef, Shadow] = {}

    def knows(self, tensor: Tensor) -> bool:
        """Tell whether a tensor's memory holds elements of nodes."""
        return _key(tensor) in self._found

    def node_of(self, tensor: Tensor, axis: int) -> int | None:
        """Give the node that a tensor is, laid out just so; None where it is a part or a mixture."""
        shadow = self._found[_key(tensor)]
        return shadow.node if shadow.layout == Layout.of(tensor, axis) else None

    def opaque(self, tensor: Tensor, is_opaque: Callable[[int], bool]) -> int | None:
        """Give the node of a tensor's memory if it is one that cannot be followed."""
        node = self._found[_key(tensor)].node
        return node if node is not None and is_opaque(node) else None

    def put_node(self, tensor: Tensor, node: int, axis: int, start: int) -> None:
        """Say that a tensor is a node; ``start`` is the number of its first element."""
        self._found[_key(tensor)] = Shadow(node, Layout.of(tensor, axis), start)

    def put_elements(self, tensor: Tensor, elements: Tensor) -> None:
        """Say which elements a tensor holds, whose memory held nothing that is known."""
        shadow = torch.full((_size(tensor),), NONE, dtype=torch.int64, device=tensor.device)
        _like(shadow, tensor).copy_(elements)
        self._found[_key(tensor)] = Shadow(None, elements=shadow)

    def put_constants(self, tensor: Tensor) -> None:
        """Say that all of a tensor's memory, of which nothing is known, holds what it holds in every forward.

        Raises:
            NotUnderstoodError: see :func:`constants`.
        """
        whole = torch.as_strided(tensor, (_size(tensor),), (1,), 0)
        self._found[_key(tensor)] = Shadow(None, elements=constants(whole))

    def elements(self, tensor: Tensor) -> Tensor:
        """Give the elements of a tensor, a view of its shadow where there is one; all NONE where nothing is known."""
        shadow = self._found.get(_key(tensor))
        if shadow is None:
            return torch.full(tensor.shape, NONE, dtype=torch.int64, device=tensor.device)
        if shadow.elements is None:
            flat = torch.full((_size(tensor),), NONE, dtype=torch.int64, device=tensor.device)
            layout = shadow.layout
            assert layout is not None
            place = torch.as_strided(flat, layout.shape, layout.stride, layout.offset)
            place.copy_(torch.arange(place.numel(), device=flat.device).view(layout.shape) + shadow.start)
            self._found[_key(tensor)] = shadow = Shadow(None, elements=flat)
        assert shadow.elements is not None
        return _like(shadow.elements, tensor)


def constants(tensor: Tensor) -> Tensor:
    """Number the values of a tensor that no filter reaches: NONE for zero, one number below it for each other value.

    Raises:
        NotUnderstoodError: for values that float32 does not hold.
    """
    if tensor.dtype not in _EXACT_IN_FLOAT32:
        raise NotUnderstoodError(f"constants of type {tensor.dtype}")
    bits = tensor.detach().float().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    return (NONE - 1 - bits).where(tensor != 0, NONE)


def _key(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _like(flat: Tensor, tensor: Tensor) -> Tensor:
    return torch.as_strided(flat, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
