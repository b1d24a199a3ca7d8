"""How is a detector of OpenPCDet's taught, and where do the projectors live that are trained beside it?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from cakdp_ext.checkpoint import PROJECTORS
from cakdp_ext.config import ConfigError
from cakdp_ext.distillation import Distiller, FrozenTeacher, read_config
from cakdp_ext.openpcdet.dense import home_of
from cakdp_ext.openpcdet.teacher import build_teacher
from cakdp_ext.pruning import guide_weights_

LOG = logging.getLogger("cakdp_ext")


@dataclass(frozen=True)
class Distillation:
    """Who teaches, and how; no module, so that a student that holds it does not hold the methods as its own.

    Attributes:
        distiller: the teacher and the methods.
    """

    distiller: Distiller

    @property
    def teacher(self) -> FrozenTeacher:
        """Who teaches."""
        return self.distiller.teacher

    @classmethod
    def of(cls, node: Mapping[str, Any], dataset: Any) -> Distillation:
        """Build what MODEL.DISTILL describes.

        Raises:
            ConfigError: for keys, methods or a teacher that cannot be used.
        """
        config = read_config(node, "MODEL.DISTILL")
        return cls(Distiller(config, build_teacher(config, dataset)))

    def start(self, student: Any) -> None:
        """Give the student the first weights that a method wants it to have, if one does.

        Args:
            student: as it is built; it is moved to its head's anchors then.

        Raises:
            ConfigError: where the teacher has no such weights.
        """
        if self.distiller.inherits is None:
            return
        student.to(home_of(student.dense_head))
        self.teacher.to(home_of(student.dense_head))
        guide_weights_(student, self.teacher.module, self.distiller.inherits, student.geometry)

    def prepare(self, student: Any) -> None:
        """Refuse a teacher that does not fit, and give the student the projectors, if there are any, to train.

        Args:
            student: as it will train; where methods must see what both compute, it is moved to its head's anchors.

        Raises:
            ConfigError: where the teacher cannot teach it.
        """
        if self.distiller.adapts:
            student.to(home_of(student.dense_head))
            self.teacher.to(home_of(student.dense_head))
        self.distiller.prepare(student, student.geometry)
        self._require_leaves()
        if self.distiller.is_trained:
            student.projectors = Unsaved(self.distiller)

    def _require_leaves(self) -> None:
        """Refuse parameters that OpenPCDet's optimizers pass over: they look at modules without children alone."""
        for name, module in self.distiller.methods.named_modules():
            has_children = next(module.children(), None) is not None
            if has_children and (own := [key for key, _ in module.named_parameters(recurse=False)]):
                raise ConfigError(
                    f"{name} of MODEL.DISTILL.METHOD holds {', '.join(own)} beside modules of its own, where "
                    "OpenPCDet's optimizers do not train it; put it into a module without children"
                )

    def resume(self, content: Mapping[str, Any], file: Any) -> None:
        """Take the projectors from a checkpoint.

        One that OpenPCDet's own script wrote has none, since it saves nothing but the network: they start anew.

        Raises:
            CheckpointError: for projectors of other shapes.
        """
        if PROJECTORS in content:
            self.distiller.resume(content, file)
        elif self.distiller.kept():
            LOG.warning(
                "%s holds no projectors of MODEL.DISTILL, which start anew; start OpenPCDet by tools/train.py of "
                "cakdp_ext to have them saved",
                file,
            )


class Unsaved(nn.Module):
    """A module that is trained and moved with its owner, and is in no state dict of it.

    Args:
        module: whose tensors they are.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Add nothing."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Let the module find its own tensors, whatever is loaded into its owner."""
        state_dict.update({f"{prefix}module.{key}": value for key, value in self.module.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@contextmanager
def watching(head: nn.Module) -> Iterator[dict[str, Any]]:
    """Keep the ``batch_dict`` that a dense head is given while the block runs."""
    seen: dict[str, Any] = {}
    handle = head.register_forward_pre_hook(lambda _, given: seen.update(given[0]))
    try:
        yield seen
    finally:
        handle.remove()
