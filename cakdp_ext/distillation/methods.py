"""Which ways of teaching exist, and what each of them gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation.config import DistillConfig
from cakdp_ext.types import DensePredictions, EncodedScene, PredictionSites, TwoStageTeacher


@dataclass(frozen=True)
class DistillOutput:
    """One step of distillation.

    Attributes:
        loss: scalar, already weighted with alpha like the losses of a TrainingOutput; gradient to the student only.
        num_representatives: ``(B,)`` int64, how many samples of each frame were compared.
    """

    loss: Tensor
    num_representatives: Tensor


class DistillMethod(Protocol):
    """A way of teaching: from what student and teacher say about one batch to a loss."""

    def __call__(
        self,
        student_predictions: DensePredictions,
        student_sites: PredictionSites,
        teacher: TwoStageTeacher,
        encoded: EncodedScene,
    ) -> DistillOutput:
        """Compare the student with ``encoded = teacher.encode(batch)`` on the same batch."""
        ...


MethodFactory = Callable[[DistillConfig], DistillMethod]
F = TypeVar("F", bound=MethodFactory)
_METHODS: dict[str, MethodFactory] = {}


def register_method(name: str) -> Callable[[F], F]:
    """Decorate a class (or function) that builds a method from a DistillConfig, so that METHOD can name it.

    Raises:
        ValueError: where the name belongs to another method already.
    """

    def register(factory: F) -> F:
        if _METHODS.get(name, factory) is not factory:
            raise ValueError(f"distillation method {name!r} is {_METHODS[name]!r} already; choose another name")
        _METHODS[name] = factory
        return factory

    return register


def build_method(config: DistillConfig) -> DistillMethod:
    """Build the method that ``config.method`` names.

    Raises:
        ConfigError: for a name that nobody registered; the message lists the valid ones.
    """
    if config.method not in _METHODS:
        raise ConfigError(
            f"unknown distillation METHOD {config.method!r}; valid methods: {', '.join(sorted(_METHODS))}"
        )
    return _METHODS[config.method](config)
