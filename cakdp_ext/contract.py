"""What do student and teacher promise each other? Training outputs, encoded scenes, the protocols of both engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from cakdp_ext.taps import Taps
from cakdp_ext.types import PREDICTIONS, Batch, DensePredictions, PredictionSites, Roles


@dataclass(frozen=True)
class TrainingOutput:
    """One training forward of a detector.

    Attributes:
        losses: named, already weighted scalars; their sum is the task loss (the IoU loss of Eq. 6 among them
            under ``iou_loss`` where the head has an IoU branch).
        predictions: with gradient; None for detectors that are never distilled.
        tap: gives what is asked for of this forward, with gradient; None for a student that shows nothing but its
            predictions.
    """

    losses: Mapping[str, Tensor]
    predictions: DensePredictions | None = None
    tap: Callable[[Roles], Taps] | None = None


@dataclass(frozen=True)
class EncodedScene:
    """What a teacher knows after its first stage, or after as much of it as was asked for.

    Attributes:
        taps: what was asked for.
        features: whatever the teacher's own second stage needs; opaque to everybody else.
    """

    taps: Taps
    features: Any = None

    @property
    def predictions(self) -> DensePredictions:
        """Of the first stage, where they were asked for."""
        return self.taps.dense


@dataclass(frozen=True)
class TeacherRois:
    """What a two-stage detector's own first stage proposes, padded to K a frame.

    Attributes:
        rois: ``(B, K, 7)``, as they go to its second stage, padding included.
        labels: ``(B, K)`` int64, 0-based class that the first stage gave; anything where padded.
        is_valid: ``(B, K)`` bool, False where padded.
        indices: ``(B, K)`` int64, which of the first stage's predictions each one is; None where a center head found
            them, whose cells are told by the boxes themselves.
    """

    rois: Tensor
    labels: Tensor
    is_valid: Tensor
    indices: Tensor | None = None


@runtime_checkable
class OneStageStudent(Protocol):
    """A detector that can be distilled: calling it in training mode gives losses and dense predictions."""

    @property
    def sites(self) -> PredictionSites:
        """Where its predictions sit."""
        ...

    def __call__(self, batch: Batch) -> TrainingOutput:
        """Run one training forward."""
        ...

    def predict_dense(self, batch: Batch) -> DensePredictions:
        """Give the raw predictions without targets, losses, mask or NMS."""
        ...


@runtime_checkable
class Teacher(Protocol):
    """A detector that shows what its first stage makes of a batch."""

    @property
    def sites(self) -> PredictionSites:
        """Where the predictions of its first stage sit."""
        ...

    def encode(self, batch: Batch, roles: Roles = PREDICTIONS) -> EncodedScene:
        """Run the first stage as far as the roles need it; no proposals, no NMS, no second stage."""
        ...


@runtime_checkable
class TwoStageTeacher(Teacher, Protocol):
    """A detector whose second stage judges boxes that it did not propose."""

    def refine(self, encoded: EncodedScene, rois: Tensor) -> Tensor:
        """Give the second stage's class logits ``(B, K, 1)`` or ``(B, K, C)`` for ``rois (B, K, 7)``."""
        ...


@runtime_checkable
class ProposingTeacher(TwoStageTeacher, Protocol):
    """A two-stage teacher that also says where it would look itself."""

    def propose(self, encoded: EncodedScene) -> TeacherRois:
        """Give the RoIs of its own evaluation: what its NMS leaves of its first stage."""
        ...
