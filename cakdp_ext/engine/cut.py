"""Which cut fits the budget? Parameters and multiply-accumulates are counted, latency is measured, on test frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from easydict import EasyDict
from torch import nn

from cakdp_ext.config import ConfigError
from cakdp_ext.engine.build import build_full
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.measure import Cost, call, cost_frames, device_name, measure_cost, time_frames
from cakdp_ext.engine.runs import LOG
from cakdp_ext.pruning import (
    ACTIVATIONS,
    EXACT,
    KEEP_RATIO,
    LATENCY,
    Budget,
    ChannelGraph,
    CutCost,
    CutCounter,
    CutLadder,
    LatencyStats,
    PruningConfig,
    apply_plan,
    channel_graph,
    count_layers,
    inherit_weights,
    plan_of,
    short,
)
from cakdp_ext.types import Batch, PruningPlan

LATENCY_STEPS = 6
"""How often a search by latency halves its interval."""


@dataclass(frozen=True)
class Place:
    """Where and on what cuts are measured.

    Attributes:
        device: of the networks.
        num_frames: of the test split, evenly spaced.
    """

    device: torch.device = torch.device("cpu")
    num_frames: int = 8


class Cuts:
    """The cuts of one student that MODEL.PRUNING leaves to choose from, and what they cost.

    What is counted and measured is the network that the YAML describes and that is trained next, its IoU branch
    included, with the student's weights. It is built when a cost is asked for, and frames are read then.

    Args:
        config: of ``load_config``, with ``MODEL.PRUNING``.
        pruning: that section.
        ladder: of the student's graph.
        source: what plans say about their origin.
        place: where costs are measured.
    """

    def __init__(
        self, config: EasyDict, pruning: PruningConfig, ladder: CutLadder, source: Mapping[str, Any], place: Place
    ) -> None:
        self.config, self.pruning, self.ladder, self.source, self.place = config, pruning, ladder, source, place

    @cached_property
    def frames(self) -> list[Batch]:
        """Evenly spaced frames of the test split."""
        dataset = build_split(self.config, str(self.config.DATA_CONFIG.DATA_SPLIT["test"]))
        return cost_frames(dataset, self.place.device, self.place.num_frames)

    @cached_property
    def _traced(self) -> tuple[nn.Module, ChannelGraph]:
        """The network of the YAML before the cut, and its channel graph."""
        geometry = build_split(self.config, str(self.config.DATA_CONFIG.DATA_SPLIT["test"])).geometry
        with torch.random.fork_rng():
            network = build_full(self.config, geometry)
            inherit_weights(network, replace(self.pruning, initial_weights="inherited"))
            graph = channel_graph(network, geometry)
        return network.to(self.place.device).eval(), graph

    @cached_property
    def _counter(self) -> CutCounter:
        network, graph = self._traced
        counts = [count_layers(partial(call, batch=frame), network, (EXACT, ACTIVATIONS)) for frame in self.frames]
        return CutCounter(network, graph, counts)

    def plan(self, kept: Iterable[int], **more: Any) -> PruningPlan:
        """Write down a choice of groups."""
        return plan_of(self.ladder, kept, {**self.source, **more})

    def by_ratio(self, keep_ratio: float) -> PruningPlan:
        """Give the cut of a keep ratio."""
        return self.plan(self.ladder.kept_by_ratio(keep_ratio), keep_ratio=float(keep_ratio))

    def count(self, plan: PruningPlan) -> CutCost:
        """Count what a cut costs."""
        return self._counter(plan)

    def time(self, plan: PruningPlan) -> LatencyStats:
        """Cut, run and time the cut network on the frames."""
        return time_frames(self._cut(plan), self.frames)

    def measure(self, plan: PruningPlan | None) -> Cost:
        """Cut, count, run and time; None stands for the whole network."""
        return measure_cost(self._traced[0] if plan is None else self._cut(plan), self.frames)

    def _cut(self, plan: PruningPlan) -> nn.Module:
        network, graph = self._traced
        return apply_plan(network, plan, graph)

    def choose(self) -> PruningPlan:
        """Choose the largest cut within the budget of MODEL.PRUNING.

        Raises:
            ConfigError: when no cut is as small, naming what can be reached.
            ValueError: when a keep ratio leaves a layer empty, or less than the layers' rules ask for.
        """
        budget = self.pruning.budget
        if budget.kind == KEEP_RATIO:
            return self.by_ratio(budget.amount)
        amounts: dict[int, float] = {}

        def cost(rung: int) -> float:
            if rung not in amounts:
                amounts[rung] = self._cost(self.plan(self.ladder.kept(rung)), budget)
            return amounts[rung]

        search = _highest_as_fast if budget.kind == LATENCY else CutLadder.highest_within
        rung = search(self.ladder, cost, budget.amount)
        if rung is None:
            raise self._out_of_reach(budget, cost(self.ladder.lowest), cost(self.ladder.highest))
        if rung == self.ladder.highest:
            LOG.warning("the whole network is within %s: nothing is cut", budget)
        where = {"measured_on": device_name(self.place.device)} if budget.kind == LATENCY else {}
        return self.plan(self.ladder.kept(rung), **{budget.kind: budget.amount}, reached=amounts[rung], **where)

    def _cost(self, plan: PruningPlan, budget: Budget) -> float:
        if budget.kind != LATENCY:
            return float(getattr(self.count(plan), budget.kind))
        latency, counted = self.time(plan), self.count(plan)
        LOG.info("%s parameters, %s MACs: measured p50 %.2f ms, p90 %.2f ms", short(counted.params),
                 short(counted.macs), latency.p50, latency.p90)  # fmt: skip
        return latency.p50

    def _out_of_reach(self, budget: Budget, least: float, most: float) -> ConfigError:
        return ConfigError(
            f"MODEL.PRUNING.{budget} cannot be met: cuts of this network by {self.ladder.criterion} with "
            f"{self.ladder.rules} have {budget.text(least)} to {budget.text(most)}; ask for more, or relax the rules"
        )


def _highest_as_fast(ladder: CutLadder, cost: Callable[[int], float], milliseconds: float) -> int | None:
    """Find a rung as `CutLadder.highest_within` does, but measure few of them; None where even the lowest is slower."""
    low, high = ladder.lowest, ladder.highest
    if cost(high) <= milliseconds:
        return high
    if cost(low) > milliseconds:
        return None
    for _ in range(LATENCY_STEPS):
        if high - low < 2:
            break
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= milliseconds else (low, middle)
    return low
