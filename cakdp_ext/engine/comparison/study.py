"""The study: plans, trainings, tests and the report, each made once, whoever interrupts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from easydict import EasyDict

from cakdp_ext.config import ConfigError, dump_config
from cakdp_ext.engine.build import distill_config, pruning_config
from cakdp_ext.engine.comparison.narrow import plan_of_equal_latency
from cakdp_ext.engine.comparison.rows import Metrics, RowMaker
from cakdp_ext.engine.comparison.trainings import (
    PLAIN,
    ComparisonRequest,
    Training,
    label_of,
    taught_by,
    trainings_of,
)
from cakdp_ext.engine.contestants import ensure_plan, environment_of, require_sources
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.distributed import Workers, barrier
from cakdp_ext.engine.report import Report, ReportRow, console_table, render_report
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.step_cost import build_step
from cakdp_ext.engine.train import TrainRequest
from cakdp_ext.engine.trials import run_trial
from cakdp_ext.pruning import load_plan, save_plan


class Comparison:
    """Trains and tests every row with every seed, as far as that has not been done.

    Args:
        config: of ``load_config``, with ``MODEL.DISTILL``.
        run: where plans, the trainings' run folders and the report go.
        place: this process; all of them train and test, the first one plans, measures and writes.
        request: of each training, its seed apart.
        asked: methods and seeds.

    Raises:
        ConfigError, CheckpointError: for a YAML that distils nothing, a method or key that is not known, or a teacher
            or student that is missing.
    """

    def __init__(
        self, config: EasyDict, run: RunFolder, place: Workers, request: TrainRequest, asked: ComparisonRequest
    ) -> None:
        if not config.MODEL.get("DISTILL"):
            raise ConfigError(f"{config.CONFIG_FILE} has no MODEL.DISTILL; methods are compared under its teacher")
        for method in asked.methods:
            distill_config(taught_by(config, method))  # a name or key that is not known ends it here
        require_sources(config)
        self.config, self.run, self.place, self.request, self.asked = config, run, place, request, asked
        self.dataset = build_split(config, str(config.DATA_CONFIG.DATA_SPLIT["test"]))
        self.rows = RowMaker(config, self.dataset, place, asked.num_steps, request.use_amp)

    def go(self) -> Report | None:
        """Go through the seeds, and write the report after each.

        Returns:
            The last report, also in ``report.html`` and ``report.json``; None on other processes.
        """
        trainings = self._prepare()
        fixed = self.rows.fixed(self.run, self.request.num_workers)
        results: dict[str, list[Metrics]] = {training.label: [] for training in trainings}
        report = None
        for seed in self.asked.seeds:
            for training in trainings:
                results[training.label].append(self._train(training, seed))
            rows = [self.rows.trained(each, results[each.label], self._first(each)) for each in trainings]
            report = self._report([*fixed, *rows], results)
        return report

    def _prepare(self) -> list[Training]:
        """Make the plans, and build every training once, so that one that cannot start ends it before hours go by."""
        plan, narrow = self._plans()
        trainings = trainings_of(self.config, self.asked.methods, plan, narrow)
        if self.place.is_main:
            for training in trainings:
                build_step(training.config, self.dataset.geometry, self.place.device)
        barrier()
        return trainings

    def _plans(self) -> tuple[Path | None, Path | None]:
        """Give the files of the compact student's plan and of the narrow network's; None where nothing is cut."""
        pruning = pruning_config(self.config)
        if pruning is None:
            return None, None
        plan, narrow = Path(pruning.plan or self.run.plan), self.run.path / "narrow.json"
        ensure_plan(self.config, self.run, self.place, self.request.num_workers)
        if self.place.is_main:
            self._make_narrow(plan, narrow)
        barrier()
        return plan, narrow

    def _make_narrow(self, plan_file: Path, file: Path) -> None:
        """Search the narrow network's plan unless it has been found for this compact student."""
        plan = load_plan(plan_file)
        kept = {name: len(indices) for name, indices in plan.keep_indices.items()}
        if file.is_file() and load_plan(file).source.get("as_fast_as") == kept:
            return
        found = plan_of_equal_latency(self.config, plan, self.dataset, self.place)
        save_plan(file, replace(found, source={**found.source, "as_fast_as": kept}))

    def _train(self, training: Training, seed: int) -> Metrics:
        run = training.run(self.run, seed)
        metrics = run_trial(training.config, run, self.place, replace(self.request, seed=seed))
        line = "  ".join(f"{name} {metrics[name]:.2f}" for name in self.rows.headline)
        LOG.info("seed %d  %s  %s", seed, training.label, line)
        return metrics

    def _first(self, training: Training) -> RunFolder:
        return training.run(self.run, self.asked.seeds[0])

    def _report(self, rows: Sequence[ReportRow], results: Mapping[str, Sequence[Metrics]]) -> Report | None:
        if not self.place.is_main:
            return None
        means = {label: sum(self.rows.means(runs)) for label, runs in results.items()}
        report = Report(
            title=f"{self.config.CONFIG_FILE}: methods of distillation, {len(results[PLAIN])} of each training",
            rows=tuple(rows),
            class_names=tuple(self.config.CLASS_NAMES),
            settings=dump_config(self.config),
            environment=environment_of(self.place),
            reference=PLAIN,
            result=max(map(label_of, self.asked.methods), key=lambda label: means[label]),
            headline_metrics=self.rows.headline,
        )
        render_report(report, self.run.path)
        table = console_table(report.rows, report.headline_metrics)
        LOG.info("\n%s\nreport in %s", table, self.run.path / "report.html")
        return report
