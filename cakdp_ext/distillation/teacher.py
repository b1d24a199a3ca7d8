"""Who teaches, and cannot learn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import EncodedScene, ProposingTeacher, Teacher, TeacherRois, TwoStageTeacher
from cakdp_ext.types import PREDICTIONS, Batch, PredictionSites, Roles


class FrozenTeacher:
    """A detector in eval mode without gradients, itself a ``ProposingTeacher`` where the detector is one.

    It is no ``nn.Module`` on purpose: as attribute of a student it enters neither its parameters nor its state dict,
    and the student's ``train()``, ``to()`` and DDP do not reach it.
    """

    def __init__(self, detector: nn.Module) -> None:
        """Take over a detector and freeze it.

        Raises:
            ValueError: for one that shows nothing.
        """
        if not isinstance(detector, Teacher):
            raise ValueError(
                f"a teacher needs sites and encode, {type(detector).__name__} lacks one of them; use a detector "
                "such as VoxelRCNN"
            )
        self._detector: Teacher = detector
        self._module: nn.Module = detector.eval().requires_grad_(False)

    @property
    def sites(self) -> PredictionSites:
        """Where the predictions of its first stage sit."""
        return self._detector.sites

    @property
    def module(self) -> nn.Module:
        """The detector itself; it is not to be changed."""
        return self._module

    def encode(self, batch: Batch, roles: Roles = PREDICTIONS) -> EncodedScene:
        """Run the first stage as far as the roles need it; no proposals, no NMS, no gradient."""
        self._module.eval()
        with torch.no_grad():
            return self._detector.encode(batch, roles)

    def require_second_stage(self) -> TwoStageTeacher:
        """Give the detector that judges given boxes.

        Raises:
            ConfigError: for one without a second stage.
        """
        if not isinstance(self._detector, TwoStageTeacher):
            raise ConfigError(
                f"MODEL.DISTILL.METHOD asks the teacher's second stage, {type(self._detector).__name__} has none; use "
                "a two-stage detector, e.g. VoxelRCNN, or another METHOD"
            )
        if check := getattr(self._detector, "require_two_stages", None):
            check()
        return self._detector

    def propose(self, encoded: EncodedScene) -> TeacherRois:
        """Give the RoIs of its own evaluation, no gradient.

        Raises:
            ConfigError: for a detector that does not say which they are.
        """
        if not isinstance(self._detector, ProposingTeacher):
            raise ConfigError(
                f"{type(self._detector).__name__} has no propose, so that nobody knows where it would look itself; use "
                "MODEL.DISTILL.METHOD SKD, or a teacher such as VoxelRCNN"
            )
        self._module.eval()
        with torch.no_grad():
            return self._detector.propose(encoded)

    def refine(self, encoded: EncodedScene, rois: Tensor) -> Tensor:
        """Give the second stage's class logits ``(B, K, 1)`` or ``(B, K, C)`` for ``rois (B, K, 7)``, no gradient."""
        self._module.eval()
        with torch.no_grad():
            return self.require_second_stage().refine(encoded, rois)

    def follow(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply to its tensors what ``nn.Module._apply`` applies to those of whom it teaches: a move, a cast."""
        self._module._apply(change)

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move it, in place, and return it."""
        self._module.to(device)
        return self


class SecondStage:
    """A teacher's second stage on one batch.

    Args:
        teacher: who judges.
        encoded: the batch, as its first stage left it.
    """

    def __init__(self, teacher: ProposingTeacher, encoded: EncodedScene) -> None:
        self._teacher, self._encoded = teacher, encoded

    def refine(self, rois: Tensor) -> Tensor:
        """Give class logits ``(B, K, 1)`` or ``(B, K, C)`` for boxes ``(B, K, 7)`` that it need not have proposed."""
        return self._teacher.refine(self._encoded, rois)

    def propose(self) -> TeacherRois:
        """Give the RoIs of the teacher's own evaluation.

        Raises:
            ConfigError: for a teacher that does not say which they are.
        """
        return self._teacher.propose(self._encoded)
