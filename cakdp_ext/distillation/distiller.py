"""Everything that a student is taught by: the frozen teacher, the methods, and what of them is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cakdp_ext.checkpoint import PROJECTORS, load_weights
from cakdp_ext.config import ConfigError
from cakdp_ext.contract import EncodedScene, OneStageStudent, Teacher
from cakdp_ext.distillation.config import DistillConfig
from cakdp_ext.distillation.methods import DistillMethod, DistillOutput, Lesson, find_method
from cakdp_ext.distillation.teacher import FrozenTeacher, SecondStage
from cakdp_ext.looking import evaluating, example_frame
from cakdp_ext.taps import Taps
from cakdp_ext.types import Batch, LidarGeometry, PredictionSites, Role, Roles


@dataclass(frozen=True)
class Taught:
    """What one step of all methods gives.

    Attributes:
        losses: weighted scalars: ``distill_loss`` of a single method, ``distill_loss_<NAME>`` of each of several.
        num_representatives: ``(B,)`` int64, summed over the methods that choose samples; None where none does.
    """

    losses: Mapping[str, Tensor]
    num_representatives: Tensor | None

    @property
    def loss(self) -> Tensor:
        """Their sum."""
        return torch.stack([loss.float() for loss in self.losses.values()]).sum()


def build_methods(config: DistillConfig) -> dict[str, DistillMethod]:
    """Build the methods that a config names, by name; what of them is trained is made later."""
    return {choice.name: find_method(choice.name)(choice.options) for choice in config.methods}


def roles_of(methods: Iterable[DistillMethod]) -> Roles:
    """Give what some methods ask for, all together; whoever judges boxes needs predictions too."""
    roles: Roles = frozenset().union(*(method.taps for method in methods))
    return roles | {Role.DENSE} if Role.SECOND_STAGE in roles else roles


class Distiller(nn.Module):
    """Some methods under one teacher. Its parameters are the projectors; the teacher is none of them.

    Args:
        config: names the methods and their weights.
        teacher: who teaches.

    Raises:
        ConfigError: for a teacher without the second stage that a method asks for.
    """

    def __init__(self, config: DistillConfig, teacher: FrozenTeacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.methods = nn.ModuleDict(build_methods(config))
        self.weights = {choice.name: choice.weight for choice in config.methods}
        if Role.SECOND_STAGE in self.roles:
            teacher.require_second_stage()

    @property
    def each(self) -> dict[str, DistillMethod]:
        """The methods by name."""
        return {name: method for name, method in self.methods.items() if isinstance(method, DistillMethod)}

    @property
    def roles(self) -> Roles:
        """What the methods ask for, all together; what is not among it is not computed for them."""
        return roles_of(self.each.values())

    @property
    def adapts(self) -> bool:
        """Whether a method has parts to make from the shapes of what both detectors show."""
        return any(type(method).adapt is not DistillMethod.adapt for method in self.each.values())

    @property
    def is_trained(self) -> bool:
        """Whether a method has parameters or buffers: something to train, to move and to keep for a resume."""
        return any(True for _ in (*self.parameters(), *self.buffers()))

    def kept(self) -> dict[str, dict[str, Tensor]]:
        """Give what a checkpoint keeps of what is trained beside the student, for a resume only; nothing without."""
        state = {key: value.detach().cpu() for key, value in self.state_dict().items()}
        return {PROJECTORS: state} if state else {}

    def resume(self, content: Mapping[str, Any], where: Any) -> None:
        """Take it from a checkpoint.

        Raises:
            CheckpointError: for one that lacks it, or holds other shapes.
        """
        load_weights(self, content.get(PROJECTORS, {}), f"{PROJECTORS} of {where}")

    def prepare(self, student: OneStageStudent, geometry: LidarGeometry | None = None) -> None:
        """Refuse what does not fit, and make what is trained; called once, before there is an optimizer.

        Args:
            student: on its device, as is the teacher.
            geometry: of the frames that both see.

        Raises:
            ConfigError: when the teacher cannot teach this student.
        """
        for name, method in self.each.items():
            try:
                method.check(student.sites, self.teacher.sites)
            except ValueError as error:
                raise ConfigError(f"the teacher cannot teach this student by {name}: {error}") from error
        device = student.sites.centers.device
        if not self.adapts:
            self.to(device)
            return
        if geometry is None or not isinstance(student, Teacher):
            raise ConfigError(
                f"{', '.join(self.each)} must see what {type(student).__name__} computes before the training; give it "
                "sites and encode, as cakdp_ext.types.Teacher has them, and geometry"
            )
        frame = example_frame(geometry, device)
        with evaluating(student):
            ours, theirs = student.encode(frame, self.shown).taps, self.teacher.encode(frame, self.shown).taps
        for method in self.each.values():
            method.adapt(ours, theirs)
        self.to(device)

    @property
    def shown(self) -> Roles:
        """What both detectors show; the second stage is the teacher's alone."""
        return self.roles - {Role.SECOND_STAGE}

    @property
    def inherits(self) -> str | None:
        """Which of the teacher's filters the student's first weights are taken from; None leaves it its own."""
        return next((method.inherits for method in self.each.values() if method.inherits is not None), None)

    def look(self, batch: Batch) -> EncodedScene:
        """Let the teacher look at a batch, as far as the methods need it."""
        return self.teacher.encode(batch, self.shown)

    def targets(self, batch: Batch, encoded: EncodedScene, student: PredictionSites) -> Batch:
        """Let the methods say what the student shall find, see :meth:`DistillMethod.targets`.

        Args:
            batch: B frames.
            encoded: of :meth:`look`.
            student: where its predictions sit.
        """
        for method in self.each.values():
            batch = method.targets(batch, encoded.taps, student)
        return batch

    def forward(self, batch: Batch, student: Taps, encoded: EncodedScene | None = None) -> Taught:
        """Let every method compare.

        Args:
            batch: that the student saw, with the data set's own objects.
            student: what it shows of it, with gradient.
            encoded: of :meth:`look`; None lets the teacher look now.
        """
        encoded = self.look(batch) if encoded is None else encoded
        return self.compare(Lesson(batch, student, encoded.taps, SecondStage(self.teacher, encoded)))

    def compare(self, lesson: Lesson) -> Taught:
        """Let every method compare, and weigh what they say."""
        outputs: dict[str, DistillOutput] = {name: method(lesson) for name, method in self.each.items()}
        weighted = {name: self.weights[name] * output.loss for name, output in outputs.items()}
        counts = [output.num_representatives for output in outputs.values() if output.num_representatives is not None]
        is_one = len(weighted) == 1
        losses = {"distill_loss" if is_one else f"distill_loss_{name}": loss for name, loss in weighted.items()}
        return Taught(losses, torch.stack(counts).sum(dim=0) if counts else None)
