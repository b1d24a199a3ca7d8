"""One training step: the student's task losses and, under a teacher, the distillation loss (Eq. 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation import DistillConfig, FrozenTeacher, build_method, match_sites
from cakdp_ext.types import Batch, OneStageStudent, TrainingOutput


class TrainingStep:
    """Turns a batch into named losses; the student is the only thing in it that trains.

    Args:
        student: the bare detector; its sites are compared with the teacher's.
        forward: what is called in training, the student itself or its DDP wrapper.
        teacher: the frozen two-stage detector, or None for plain training.
        distill: settings of the distillation; needed with a teacher.

    Raises:
        ConfigError: when the student cannot be distilled under this teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        forward: Callable[[Batch], TrainingOutput] | None = None,
        teacher: FrozenTeacher | None = None,
        distill: DistillConfig | None = None,
    ) -> None:
        self.student = cast(OneStageStudent, student)  # plain training asks for less than the protocol holds
        self.forward = forward or student
        self.teacher = teacher
        self.method = build_method(distill) if teacher is not None and distill is not None else None
        if teacher is not None:
            try:
                match_sites(self.student.sites, teacher.sites)
            except ValueError as error:
                raise ConfigError(f"the teacher cannot teach this student: {error}") from error

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Give every weighted loss of Eq. 7 by name; their sum is what is minimised.

        Under autocast the teacher computes in half precision too; boxes are decoded and Eq. 1 is computed in float32.
        After the demo bfloat16 moves the teacher's logits by 0.04 (root mean square), where they are 0.78 away from the
        student's: 0.3 % of the loss, and float16 is eight times finer.
        """
        output = self.forward(batch)
        losses = dict(output.losses)
        if self.method is not None and self.teacher is not None:
            if output.predictions is None:
                raise ConfigError(f"{type(self.student).__name__} gives no dense predictions; it cannot be distilled")
            encoded = self.teacher.encode(batch)
            result = self.method(output.predictions, self.student.sites, self.teacher, encoded)
            losses["distill_loss"] = result.loss
        return losses
