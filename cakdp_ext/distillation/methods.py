"""Which ways of teaching exist, and what each of them is shown and gives back."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation.config import NoOptions
from cakdp_ext.distillation.teacher import SecondStage
from cakdp_ext.taps import Taps
from cakdp_ext.types import Batch, PredictionSites, Roles


@dataclass(frozen=True)
class Lesson:
    """What a method is shown of one step.

    Attributes:
        batch: the frames: voxels, points, objects.
        student: what the student shows, with gradient.
        teacher: what the teacher shows, without.
        second_stage: the teacher's; it may be asked by methods whose taps hold ``Role.SECOND_STAGE``.
    """

    batch: Batch
    student: Taps
    teacher: Taps
    second_stage: SecondStage


@dataclass(frozen=True)
class DistillOutput:
    """One step of one method.

    Attributes:
        loss: scalar, not yet weighted; gradient to the student, and to what :meth:`DistillMethod.adapt` made, only.
        num_representatives: ``(B,)`` int64, how many samples of each frame were compared; None where all are.
    """

    loss: Tensor
    num_representatives: Tensor | None = None


class DistillMethod(nn.Module):
    """A way of teaching: from what student and teacher show of one batch to a loss.

    Attributes:
        Config: frozen dataclass of the method's keys; keys that SKD has too should mean the same.
        taps: what both detectors must show; an instance may change it, as its keys ask.
        inherits: which of the teacher's filters the student's first weights are taken from, ``largest`` or ``first``;
            None leaves it its own. An instance may change it too.

    Args:
        config: an instance of ``Config``.
    """

    Config: ClassVar[type] = NoOptions
    taps: Roles
    inherits: str | None = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def check(self, student: PredictionSites, teacher: PredictionSites) -> None:
        """Refuse two detectors that do not fit, before the training; by default all fit.

        Raises:
            ConfigError: saying what differs and what to change.
        """

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """Make the parts that are trained, such as projectors; called once, before there is an optimizer.

        They are trained with the student, saved for a resume only, and in no state dict of the student.

        Args:
            student: what it shows of a made-up frame: the shapes are right, the values mean nothing.
            teacher: the same of the teacher.

        Raises:
            ConfigError: where no projector can help.
        """

    def targets(self, batch: Batch, teacher: Taps, student: PredictionSites) -> Batch:
        """Say what the student shall find in a batch; by default, its objects.

        Args:
            batch: with the objects of the data set, by the student's labels.
            teacher: what the teacher shows of it.
            student: where the student's predictions sit, with its classes.

        Returns:
            The batch, or one that differs in its objects: those of the data set first in each frame and in their
            order, others behind them, padding (label -1) last. A :class:`Lesson` holds the data set's own.
        """
        return batch

    def forward(self, lesson: Lesson) -> DistillOutput:
        """Compare the student with the teacher.

        The loss must be connected to the student, and to every part that is trained, even where there is nothing to
        compare: several processes wait for their gradients.
        """
        raise NotImplementedError


M = TypeVar("M", bound=type[DistillMethod])
_METHODS: dict[str, type[DistillMethod]] = {}


def register_method(name: str) -> Callable[[M], M]:
    """Decorate a subclass of DistillMethod, so that METHOD can name it.

    Raises:
        TypeError: for anything else.
        ValueError: where the name belongs to another method already, or has a dot.
    """

    def register(method: M) -> M:
        if not (isinstance(method, type) and issubclass(method, DistillMethod)):
            raise TypeError(f"register_method({name!r}) decorates subclasses of DistillMethod, got {method!r}")
        if _METHODS.get(name, method) is not method or "." in name:
            owner = f"is {_METHODS[name]!r} already" if name in _METHODS else "has a dot"
            raise ValueError(f"distillation method {name!r} {owner}; choose another name")
        _METHODS[name] = method
        return method

    return register


def find_method(name: str) -> type[DistillMethod]:
    """Give the method of a name.

    Raises:
        ConfigError: for a name that nobody registered; the message lists the valid ones.
    """
    if name not in _METHODS:
        raise ConfigError(f"unknown distillation METHOD {name!r}; valid methods: {', '.join(sorted(_METHODS))}")
    return _METHODS[name]


def all_methods() -> Collection[type[DistillMethod]]:
    """Give every method that is registered."""
    return _METHODS.values()
