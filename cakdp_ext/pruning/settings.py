"""What was asked of the cut? The keys of MODEL.PRUNING, how large the cut network may be, and where plans differ."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cakdp_ext.config import ModelSource
from cakdp_ext.pruning.criteria import CAPR, require_criterion
from cakdp_ext.pruning.gaps import EXACT_SCORING, PLAIN_SCORING, REMOVALS
from cakdp_ext.pruning.ladder import LayerRules
from cakdp_ext.pruning.plan import require_ratio
from cakdp_ext.types import PruningPlan

INITIAL_WEIGHTS = ("inherited", "random")
RACE = "race"
SCORINGS = (EXACT_SCORING, RACE, PLAIN_SCORING)
KEEP_RATIO, PARAMS, MACS, LATENCY = BUDGETS = ("keep_ratio", "params", "macs", "latency")
_AMOUNT = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_TIMES = {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3}


@dataclass(frozen=True)
class Budget:
    """How large the cut network may be.

    Attributes:
        kind: ``keep_ratio``, ``params``, ``macs`` or ``latency``.
        amount: share of the filters, parameters, multiply-accumulates of a frame, or milliseconds of a frame.
    """

    kind: str
    amount: float

    def __str__(self) -> str:
        return f"{self.kind.upper()} {self.text(self.amount)}"

    def text(self, amount: float) -> str:
        """Write an amount of this kind for people."""
        if self.kind == KEEP_RATIO:
            return f"{amount}"
        return f"{amount:.4g}ms" if self.kind == LATENCY else short(amount)


@dataclass(frozen=True)
class PruningConfig:
    """Keys of MODEL.PRUNING.

    Attributes:
        student: the trained network that is scored and cut.
        keep_ratio: share of all filters that stays, in (0, 1]; the paper's 1 - eta. Of this and the next three exactly
            one is given.
        params: so many parameters at most, as a number or like ``1.5M``.
        macs: so many multiply-accumulates of one frame at most, mean over frames of the test split; like ``30G``.
        latency: so many milliseconds for one frame at most, median on the machine that plans; like ``20ms``.
        min_filters: how many filters every layer keeps at least; 0 makes an emptied layer an error.
        round_to: every layer keeps a multiple of so many filters, or all.
        protect: layers that keep all their filters: shell patterns of their names or of the names of modules above.
        criterion: ``CaPr``: the largest scores of all layers together stay; ``RV-CaPr``: as many of each layer, but its
            smallest; ``RV-CaPr-global``: the smallest of all layers together; ``ProPr``: the same share of each layer,
            whatever the scores.
        removal: what "without this filter" means while scoring: ``channel`` or ``zero_weight``.
        scores: score file to plan from; None stands for the run folder's own.
        plan: plan file to cut by; None stands for the run folder's own.
        initial_weights: ``inherited``: those of the filters that stay; ``random``: fresh ones in the same shape.
        split: data split that the filters are scored on.
        num_frames: how many frames of it, evenly spaced; 0 takes all.
        scoring: ``exact``: every filter on every frame; ``race``: frames are added until it is settled which filters
            ``keep_ratio`` keeps; ``plain``: what ``exact`` gives, by running the whole network for every filter.
        confidence: of a race: a filter leaves it when its chance to be on the other side of the cut is below 1 - this.
        seed: of a race: the order in which it looks at the frames is drawn with it.
    """

    student: ModelSource
    keep_ratio: float | None = None
    params: Any = None
    macs: Any = None
    latency: Any = None
    min_filters: int = 0
    round_to: int = 1
    protect: tuple[str, ...] = ()
    criterion: str = CAPR
    removal: str = "channel"
    scores: str | None = None
    plan: str | None = None
    initial_weights: str = "inherited"
    split: str = "held_out"
    num_frames: int = 0
    scoring: str = EXACT_SCORING
    confidence: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "protect", (self.protect,) if isinstance(self.protect, str) else tuple(self.protect))
        _ = self.budget
        require_criterion(self.criterion)
        for name, known in (("removal", REMOVALS), ("initial_weights", INITIAL_WEIGHTS), ("scoring", SCORINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name.upper()} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, least in (("min_filters", 0), ("num_frames", 0), ("round_to", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name.upper()} must be a whole number of at least {least}, got {value!r}")
        if isinstance(self.confidence, bool) or not isinstance(self.confidence, float) or not 0 < self.confidence < 1:
            raise ValueError(f"CONFIDENCE must be a number between 0 and 1, got {self.confidence!r}")
        if not all(isinstance(pattern, str) for pattern in self.protect):
            raise ValueError(f"PROTECT must be a list of layer names or patterns, got {list(self.protect)!r}")

    @property
    def budget(self) -> Budget:
        """The one of the four that is given.

        Raises:
            ValueError: for none, more than one, or an amount that is none.
        """
        given = {kind: getattr(self, kind) for kind in BUDGETS if getattr(self, kind) is not None}
        if len(given) != 1:
            got = " and ".join(f"{kind.upper()} {amount}" for kind, amount in given.items())
            known = ", ".join(map(str.upper, BUDGETS))
            raise ValueError(
                f"{got} contradict each other: give one of {known}, and null for the others"
                if given
                else f"one of {known} must say how large the cut network may be"
            )
        ((kind, amount),) = given.items()
        if kind == KEEP_RATIO:
            require_ratio(amount)
            return Budget(kind, amount)
        return Budget(kind, read_amount(kind, amount))

    @property
    def rules(self) -> LayerRules:
        """What holds for each layer."""
        return LayerRules(self.min_filters, self.round_to, self.protect)

    def asked(self) -> dict[str, Any]:
        """Give what decides on the cut, for ``source`` of a plan: the budget, the criterion, and the layers' rules."""
        return {"criterion": self.criterion, self.budget.kind: self.budget.amount, **self.rules.as_dict()}


def criterion_of(plan: PruningPlan, config: PruningConfig | None = None) -> str:
    """Name what a plan was made by, as the paper does; with ``config``, the weights to start from count too."""
    name = str(plan.source.get("criterion", "a plan of one's own"))
    if config is None or config.initial_weights != "random":
        return name
    return "RD-CaPr" if name == CAPR else f"{name}, random weights"


def read_amount(kind: str, amount: Any) -> float:
    """Read a number of parameters or multiply-accumulates (``1.5M``, ``30G``), or a time (``20ms``, ``0.02s``).

    Args:
        kind: ``params``, ``macs`` or ``latency``; a latency without a unit is in milliseconds.
        amount: a number, or a text with a unit.

    Raises:
        ValueError: for anything that is no number above 0 with a unit of this kind.
    """
    units = _TIMES if kind == LATENCY else _COUNTS
    found = None if isinstance(amount, bool) else _AMOUNT.fullmatch(str(amount))
    unit = found.group(2).lower() if found else None
    try:
        value = float(found.group(1)) * units[unit] if found and unit in units else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        example = "20ms or 0.02s" if kind == LATENCY else "1.5M or 30G"
        raise ValueError(f"{kind.upper()} must be a number above 0, like {example}, got {amount!r}")
    return value


def short(amount: float) -> str:
    """Write a count with a unit: ``1.503M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if amount >= size:
            return f"{amount / size:.4g}{unit}"
    return f"{amount:.4g}"


def first_difference(source: Mapping[str, Any], pruning: PruningConfig) -> tuple[str, str] | None:
    """Compare what scores or a plan were made with to what is asked for now.

    Args:
        source: of a plan, or some of its keys. What it does not say is not compared, but where it names a criterion
            or a budget, keys that older plans lack stand for their defaults.
        pruning: what is asked for.

    Returns:
        The first setting that differs and its value then, and its value now; None where all agree.
    """
    made, asked = _budget_of(source), pruning.budget
    if made is not None and made != asked:
        return str(made), asked.text(asked.amount) if made.kind == asked.kind else str(asked)
    missing = LayerRules().as_dict() if made is not None or "criterion" in source else {}
    known = {**missing, **source}
    files = () if pruning.scores else ("removal", "split")
    for key in ("criterion", *LayerRules().as_dict(), *files):
        now = pruning.asked().get(key, getattr(pruning, key))
        if known.get(key, now) != now:
            return f"{key.upper()} {known[key]}", str(now)
    return None


def _budget_of(source: Mapping[str, Any]) -> Budget | None:
    return next((Budget(kind, source[kind]) for kind in BUDGETS if source.get(kind) is not None), None)
