"""One training step: the student's task losses and, under a teacher, the distillation losses (Eq. 7)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.contract import OneStageStudent, TrainingOutput
from cakdp_ext.distillation import DistillConfig, Distiller, FrozenTeacher
from cakdp_ext.pruning import guide_weights_
from cakdp_ext.taps import Taps
from cakdp_ext.types import Batch, LidarGeometry, Role


class TrainingStep(nn.Module):
    """Turns a batch into named losses. Its parameters are those of the student and, behind them, of the projectors.

    Args:
        student: the bare detector, on its device; its sites are compared with the teacher's.
        teacher: the frozen detector, on the same device, or None for plain training.
        distill: settings of the distillation; needed with a teacher.

    Attributes:
        student: the bare detector.
        distiller: the teacher and the methods; None for plain training.

    Raises:
        ConfigError: when the student cannot be distilled under this teacher.
    """

    def __init__(
        self, student: nn.Module, teacher: FrozenTeacher | None = None, distill: DistillConfig | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.distiller: Distiller | None = None
        if teacher is not None and distill is not None:
            self.distiller = Distiller(distill, teacher)
            self.distiller.prepare(cast(OneStageStudent, student), getattr(student, "geometry", None))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Give every weighted loss of Eq. 7 by name; their sum is what is minimised.

        Under autocast the teacher computes in half precision too; boxes are decoded and Eq. 1 is computed in float32.
        After the demo bfloat16 moves the teacher's logits by 0.04 (root mean square), where they are 0.78 away from the
        student's: 0.3 % of the loss, and float16 is eight times finer.
        """
        if self.distiller is None:
            return dict(self.student(batch).losses)
        encoded = self.distiller.look(batch)
        sites = cast(OneStageStudent, self.student).sites
        output: TrainingOutput = self.student(self.distiller.targets(batch, encoded, sites))
        return {**output.losses, **self.distiller(batch, self._shown(output, self.distiller), encoded).losses}

    def start_from_teacher(self, geometry: LidarGeometry) -> None:
        """Give the student the first weights that a method of its teacher wants it to have, if one does.

        Raises:
            ConfigError: where the teacher has no such weights.
        """
        if self.distiller is not None and self.distiller.inherits is not None:
            guide_weights_(self.student, self.distiller.teacher.module, self.distiller.inherits, geometry)

    def _shown(self, output: TrainingOutput, distiller: Distiller) -> Taps:
        """Take what the methods ask for out of a forward of the student."""
        if output.tap is not None:
            return output.tap(distiller.shown)
        lacks = distiller.shown - {Role.DENSE} if output.predictions is not None else distiller.shown
        if lacks:
            raise ConfigError(
                f"{type(self.student).__name__} gives no {', '.join(sorted(role.value for role in lacks))} in "
                f"training, which {', '.join(distiller.each)} asks for; let the tap of its TrainingOutput give it"
            )
        return Taps(cast(OneStageStudent, self.student).sites, {Role.DENSE: output.predictions})


def mixed_precision(device: torch.device, use_amp: bool) -> torch.autocast:
    """Give the context that a step computes in: with ``use_amp`` float16 on CUDA, bfloat16 elsewhere."""
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=use_amp)
