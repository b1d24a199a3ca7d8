"""Trainings that are compared: each is made and tested once, and an interrupted study goes on where it stands."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydict import EasyDict
from torch import nn

from cakdp_ext.checkpoint import epoch_of
from cakdp_ext.engine.build import restore_student
from cakdp_ext.engine.choice import OPENPCDET, engine_name
from cakdp_ext.engine.data import build_split, evaluation_loader
from cakdp_ext.engine.distributed import Workers, barrier, gather
from cakdp_ext.engine.drive import train_with_openpcdet
from cakdp_ext.engine.evaluate import evaluate_detector
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.engine.train import TrainRequest, train
from cakdp_ext.files import atomic_path
from cakdp_ext.types import LidarGeometry


def train_by_engine(config: EasyDict, run: RunFolder, place: Workers, request: TrainRequest) -> None:
    """Train to the last epoch with the engine that is asked for, from wherever the run folder stands.

    Args:
        config: of ``load_config``.
        run: where everything is kept.
        place: this process.
        request: of the training.

    Raises:
        ConfigError, CheckpointError: when the parts do not fit.
    """
    if engine_name() == OPENPCDET:
        train_with_openpcdet(config, run, request, place)
    else:
        train(config, run, place, request)


def run_trial(
    config: EasyDict, run: RunFolder, place: Workers, request: TrainRequest, *, tag: str = "default"
) -> dict[str, float]:
    """Train what a YAML describes to the end, and test its last epoch, as far as either has not been done.

    Args:
        config: of ``load_config``, naming its plan where it prunes.
        run: where everything is kept.
        place: this process; all of them train and test.
        request: of the training.
        tag: last folder of the test.

    Returns:
        The metrics, the same on every process.

    Raises:
        ConfigError, CheckpointError: when the parts do not fit, or the run folder holds another training.
    """
    train_by_engine(config, run, place, request)
    ckpt = run.checkpoints()[-1]
    folder = run.evaluation(epoch_of(ckpt), str(config.DATA_CONFIG.DATA_SPLIT["test"]), tag)

    def build(geometry: LidarGeometry) -> nn.Module:
        return restore_student(config, geometry, ckpt).model

    return test_once(Candidate(build, config.MODEL, ckpt), folder, config, place, request.num_workers)


@dataclass(frozen=True)
class Candidate:
    """A detector that may have been tested before.

    Attributes:
        build: gives it; called only where it is to be tested.
        model_cfg: MODEL of its YAML, which says how boxes are chosen in the end.
        ckpt: that it is restored from.
    """

    build: Callable[[LidarGeometry], nn.Module]
    model_cfg: Mapping[str, Any]
    ckpt: Path

    def stamp(self, data_cfg: Mapping[str, Any]) -> list[str]:
        """Say what the figures of a test depend on."""
        head = self.model_cfg.get("DENSE_HEAD") or {}
        chosen_by = [self.model_cfg.get("POST_PROCESSING"), head.get("POST_PROCESSING"), data_cfg]
        return [str(self.ckpt.resolve()), str(self.ckpt.stat().st_mtime_ns), json.dumps(chosen_by, default=str)]


def test_once(
    candidate: Candidate, folder: Path, config: EasyDict, place: Workers, num_workers: int
) -> dict[str, float]:
    """Test a detector unless the folder holds its figures already.

    Args:
        candidate: the detector.
        folder: where figures and detections go.
        config: whose test split it is tested on.
        place: this process; all of them test.
        num_workers: loader processes.

    Returns:
        The metrics, the same on every process.
    """
    stamp, file = candidate.stamp(config.DATA_CONFIG), folder / "tested.json"
    found = json.loads(file.read_text(encoding="utf-8")) if place.is_main and file.is_file() else {}
    metrics = gather(found.get("metrics") if found.get("stamp") == stamp else None)[0]
    if metrics is not None:
        return dict(metrics)
    dataset = build_split(config, str(config.DATA_CONFIG.DATA_SPLIT["test"]))
    batch_size = int(config.OPTIMIZATION.BATCH_SIZE_PER_GPU)
    loader = evaluation_loader(dataset, place, batch_size=batch_size, num_workers=num_workers)
    model = candidate.build(dataset.geometry).to(place.device)
    result = evaluate_detector(model, dataset, loader, place, folder, f"test {candidate.ckpt.stem}", quiet=True)
    if place.is_main:
        with atomic_path(file) as path:
            path.write_text(json.dumps({"stamp": stamp, "metrics": dict(result.evaluation.metrics)}), encoding="utf-8")
    barrier()
    return dict(result.evaluation.metrics)


def average(runs: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Average the metrics of several seeds.

    Args:
        runs: metrics of each seed, at least one; what one of them lacks is left out.

    Returns:
        The means, and the standard deviations over the seeds, which are empty for a single one.
    """
    names = [name for name in runs[0] if all(name in run for run in runs)]
    means = {name: statistics.mean(run[name] for run in runs) for name in names}
    return means, {name: spread([run[name] for run in runs]) for name in names} if len(runs) > 1 else {}


def spread(values: Sequence[float]) -> float:
    """Give the standard deviation of a sample, 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
