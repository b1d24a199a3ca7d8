"""What a row of the table is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass

import torch
from scenes import Scene
from torch import Tensor

Run = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """The least that a question asks for, whoever answers it.

    Attributes:
        moved: bytes of what goes in, read once, and of what comes out, written once.
        operations: floating point operations without which the answer cannot be known.
    """

    moved: int
    operations: float = 0


@dataclass(frozen=True)
class Case:
    """An op at a size.

    Attributes:
        size: of the question, for the table.
        ours: puts the question to our op, and with the native ops set aside to its reference.
        work: the least it asks for.
        rivals: name of a library -> the same question put to it; called only where it is there.
    """

    size: str
    ours: Run
    work: Work
    rivals: dict[str, Run] = field(default_factory=dict)


@dataclass
class Gradient:
    """A backward pass by itself; the forward pass is run before the clock starts."""

    forward: Callable[[], Tensor]
    features: Tensor
    grad: Tensor
    output: Tensor | None = None

    def prepare(self) -> None:
        self.output = self.forward()

    def __call__(self) -> Tensor:
        return torch.autograd.grad(self.output, self.features, self.grad, retain_graph=True)[0]


ROWS: dict[str, Callable[[Scene], Case]] = {}
"""Name of a row -> what sets it up, in the order of the table."""


def row(name: str) -> Callable[[Callable[[Scene], Case]], Callable[[Scene], Case]]:
    """Put what follows into the table."""

    def add(setup: Callable[[Scene], Case]) -> Callable[[Scene], Case]:
        ROWS[name] = setup
        return setup

    return add


def tensors_in(thing: object) -> Iterator[Tensor]:
    """All tensors of nested tuples, lists and dataclasses."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (tuple, list)):
        for part in thing:
            yield from tensors_in(part)
    elif is_dataclass(thing):
        for each in fields(thing):
            yield from tensors_in(getattr(thing, each.name))


def moved(*things: object) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(things))


def rows_read(features: Tensor, index: Tensor) -> int:
    """Bytes of the rows that an index names, each once."""
    return len(index.unique()) * features.shape[1] * features.element_size()


def difference(ours: object, reference: object) -> str:
    """How far two answers lie apart: the largest difference of their floats, how many of their indices differ."""
    largest, differing = None, None
    for one, other in zip(tensors_in(ours), tensors_in(reference), strict=True):
        if one.is_floating_point():
            apart = torch.where(one == other, 0, (one - other).abs())
            largest = max(largest or 0.0, float(apart.max()) if apart.numel() else 0.0)
        elif one.shape == other.shape:
            differing = (differing or 0) + int((one != other).sum())
        else:  # sets of different size
            differing = (differing or 0) + len(set(one.tolist()) ^ set(other.tolist()))
    words = [] if largest is None else [f"{largest:.0e}" if largest else "0"]
    return ", ".join(words + ([] if differing is None else [f"{differing} ids"]))
