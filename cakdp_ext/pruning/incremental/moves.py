"""Where do values go? Operators that only move them are run a second time on the numbers of the elements moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from cakdp_ext.pruning.incremental.nodes import Node, Opaque, Rearrangement
from cakdp_ext.pruning.incremental.rearranging import rearranged, rearrangement
from cakdp_ext.pruning.incremental.shadows import NONE, Shadows, constants
from cakdp_ext.pruning.incremental.sites import Sites
from cakdp_ext.pruning.incremental.tables import NotUnderstoodError

_MOVES = frozenset(
    "clone _to_copy index index_select gather constant_pad_nd repeat flip roll upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d".split()
)
_JOINS = frozenset({"cat", "stack"})
_MAKERS = frozenset(
    "new_zeros new_ones new_full new_empty new_empty_strided zeros_like ones_like full_like empty_like".split()
)
_WRITES = frozenset({"copy", "index_put"})


class Mover:
    """Knows which elements of which nodes every tensor holds.

    Args:
        nodes: all nodes; new ones are added.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes, self._shadows = nodes, Shadows()
        self._starts: list[int] = []
        self._end = 0

    def knows(self, tensor: Tensor) -> bool:
        """Tell whether any layer's output reached a tensor's memory."""
        return self._shadows.knows(tensor)

    def put(self, tensor: Tensor, node: Node, axis: int, is_write: bool = False) -> int:
        """Add a node and say that a tensor, channels along ``axis``, is it; give its number.

        ``is_write`` where it was there before and was overwritten.
        """
        number = self._add(node)
        if (is_write or self.knows(tensor)) and not _is_whole(tensor):
            self.give_up(tensor, "a part of a tensor was overwritten")
        else:
            self._shadows.put_node(tensor, number, axis, self._starts[number])
        return number

    def _add(self, node: Node) -> int:
        self._nodes.append(node)
        self._starts.append(self._end)
        self._end += len(node.sites.label) * node.width
        return len(self._nodes) - 1

    def give_up(self, values: Any, reason: str) -> Any:
        """Say that changes of some tensors cannot be followed, and give them back."""
        number = self._add(Opaque(reason))
        for tensor in _tensors(values):
            self._shadows.put_node(tensor, number, 0, 0)
        return values

    def require_clear(self, tensor: Tensor) -> None:
        """Refuse what cannot be followed.

        Raises:
            NotUnderstoodError: saying why.
        """
        if self.knows(tensor):
            number = self._shadows.opaque(tensor, lambda n: isinstance(self._nodes[n], Opaque))
            if number is not None:
                raise NotUnderstoodError(self._nodes[number].reason)  # type: ignore[attr-defined]

    def elements(self, tensor: Tensor) -> Tensor:
        """Give the number of the element that each value of a tensor is."""
        return self._shadows.elements(tensor)

    def owner(self, elements: Tensor) -> tuple[Tensor, Tensor]:
        """Give the node of each element (-1 for none), and its number inside that node."""
        starts = torch.tensor(self._starts, device=elements.device)
        node = torch.searchsorted(starts, elements.contiguous(), right=True) - 1
        return node, elements - starts[node.clamp(min=0)]

    def axis(self, tensor: Tensor) -> int:
        """Say which axis of a tensor counts channels."""
        if self.knows(tensor):
            for axis in range(tensor.ndim):
                if self._shadows.node_of(tensor, axis) is not None:
                    return axis
        return min(1, tensor.ndim - 1)

    def node(self, tensor: Tensor, axis: int) -> int:
        """Give the node that a tensor is; what was put together by moving gets a node here.

        Raises:
            NotUnderstoodError: when changes cannot be followed there.
        """
        if tensor.ndim < 2:
            raise NotUnderstoodError("a tensor without channels")
        if not self.knows(tensor):
            rows = tensor.detach().movedim(axis, -1).flatten(0, -2)
            return self._add(Node(Sites.of_values(rows), rows.shape[1]))
        self.require_clear(tensor)
        number = self._shadows.node_of(tensor, axis)
        if number is None:
            elements = self.elements(tensor).movedim(axis, -1).flatten(0, -2)
            node = rearranged(self._nodes, elements, self.owner)
            number = self.put(tensor, node, axis) if _is_whole(tensor) else self._add(node)
        return number

    def plain_source(self, number: int) -> tuple[int, Tensor]:
        """Look through a node that moves all channels together.

        Returns:
            The node to read, and for every place of ``number`` the place of it (its number of places for none).
        """
        node = self._nodes[number]
        if isinstance(node, Rearrangement) and node.is_plain:
            return node.inputs[0], node.blocks[0].reads[node.sites.label]
        return number, node.sites.label

    def run(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that is no arithmetic, and note where values went; others are given up on."""
        if name in _MAKERS:
            return func(*args, **kwargs)
        try:
            for tensor in _tensors((args, kwargs)):
                self.require_clear(tensor)
            short = {"cat": self._concatenated, "constant_pad_nd": self._padded}.get(name)
            if short is not None and (done := short(func, args, kwargs)) is not None:
                return done
            if name in _WRITES and func._schema.is_mutable:
                return self._written(func, name, args, kwargs)
            if name in _MOVES | _JOINS and not func._schema.is_mutable:
                return self._moved(func, name, args, kwargs)
        except NotUnderstoodError as reason:
            return self._given_up(func, args, kwargs, str(reason))
        return self._given_up(func, args, kwargs, f"the operator {func}")

    def _given_up(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
        """Run an operator and give up on what it made or overwrote; views of what is known stay what they are."""
        outputs = func(*args, **kwargs)
        known = {(t.untyped_storage().data_ptr(), t.dtype) for t in _tensors((args, kwargs)) if self.knows(t)}
        new = [t for t in _tensors(outputs) if (t.untyped_storage().data_ptr(), t.dtype) not in known]
        self.give_up([*new, *_overwritten(func, args, kwargs)], reason)
        return outputs

    def _moved(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        output = func(*args, **kwargs)
        data, rest = args[0], args[1:]
        if any(map(self.knows, _tensors((rest, kwargs)))):
            raise NotUnderstoodError(f"the operator {func} with an index that depends on filters")
        if any((t.dtype, t.device) != (output.dtype, output.device) for t in _tensors(data)):
            raise NotUnderstoodError("a change of type or device")
        if name == "constant_pad_nd":
            if (rest[1] if len(rest) > 1 else kwargs.get("value", 0)) != 0:
                raise NotUnderstoodError("padding with something else than zero")
            rest, kwargs = (rest[0], NONE), {}
        if name == "_to_copy":
            kwargs = {"memory_format": kwargs.get("memory_format")}
            func = torch.ops.aten.clone.default
        numbers = tree_map(lambda leaf: self._numbers(leaf) if isinstance(leaf, Tensor) else leaf, data)
        self._shadows.put_elements(output, _run_on_numbers(func, name, numbers, rest, kwargs))
        return output

    def _numbers(self, tensor: Tensor) -> Tensor:
        """Give the elements of a tensor; those of one that no filter reaches are constants."""
        return self.elements(tensor) if self.knows(tensor) else constants(tensor)

    def _written(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        base, rest = args[0], list(args[1:])
        value = 0 if name == "copy" else 1
        others = [*(arg for i, arg in enumerate(rest) if i != value), kwargs]
        if any(map(self.knows, _tensors(others))) or (len(rest) > 2 and rest[2] is True) or kwargs:
            raise NotUnderstoodError(f"the operator {func} with an index that depends on filters, or that adds")
        if base.dtype != rest[value].dtype:
            raise NotUnderstoodError("a change of type")
        numbers = self._numbers(rest[value])
        if not self.knows(base):
            self._shadows.put_constants(base)
        output = func(*args, **kwargs)
        rest[value] = numbers
        func(self.elements(base), *rest)
        return output

    def _concatenated(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Join tensors along their channels; None where something else is joined."""
        tensors = list(args[0])
        axis = int(args[1] if len(args) > 1 else kwargs.get("dim", 0)) % tensors[0].ndim
        if not all(self.knows(t) and self._shadows.node_of(t, axis) is not None for t in tensors):
            return None
        numbers = [self.node(t, axis) for t in tensors]
        blocks, end = [], 0
        for source, number in enumerate(numbers):
            node = self._nodes[number]
            channels = torch.arange(node.width, device=node.sites.label.device)
            blocks.append((source, node.sites.label, channels, channels + end))
            end += node.width
        output = func(*args, **kwargs)
        self.put(output, rearrangement([self._nodes[n] for n in numbers], numbers, end, blocks), axis)
        return output

    def _padded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Pad a map with zeros, all channels alike; None where channels are padded too, or with something else."""
        data, sizes = args[0], args[1]
        value = args[2] if len(args) > 2 else kwargs.get("value", 0)
        axis = self.axis(data)
        if value != 0 or len(sizes) > 2 * (data.ndim - 1 - axis):
            return None
        number = self.node(data, axis)
        node = self._nodes[number]
        shape = [n for i, n in enumerate(data.shape) if i != axis]
        places = torch.ops.aten.constant_pad_nd(node.sites.label.view(shape), sizes, node.sites.count)
        channels = torch.arange(node.width, device=places.device)
        output = func(*args, **kwargs)
        block = (0, places.flatten(), channels, channels)
        self.put(output, rearrangement([node], [number], node.width, [block]), axis)
        return output


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _overwritten(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Give the tensors that an operator's schema says it writes into."""
    written = [
        kwargs.get(argument.name, args[place] if place < len(args) else None)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return _tensors(written)


def _run_on_numbers(func: Any, name: str, numbers: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Run an operator on numbers; those that know floats only get float64, which holds every number below 2**53."""
    if name.startswith("upsample"):
        return func(numbers.double(), *rest, **kwargs).long()
    return func(numbers, *rest, **kwargs)


def _is_whole(tensor: Tensor) -> bool:
    """Tell whether a tensor is all that lies in its memory."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
