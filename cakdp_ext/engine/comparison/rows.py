"""From trainings and detectors to the rows of a report: means over seeds, and what each network and step costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from easydict import EasyDict
from torch import nn

from cakdp_ext.checkpoint import find_checkpoint
from cakdp_ext.config import ConfigError, ModelSource
from cakdp_ext.datasets import LidarDataset
from cakdp_ext.engine.build import distill_config, load_source_config, pruning_config, restore_student
from cakdp_ext.engine.comparison.trainings import Training
from cakdp_ext.engine.contestants import STUDENT, headline_metrics_of, shown_ap, speak_of
from cakdp_ext.engine.distributed import Workers, barrier
from cakdp_ext.engine.measure import Cost, cost_frames, measure_cost
from cakdp_ext.engine.report import ReportRow
from cakdp_ext.engine.report.figures import MEAN
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.engine.step_cost import StepCost, measure_step
from cakdp_ext.engine.trials import Candidate, average, spread, test_once
from cakdp_ext.types import LidarGeometry

Metrics = Mapping[str, float]


class RowMaker:
    """Makes rows; a network that several of them share is measured once.

    Args:
        config: of ``load_config``, with ``MODEL.DISTILL``.
        dataset: the test split.
        place: this process; the first one measures while the others wait.
        num_steps: training steps that are timed for each row; 0 times none.
        use_amp: whether they are trained in mixed precision.
    """

    def __init__(
        self, config: EasyDict, dataset: LidarDataset, place: Workers, num_steps: int, use_amp: bool = False
    ) -> None:
        self.config, self.dataset, self.place, self.num_steps, self.use_amp = config, dataset, place, num_steps, use_amp
        self.headline = headline_metrics_of(config)
        self._costs: dict[str, Cost | None] = {}
        self._steps: dict[str, StepCost | None] = {}

    def fixed(self, run: RunFolder, num_workers: int) -> list[ReportRow]:
        """Test and measure what is not trained: the teacher, and the student before the cut where there is one.

        Args:
            run: where their tests are kept.
            num_workers: loader processes.
        """
        rows = []
        for name, candidate in self._sources().items():
            metrics = test_once(candidate, run.reported(name), self.config, self.place, num_workers)
            rows.append(self._row(name, "1.00", [metrics], self._cost(name, candidate.build)))
        return rows

    def trained(self, training: Training, runs: Sequence[Metrics], first: RunFolder) -> ReportRow:
        """Make the row of a training.

        Args:
            training: what was trained.
            runs: metrics of each seed.
            first: run folder of the first seed; its weights are measured with.
        """
        ckpt = first.checkpoints()[-1]

        def build(geometry: LidarGeometry) -> nn.Module:
            return restore_student(training.config, geometry, ckpt).model

        row = self._row(training.label, training.scheme, runs, self._cost(training.plan, build))
        if training.label not in self._steps:
            measures = self.place.is_main and self.num_steps > 0
            self._steps[training.label] = (
                measure_step(training.config, ckpt, self.place.device, self.num_steps, self.use_amp)
                if measures
                else None
            )
            barrier()
        row = replace(row, note="; ".join(filter(None, (training.note, row.note))))
        step = self._steps[training.label]
        return row if step is None else replace(row, step_ms=step.milliseconds, step_memory_mb=_mebibytes(step.memory))

    def means(self, runs: Sequence[Metrics]) -> list[float]:
        """Average, for every seed, the metrics that the paper compares."""
        return [sum(run[name] for name in self.headline) / len(self.headline) for run in runs]

    def _sources(self) -> dict[str, Candidate]:
        distill, pruning = distill_config(self.config), pruning_config(self.config)
        if distill is None:
            raise ConfigError(f"{self.config.CONFIG_FILE} has no MODEL.DISTILL; methods are compared under its teacher")
        found = {"teacher": self._source(distill.teacher)}
        return found if pruning is None else {**found, STUDENT: self._source(pruning.student)}

    def _source(self, source: ModelSource) -> Candidate:
        config = load_source_config(source, self.config.CONFIG_FILE)
        return Candidate(partial(self._restore, config, source.ckpt), config.MODEL, find_checkpoint(source.ckpt))

    def _restore(self, config: EasyDict, ckpt: str, geometry: LidarGeometry) -> nn.Module:
        model = restore_student(config, geometry, ckpt).model
        speak_of(self.config.CLASS_NAMES, config.CLASS_NAMES, model)
        return model

    def _cost(self, key: str, build: Callable[[LidarGeometry], nn.Module]) -> Cost | None:
        if key not in self._costs:
            self._costs[key] = None
            if self.place.is_main:
                model = build(self.dataset.geometry).to(self.place.device)
                self._costs[key] = measure_cost(model, cost_frames(self.dataset, self.place.device))
            barrier()
        return self._costs[key]

    def _row(self, name: str, scheme: str, runs: Sequence[Metrics], cost: Cost | None) -> ReportRow:
        (values, spreads), means = average(runs), self.means(runs)
        row = ReportRow(name, ap=shown_ap(values), config=scheme)
        if spreads:
            each = ", ".join(f"{mean:.2f}" for mean in means)
            row = replace(
                row,
                ap_spread={**spreads, MEAN: spread(means)},
                mean_ap_of_seeds=means,
                note=f"mean of each seed: {each}",
            )
        if cost is None:
            return row
        return replace(
            row,
            params=cost.params,
            macs=cost.macs,
            latency_p50_ms=cost.latency.p50,
            latency_p90_ms=cost.latency.p90,
            peak_memory_mb=_mebibytes(cost.memory),
        )


def _mebibytes(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 2**20
