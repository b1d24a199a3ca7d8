"""What changes when channels are absent? Forwards that compute again only what lies behind the first absent channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor, nn

from cakdp_ext.looking import evaluating
from cakdp_ext.pruning.layers import (
    is_tensor_like,
    is_understood,
    out_of_place,
    replaced_forwards,
    values_of,
    with_values,
    without_channels,
)
from cakdp_ext.pruning.rulebooks import RulebookMemory


@dataclass(frozen=True)
class Absence:
    """Channels that a forward does without.

    Attributes:
        inputs: module name -> ``(n,)`` int64 input channels that are zero for it.
        outputs: module name -> ``(n,)`` int64 output channels that it leaves zero.
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class _Call:
    name: str
    output: Any
    version: int
    is_overwritten: bool = False


class SuffixReplay:
    """Repeats one forward of a network with channels absent; what happens before they would matter is not repeated.

    Every layer call before the first affected one gives what it gave when the forward was recorded. The network must
    call its layers in the same order each time, as any forward does that does not branch on values.

    Args:
        model: the network; in use only while :meth:`opened`.
        forward: does one forward and gives what is wanted of it.
    """

    def __init__(self, model: nn.Module, forward: Callable[[], Tensor]) -> None:
        self._model, self._forward = model, forward
        self._layers = {name: module for name, module in model.named_modules() if _is_replayable(module)}
        self._calls: list[_Call] = []
        self._first_call: dict[str, int] = {}
        self._absence = Absence()
        self._overwritten: set[int] = set()
        self._is_recording = False
        self._start = self._cursor = 0

    @contextmanager
    def opened(self) -> Iterator[Tensor]:
        """Put the network in eval mode, record it, and give what the complete network outputs."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            stack.enter_context(out_of_place(self._model))
            rulebooks = stack.enter_context(RulebookMemory().installed())
            stack.callback(self._forget)
            stack.enter_context(replaced_forwards({m: self._replayed(n, m) for n, m in self._layers.items()}))
            output = self._record()
            if self._overwritten:
                output = self._record()
            rulebooks.is_learning = False
            yield output

    def without(self, absence: Absence) -> Tensor:
        """Give what the network outputs while some channels are absent.

        Raises:
            ValueError: when the network does not call its layers as it did when it was recorded.
        """
        affected = [self._first_call[name] for name in (*absence.inputs, *absence.outputs) if name in self._first_call]
        self._absence, self._start = absence, min(affected, default=len(self._calls))
        output = self._run()
        if self._cursor != len(self._calls):
            self._refuse("nothing", self._cursor)
        return output

    def _run(self) -> Tensor:
        self._cursor = 0
        return self._forward()

    def _record(self) -> Tensor:
        self._calls, self._first_call, self._absence, self._is_recording = [], {}, Absence(), True
        output = self._run()
        self._is_recording = False
        changed = {i for i, call in enumerate(self._calls) if _version(call.output) != call.version}
        self._overwritten |= changed
        return output

    def _replayed(self, name: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def replayed(input: Any, *rest: Any, **kwargs: Any) -> Any:
            index, self._cursor = self._cursor, self._cursor + 1
            if self._is_recording:
                return self._keep(index, name, forward(input, *rest, **kwargs))
            call = self._recorded(index, name)
            if index < self._start and call is not None:
                return _copy(call.output) if call.is_overwritten else call.output
            return self._changed(index, name, module, lambda value: forward(value, *rest, **kwargs), input)

        return replayed

    def _changed(self, index: int, name: str, module: nn.Module, forward: Callable[[Any], Any], input: Any) -> Any:
        """Run an affected layer; one that only loses outputs and comes first needs no arithmetic."""
        absence = self._absence
        if name in absence.inputs:
            input = without_channels(module, input, absence.inputs[name])
        if name not in absence.outputs:
            return forward(input)
        is_known = index == self._start and name not in absence.inputs
        output = self._calls[index].output if is_known else forward(input)
        return without_channels(module, output, absence.outputs[name])

    def _keep(self, index: int, name: str, output: Any) -> Any:
        self._first_call.setdefault(name, index)
        is_overwritten = index in self._overwritten
        kept = _copy(output) if is_overwritten else output
        self._calls.append(_Call(name, kept, _version(kept), is_overwritten))
        return output

    def _recorded(self, index: int, name: str) -> _Call | None:
        if index >= len(self._calls) or self._calls[index].name != name:
            self._refuse(name, index)
        call = self._calls[index]
        return call if is_tensor_like(call.output) else None

    def _refuse(self, name: str, index: int) -> NoReturn:
        before = self._calls[index].name if index < len(self._calls) else "nothing"
        raise ValueError(
            f"the network called {name} as layer call {index}, but {before} when it was recorded; filters can only be "
            "scored on a forward that does not branch on values"
        )

    def _forget(self) -> None:
        self._calls = []


def _is_replayable(module: nn.Module) -> bool:
    is_stock = type(module).__module__.startswith(("torch.nn.modules.", "spconv."))
    return is_understood(module) or (is_stock and next(module.children(), None) is None)


def _version(output: Any) -> int:
    return values_of(output)._version if is_tensor_like(output) else 0


def _copy(output: Any) -> Any:
    return with_values(output, values_of(output).clone()) if is_tensor_like(output) else output
