"""Who teaches, and cannot learn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.types import Batch, EncodedScene, PredictionSites, ProposingTeacher, TeacherRois, TwoStageTeacher


class FrozenTeacher:
    """A two-stage detector in eval mode without gradients, itself a ``ProposingTeacher``.

    It is no ``nn.Module`` on purpose: as attribute of a student it enters neither its parameters nor its state dict,
    and the student's ``train()``, ``to()`` and DDP do not reach it.
    """

    def __init__(self, detector: nn.Module) -> None:
        """Take over a detector and freeze it.

        Raises:
            ValueError: for a detector without a second stage that judges given boxes.
        """
        if not isinstance(detector, TwoStageTeacher):
            raise ValueError(
                f"a teacher needs sites, encode and refine, {type(detector).__name__} lacks one of them; "
                "use a two-stage detector, e.g. VoxelRCNN"
            )
        self._detector: TwoStageTeacher = detector
        self._module: nn.Module = detector.eval().requires_grad_(False)

    @property
    def sites(self) -> PredictionSites:
        """Where the predictions of its first stage sit."""
        return self._detector.sites

    def encode(self, batch: Batch) -> EncodedScene:
        """Run the first stage; no proposals, no NMS, no gradient."""
        self._module.eval()
        with torch.no_grad():
            return self._detector.encode(batch)

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
            return self._detector.refine(encoded, rois)

    def follow(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply to its tensors what ``nn.Module._apply`` applies to those of whom it teaches: a move, a cast."""
        self._module._apply(change)

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move it, in place, and return it."""
        self._module.to(device)
        return self
