"""Which class stands behind a NAME in MODEL's sections; others may register theirs from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cakdp_ext.config import ConfigError, from_node

T = TypeVar("T", bound=type)


class Registry:
    """Classes by NAME for one slot of a detector.

    A class in here has an attribute ``Config``, a frozen dataclass of the section's keys, and takes an instance of it
    as the first argument of its constructor; the arguments that follow depend on the slot.
    """

    def __init__(self, slot: str) -> None:
        self.slot = slot
        self._classes: dict[str, type] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorate a class to be found under one or more names.

        Raises:
            ValueError: for a name that another class already has.
        """

        def add(cls: T) -> T:
            for name in names:
                owner = self._classes.setdefault(name, cls)
                if owner is not cls:
                    raise ValueError(f"{self.slot} {name!r} is {owner.__qualname__} already; choose another name")
            return cls

        return add

    def find(self, name: Any) -> type:
        """Give the class behind a name.

        Raises:
            ConfigError: for an unknown name; lists the known ones.
        """
        if name not in self._classes:
            raise ConfigError(f"unknown {self.slot} NAME {name!r}; known names: {', '.join(sorted(self._classes))}")
        return self._classes[name]

    def build(self, model_cfg: Mapping[str, Any], *args: Any) -> Any:
        """Build the module that a detector's configuration asks for in this slot.

        Args:
            model_cfg: MODEL's mapping; the section is the one named like the slot.
            args: what this slot's constructors take after their config.

        Raises:
            ConfigError: for a missing section, an unknown NAME, or keys that the class does not know.
        """
        section = model_cfg.get(self.slot)
        if not isinstance(section, Mapping):
            raise ConfigError(f"MODEL needs a section {self.slot} with a NAME, got {section!r}")
        node = upper_keys(section)
        cls: Any = self.find(node.pop("NAME", None))
        return cls(from_node(cls.Config, node, f"MODEL.{self.slot}"), *args)


def upper_keys(node: Any) -> Any:
    """Copy a tree with every key in upper case: OpenPCDet's configurations mix both spellings."""
    if isinstance(node, Mapping):
        return {str(key).upper(): upper_keys(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [upper_keys(item) for item in node]
    return node


VOXEL_FEATURES = Registry("VFE")
BACKBONES_3D = Registry("BACKBONE_3D")
MAPS_TO_BEV = Registry("MAP_TO_BEV")
BACKBONES_2D = Registry("BACKBONE_2D")
DENSE_HEADS = Registry("DENSE_HEAD")
POINT_ENCODERS = Registry("PFE")
POINT_HEADS = Registry("POINT_HEAD")
ROI_HEADS = Registry("ROI_HEAD")
DETECTORS = Registry("MODEL")
