"""What did a forward compute? Watched once: layers as whole modules, everything between them operator by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cakdp_ext.pruning.incremental.escapes import Escapes, has_own_kernels, tensors_in
from cakdp_ext.pruning.incremental.moves import Mover
from cakdp_ext.pruning.incremental.nodes import Affine, Convolution, Node, Pointwise, Reading, Sum
from cakdp_ext.pruning.incremental.product import KernelProduct
from cakdp_ext.pruning.incremental.sites import Sites
from cakdp_ext.pruning.incremental.tables import NotUnderstoodError, dense_table, kernel_weights, sparse_table
from cakdp_ext.pruning.layers import (
    channel_axis,
    is_convolution,
    is_norm,
    is_sparse_conv,
    is_tensor_like,
    out_of_place,
    replaced_forwards,
    values_of,
    voxels_of,
)

_POINTWISE = frozenset(
    "relu relu6 leaky_relu elu celu selu gelu silu mish softplus sigmoid tanh hardswish hardsigmoid hardtanh neg abs "
    "clamp clamp_min clamp_max mul div exp sqrt".split()
)
_SUMS = {"add": 1.0, "sub": -1.0}
_CHECKED = 32
"""Places of every layer at which its arithmetic is done a second time while recording."""


class Recorder(TorchDispatchMode):
    """Watches one forward and notes every tensor that depends on a layer's output.

    Args:
        consumers: layers whose input may lose channels.
        producers: layers whose output may lose channels there and then.

    Attributes:
        nodes: what was noted, in the order of the forward.
    """

    def __init__(self, consumers: Collection[str], producers: Collection[str]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._mover = Mover(self.nodes)
        self._consumers, self._producers = consumers, producers
        self._calls: Counter[str] = Counter()
        self._escape: str | None = None
        self._is_paused = False

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch what happens while the context is open."""
        layers = {m: self._layer(n, m) for n, m in model.named_modules() if is_convolution(m) or is_norm(m)}
        others = {m: self._stranger(n, m) for n, m in model.named_modules() if has_own_kernels(m)}
        with ExitStack() as stack:
            stack.enter_context(out_of_place(model))
            stack.enter_context(replaced_forwards({**others, **layers}))
            stack.enter_context(Escapes(self._note_escape))
            stack.enter_context(self)
            yield

    def output(self, tensor: Tensor) -> Tensor | None:
        """Give the elements that a tensor holds; None where no filter reaches it.

        Raises:
            NotUnderstoodError: when it is made of something whose changes cannot be followed.
        """
        if self._escape is not None:
            raise NotUnderstoodError(self._escape)
        if not self._mover.knows(tensor):
            return None
        self._mover.require_clear(tensor)
        return self._mover.elements(tensor)

    def owner(self, elements: Tensor) -> tuple[Tensor, Tensor]:
        """Give the node of each element, and its number inside that node."""
        return self._mover.owner(elements)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and note what it did to tensors that are watched."""
        kwargs = kwargs or {}
        if self._is_paused or not self._is_watched((args, kwargs)):
            return func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            self._note_escape(f"{func}", args)
        with self._paused():
            return self._note(func, args, kwargs)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def _is_watched(self, values: Any) -> bool:
        return any(isinstance(leaf, Tensor) and self._mover.knows(leaf) for leaf in tree_leaves(values))

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        packet = func._schema.name.removeprefix("aten::")
        name = packet.rstrip("_") if func._schema.is_mutable else packet
        data = args[0] if args else None
        is_single = isinstance(data, Tensor) and not self._is_watched((args[1:], kwargs))
        if name in _POINTWISE and is_single and not any(isinstance(v, Tensor) for v in tree_leaves((args[1:], kwargs))):
            return self._pointwise(func, data, args[1:], kwargs)  # type: ignore[arg-type]
        if name in _SUMS and len(args) == 2:
            return self._sum(func, args, kwargs, _SUMS[name])
        return self._mover.run(func, name, args, kwargs)

    def _pointwise(self, func: Any, data: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        axis, before = self._mover.axis(data), data.clone() if func._schema.is_mutable else data
        try:
            number = self._mover.node(data, axis)
        except NotUnderstoodError as reason:
            return self._mover.give_up(func(data, *rest, **kwargs), str(reason))
        source, plain = self.nodes[number], _out_of_place_overload(func)
        node = Pointwise(
            source.sites,
            source.width,
            (number,),
            lambda v: plain(v, *rest, **kwargs),
            _rows(before, axis, source.sites),
        )
        output = func(data, *rest, **kwargs)
        self._mover.put(output, node, axis, is_write=func._schema.is_mutable)
        return output

    def _sum(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sign: float) -> Any:
        a, b = args
        if not isinstance(b, Tensor) or (b.ndim == 0 and not self._mover.knows(b)):
            return self._pointwise(func, a, args[1:], kwargs)
        output_of = lambda: func(*args, **kwargs)  # noqa: E731
        if (a.shape, a.dtype) != (b.shape, b.dtype) or a.ndim < 2:
            return self._mover.give_up(output_of(), "a sum of tensors of different shapes or types")
        axis = self._mover.axis(a if self._mover.knows(a) else b)
        try:
            numbers = self._mover.node(a, axis), self._mover.node(b, axis)
        except NotUnderstoodError as reason:
            return self._mover.give_up(output_of(), str(reason))
        x, y = (self.nodes[n] for n in numbers)
        sites = Sites.alike(torch.stack([x.sites.label, y.sites.label], dim=1))
        reads = tuple(node.sites.label[sites.representatives] for node in (x, y))
        factor = sign * float(kwargs.get("alpha", 1))
        node = Sum(sites, x.width, numbers, reads, (x.sites.count, y.sites.count), factor)  # type: ignore[arg-type]
        output = output_of()
        self._mover.put(output, node, axis, is_write=func._schema.is_mutable)
        return output

    def _note_escape(self, door: str, values: Any) -> None:
        """Note that code which is not watched was given numbers that depend on filters: what it does is unknown."""
        if not self._is_paused and self._escape is None and self._is_watched(tensors_in(values)):
            self._escape = f"numbers that depend on filters leave PyTorch's operators ({door})"

    def _stranger(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """Watch a module that may have kernels of its own: what it fills unseen is no constant."""
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            given = tensors_in((args, kwargs))
            if not self._is_paused and self._is_watched(given):
                memory = {tensor.untyped_storage().data_ptr() for tensor in given}
                new = [t for t in tensors_in(output) if t.untyped_storage().data_ptr() not in memory]
                unseen = [tensor for tensor in new if not self._mover.knows(tensor)]
                if unseen:
                    self._mover.give_up(unseen, f"{name}: {type(module).__name__} fills its output unseen")
            return output

        return run

    def _layer(self, name: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def run(input: Any, *rest: Any, **kwargs: Any) -> Any:
            with self._paused():
                output = forward(input, *rest, **kwargs)
                if is_tensor_like(input) and is_tensor_like(output):
                    self._note_layer(name, module, input, output)
                else:
                    self._mover.give_up(tensors_in(output), f"{name}: {type(module).__name__} gives no single tensor")
            return output

        return run

    def _note_layer(self, name: str, module: nn.Module, input: Any, output: Any) -> None:
        given, gave = values_of(input), values_of(output)
        self._calls[name] += 1
        if is_norm(module) and not self._mover.knows(given):
            return
        axis = channel_axis(module, given)
        try:
            make = self._norm if is_norm(module) else self._convolution
            self._mover.put(gave, make(name, module, input, output), axis)
        except NotUnderstoodError as reason:
            self._mover.give_up(gave, f"{name}: {reason}")

    def _norm(self, name: str, module: Any, input: Any, output: Any) -> Node:
        given = values_of(input)
        number = self._mover.node(given, channel_axis(module, given))
        if module.running_var is None or module.training:
            raise NotUnderstoodError("a norm by the statistics of the frame")
        scale = (module.running_var + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight.detach()
        source = self.nodes[number]
        some = _some(len(source.sites.representatives), given.device)
        before, after = (_rows(values_of(v), 1, source.sites)[some] for v in (input, output))
        shifted = (before - module.running_mean) * scale
        self._compare(shifted if module.bias is None else shifted + module.bias.detach(), after)
        return Affine(source.sites, source.width, (number,), scale)

    def _convolution(self, name: str, module: Any, input: Any, output: Any) -> Node:
        given, gave = values_of(input), values_of(output)
        axis = channel_axis(module, given)
        number, table = self._mover.plain_source(self._mover.node(given, axis))
        source = self.nodes[number]
        reads = sparse_table(module, input, output) if is_sparse_conv(module) else dense_table(module, given, gave)
        labels = torch.cat([table, table.new_tensor([source.sites.count])])[reads]
        sites = Sites.alike(labels)
        product = KernelProduct(labels[sites.representatives], kernel_weights(module), source.sites.count)
        rows = _rows(given, axis, Sites(table, _one_of(table, source.sites.count)))
        self._check(product, rows, _rows(gave, axis, sites), getattr(module, "bias", None))
        return Convolution(
            sites,
            len(product.weight),
            (number,),
            name,
            product,
            rows if name in self._consumers else None,
            _rows(gave, axis, sites) if name in self._producers else None,
            Reading(self._calls[name] - 1, table, rows, voxels_of(input)),
        )

    def _check(self, product: KernelProduct, rows: Tensor, gave: Tensor, bias: Tensor | None) -> None:
        """Compute a few outputs from the table: what it says must be what the layer did."""
        some = _some(len(gave), gave.device)
        padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        wanted = padded[product.table[some]].flatten(1) @ product.weight.flatten(1).t()
        self._compare(wanted if bias is None else wanted + bias.detach(), gave[some])

    def _compare(self, wanted: Tensor, gave: Tensor) -> None:
        scale = float(gave.abs().nan_to_num().max()) if len(gave) else 0.0
        if not torch.allclose(wanted, gave, rtol=1e-3, atol=1e-3 * scale, equal_nan=True):
            raise NotUnderstoodError("its outputs are not those that its geometry and weights give")


def _some(count: int, device: torch.device) -> Tensor:
    """Number a few of ``count`` places."""
    return torch.linspace(0, count - 1, min(_CHECKED, count), device=device).long()


def _rows(tensor: Tensor, axis: int, sites: Sites) -> Tensor:
    """Give the vectors ``(U, C)`` of a tensor at the places that stand for all."""
    return tensor.detach().movedim(axis, -1).flatten(0, -2).index_select(0, sites.representatives)


def _one_of(label: Tensor, count: int) -> Tensor:
    """Give one place for each of ``count`` labels; a label that is nowhere gets place 0, and nothing asks for it."""
    places = torch.zeros(count + 1, dtype=torch.int64, device=label.device)
    return places.scatter_(0, label, torch.arange(len(label), device=label.device))[:count]


def _out_of_place_overload(func: Any) -> Callable[..., Tensor]:
    if not func._schema.is_mutable:
        return func
    packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").rstrip("_"))
    return getattr(packet, func._overloadname)
