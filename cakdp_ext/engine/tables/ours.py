"""What a row of a table costs and reaches here: parameters, multiply-accumulates, AP of finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from torch import nn

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets.processing import PointProcessor
from cakdp_ext.engine.build import build_full, pruning_config, restore_student, source_file
from cakdp_ext.engine.cli import read_config
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.measure import cost_frames
from cakdp_ext.engine.prune import named_scores
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.tables.paper import MEAN
from cakdp_ext.pruning import (
    EXACT,
    PROPR,
    THOP,
    ChannelGraph,
    PruningConfig,
    apply_plan_,
    channel_graph,
    count_layers,
    count_parameters,
    load_plan,
    plan_from_scores,
    proportional_plan,
)
from cakdp_ext.types import Batch, LidarGeometry, PruningPlan


@dataclass(frozen=True)
class MeasureSettings:
    """Where to look.

    Attributes:
        data_paths: DATASET -> folder that takes the place of the YAML's DATA_PATH.
        scores: YAML of a student -> file of its filter scores, for pruned rows without a run.
        output_dir: first folder of the runs.
        extra_tag: last folder of the runs.
        num_frames: of the test split that multiply-accumulates are averaged over; 0 counts none.
        device: where forwards run.
    """

    data_paths: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[Path, str] = field(default_factory=dict)
    output_dir: str = "output"
    extra_tag: str = "default"
    num_frames: int = 8
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class Measured:
    """One row. None stands for what is not known.

    Attributes:
        params: trainable parameters.
        macs: convention -> multiply-accumulates, mean over the frames; empty without frames.
        cut_by: where the plan of a pruned row comes from; empty for an unpruned one, ``?`` where there is no plan.
        metrics: of the newest evaluation in the run folder.
    """

    params: int | None = None
    macs: Mapping[str, float] = field(default_factory=dict)
    cut_by: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    def ap(self, columns: Mapping[str, str]) -> list[float | None]:
        """Give the figures under a table's metrics."""
        found = {name: self.metrics.get(key) for name, key in columns.items() if key != MEAN}
        values = [value for value in found.values() if value is not None]
        mean = sum(values) / len(values) if values and len(values) == len(found) else None
        return [mean if key == MEAN else found[name] for name, key in columns.items()]


class Measurer:
    """Measures rows; networks that several rows share are run once, and frames are read once."""

    def __init__(self, settings: MeasureSettings) -> None:
        self.settings = settings
        self._costs: dict[str, tuple[int, dict[str, float]]] = {}
        self._frames: dict[str, list[Batch]] = {}
        self._graphs: dict[str, ChannelGraph] = {}

    def measure(self, cfg: Path) -> Measured:
        """Measure what a YAML describes, trained or not.

        A run folder with a checkpoint gives plan and weights. Otherwise weights are random, and a pruned network is cut
        by the run folder's plan, by ProPr where the YAML asks for it, or by the scores of its student.

        Raises:
            ConfigError, CheckpointError: where the parts do not fit.
        """
        config = read_config(str(cfg))
        run = RunFolder.of(cfg, self.settings.extra_tag, self.settings.output_dir)
        metrics = read_metrics(run, str(config.DATA_CONFIG.DATA_SPLIT["test"]))
        geometry = PointProcessor.from_config(config.DATA_CONFIG, training=False).voxelizer.geometry
        if run.checkpoints():
            student = restore_student(config, geometry, run.checkpoints()[-1])
            cut_by = "checkpoint" if student.plan else ""
            return Measured(*self._cost(str(run.checkpoints()[-1]), student.model, config), cut_by, metrics)
        torch.manual_seed(0)  # what a second stage meets depends on the weights
        model = build_full(config, geometry)
        pruning, plan, cut_by = pruning_config(config), None, ""
        if pruning is not None:
            graph = partial(self._graph, _identity(config, geometry, None), model, geometry)
            plan, cut_by = self._plan(config, pruning, graph, run.plan)
            if plan is None:
                return Measured(None, {}, "?", metrics)
            apply_plan_(model, plan, graph())
        return Measured(*self._cost(_identity(config, geometry, plan), model, config), cut_by, metrics)

    def _graph(self, key: str, model: nn.Module, geometry: LidarGeometry) -> ChannelGraph:
        if key not in self._graphs:
            self._graphs[key] = channel_graph(model, geometry)
        return self._graphs[key]

    def _plan(
        self, config: EasyDict, pruning: PruningConfig, graph: Callable[[], ChannelGraph], of_run: Path
    ) -> tuple[PruningPlan | None, str]:
        """Find or make the plan of a pruned row, and say by what; None where nothing tells it."""
        file = Path(pruning.plan or of_run)
        if file.is_file():
            return load_plan(file), file.name
        if pruning.keep_ratio is None:
            return None, "?"  # its budget is searched by tools/prune.py
        rules: dict[str, Any] = pruning.rules.as_dict()
        if pruning.criterion == PROPR:
            return proportional_plan(graph(), pruning.keep_ratio, **rules), PROPR
        scores = pruning.scores or self._scores_of(source_file(pruning.student, config.CONFIG_FILE).resolve())
        if scores is None:
            return None, "?"
        values = named_scores(scores, graph())
        plan = plan_from_scores(values, graph(), pruning.keep_ratio, criterion=pruning.criterion, **rules)
        return plan, "scores"

    def _scores_of(self, student: Path) -> str | None:
        """The scores that were given for a student's YAML."""
        return next((file for cfg, file in self.settings.scores.items() if cfg.resolve() == student), None)

    def _cost(self, key: str, model: nn.Module, config: EasyDict) -> tuple[int, dict[str, float]]:
        frames = self._frames_of(config)
        if key not in self._costs:
            model.to(self.settings.device).eval()
            self._costs[key] = count_parameters(model), mean_macs(model, frames)
        return self._costs[key]

    def _frames_of(self, config: EasyDict) -> list[Batch]:
        """Evenly spaced frames of the test split; none where the data are not there."""
        if not self.settings.num_frames:
            return []
        data = deepcopy(config.DATA_CONFIG)
        data.KEEP_POINTS = True  # some networks look at them, and all shall see the same frames
        data.DATA_PATH = self.settings.data_paths.get(data.DATASET, data.DATA_PATH)
        key = json.dumps({k: v for k, v in data.items() if k not in ("NUM_HELD_OUT", "DATA_AUGMENTOR")}, default=str)
        if key not in self._frames:
            self._frames[key] = []
            if Path(data.DATA_PATH).is_dir():
                dataset = build_split(EasyDict({**config, "DATA_CONFIG": data}), str(data.DATA_SPLIT["test"]))
                self._frames[key] = cost_frames(dataset, self.settings.device, self.settings.num_frames)
            LOG.info("%s in %s: %d frames", data.DATASET, data.DATA_PATH, len(self._frames[key]))
        return self._frames[key]


def _identity(config: EasyDict, geometry: LidarGeometry, plan: PruningPlan | None) -> str:
    """Tell networks apart that cost something else."""
    free = ("PRUNING", "DISTILL", *(() if "ROI_HEAD" in config.MODEL else ("POST_PROCESSING",)))
    network = {key: value for key, value in config.MODEL.items() if key not in free}
    kept = plan.keep_indices if plan else None
    return json.dumps([network, list(config.CLASS_NAMES), str(geometry), kept], default=str)


def mean_macs(model: nn.Module, frames: list[Batch]) -> dict[str, float]:
    """Average the multiply-accumulates of one frame by both conventions; {} without frames."""

    def call(network: Any, batch: Batch) -> None:
        network(batch)

    with torch.inference_mode():
        counts = [count_layers(partial(call, batch=batch), model, (EXACT, THOP)) for batch in frames]
    return {name: float(np.mean([count[name].total for count in counts])) for name in (EXACT, THOP) if counts}


def read_metrics(run: RunFolder, split: str) -> dict[str, float]:
    """Read what a run reached: the test of its last epoch, else that of the last row of its report; {} for nothing.

    Raises:
        ConfigError: for a file that is not whole.
    """
    tested = [path for path in run.path.glob(f"eval/epoch_*/{split}/default/metrics.json")]
    file = max(tested, key=_epoch, default=run.path / "report.json")
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if file.name == "report.json":
            return _reported(run, content["rows"][-1])
        return _numbers(content)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{file} is no whole evaluation ({error}); test the run again") from error


def _reported(run: RunFolder, row: Mapping[str, Any]) -> dict[str, float]:
    """Read every metric of the test behind a row, or what the report shows of them where that is gone."""
    file = run.reported(row["name"]) / "metrics.json"
    return _numbers(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else row["ap"])


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {str(key): float(value) for key, value in metrics.items() if value is not None}


def _epoch(file: Path) -> int:
    epoch = file.parts[-4].removeprefix("epoch_")
    return int(epoch) if epoch.isdigit() else -1
