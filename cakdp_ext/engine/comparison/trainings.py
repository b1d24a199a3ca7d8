"""What is asked for, and which trainings that makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydict import EasyDict

from cakdp_ext.config import ConfigError
from cakdp_ext.engine.build import pruning_config
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.pruning import BUDGETS, PROPR, WidthConfig, criterion_of, load_plan, read_width

PLAIN, NARROW = "no distillation", "narrow, no distillation"


@dataclass(frozen=True)
class ComparisonRequest:
    """The command line of a comparison.

    Attributes:
        methods: what METHOD may be: names, mappings with NAME, or lists of these for several at once.
        seeds: every training is made once with each.
        num_steps: training steps that are timed for each row; 0 times none.

    Raises:
        ConfigError: for a method or a seed that stands there twice, or a number of steps below 0.
    """

    methods: tuple[Any, ...]
    seeds: tuple[int, ...]
    num_steps: int = 5

    def __post_init__(self) -> None:
        labels = [label_of(method) for method in self.methods]
        if len(set(labels)) < len(labels):
            raise ConfigError(f"--methods names one twice: {', '.join(labels)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds must be different numbers, got {list(self.seeds)}")
        if self.num_steps < 0:
            raise ConfigError(f"--cost_steps must not be below 0, got {self.num_steps}")


@dataclass(frozen=True)
class Training:
    """One row that is trained.

    Attributes:
        label: of the row.
        config: names its plan where it is cut.
    """

    label: str
    config: EasyDict

    @property
    def plan(self) -> str:
        """File of its plan, which tells apart networks that cost something else; empty where nothing is cut."""
        pruning = pruning_config(self.config)
        return pruning.plan or "" if pruning is not None else ""

    @property
    def scheme(self) -> str:
        """What share of the filters stays and by what they were chosen, as in the column "Config." of Table 2."""
        pruning, width = pruning_config(self.config), scheme_of_width(self.config.MODEL)
        if pruning is None:
            return width
        plan = load_plan(self.plan)
        cut = f"{plan.source.get('keep_ratio', plan.keep_ratio):.2f} {criterion_of(plan, pruning)}"
        return cut if width == "1.00" else f"{cut} of {width}"

    @property
    def note(self) -> str:
        """What the search of the narrow network's plan found; empty for others."""
        ratio = load_plan(self.plan).source.get("latency_ratio") if self.plan else None
        return "" if ratio is None else f"takes {ratio:.2f} times as long as the compact student, run in turns"

    def run(self, folder: RunFolder, seed: int) -> RunFolder:
        """Name the run folder of one seed."""
        name = re.sub(r"[^A-Za-z0-9.]+", "_", self.label).strip("_")
        return RunFolder(folder.path / f"{name}_seed{seed}")


def scheme_of_width(model_cfg: Mapping[str, Any]) -> str:
    """Name the share of its filters that a network has from its birth: ``0.75``, or ``1.00 / 0.50`` of 3D and 2D."""
    width = read_width(model_cfg) or WidthConfig()
    shares = dict.fromkeys(f"{share:.2f}" for share in (width.backbone_3d, width.backbone_2d))
    return " / ".join(shares)


def label_of(method: Any) -> str:
    """Name a METHOD: ``SKD``, ``VanillaKD (TEMPERATURE 3.0)``, ``SKD + VanillaKD``."""
    if isinstance(method, list | tuple):
        return " + ".join(map(label_of, method))
    if not isinstance(method, Mapping):
        return str(method)
    keys = ", ".join(f"{key} {value}" for key, value in method.items() if key != "NAME")
    return f"{method.get('NAME')} ({keys})" if keys else str(method.get("NAME"))


def taught_by(config: EasyDict, method: Any) -> EasyDict:
    """Give a copy with another METHOD; everything else of MODEL.DISTILL stays."""
    named = [method] if isinstance(method, Mapping) else method
    return _with(config, DISTILL={**config.MODEL.DISTILL, "METHOD": named})


def trainings_of(config: EasyDict, methods: tuple[Any, ...], plan: Path | None, narrow: Path | None) -> list[Training]:
    """Give the rows that are trained: the cut alone, the narrow network alone, the cut under every method.

    Args:
        config: of ``load_config``, with ``MODEL.DISTILL``.
        methods: of the request.
        plan: file of the compact student's; None where nothing is cut.
        narrow: file of the narrow network's plan, likewise.
    """
    cut = config if plan is None else _with(config, PRUNING={**config.MODEL.PRUNING, "PLAN": str(plan)})
    found = [Training(PLAIN, _with(cut, DISTILL=None))]
    if narrow is not None:
        by = {**dict.fromkeys(map(str.upper, BUDGETS)), "PLAN": str(narrow), "CRITERION": PROPR}
        by["KEEP_RATIO"] = load_plan(narrow).source["keep_ratio"]
        found.append(Training(NARROW, _with(cut, DISTILL=None, PRUNING={**config.MODEL.PRUNING, **by})))
    return [*found, *(Training(label_of(method), taught_by(cut, method)) for method in methods)]


def _with(config: EasyDict, **sections: Any) -> EasyDict:
    """Give a copy with other sections of MODEL."""
    copy = deepcopy(config)
    copy.MODEL.update(EasyDict(sections))
    return copy
