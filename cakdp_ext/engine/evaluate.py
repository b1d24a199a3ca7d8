"""Testing: detections of every frame, AP, recall, and the files that OpenPCDet leaves."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from easydict import EasyDict
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from cakdp_ext import ops
from cakdp_ext.checkpoint import CheckpointError, epoch_checkpoints, epoch_of
from cakdp_ext.config import ConfigError
from cakdp_ext.datasets import LidarDataset, write_kitti_labels
from cakdp_ext.engine.build import restore_student
from cakdp_ext.engine.data import build_split, evaluation_loader
from cakdp_ext.engine.distributed import Workers, gather
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.evaluation import EVALUATIONS
from cakdp_ext.files import atomic_path
from cakdp_ext.types import Annotations, Batch, Detections, Evaluation

POLL_SECONDS = 10.0


@dataclass(frozen=True)
class DetectorResult:
    """What testing a detector gave.

    Attributes:
        evaluation: AP and recall.
        annotations: detections of every frame in the data set's terms and order.
        seconds_per_frame: detector time after the warm-up, the first tenth of the batches; data loading apart.
    """

    evaluation: Evaluation
    annotations: list[dict[str, Any]]
    seconds_per_frame: float


def detect(
    model: nn.Module, loader: DataLoader, dataset: LidarDataset, place: Workers, desc: str = "test"
) -> tuple[list[dict[str, Any]], dict[str, int], list[float]]:
    """Run a detector over every frame of its share.

    Returns:
        The frames' annotations, recall counts (``gt``, ``rcnn_0.3``, ...), and the seconds that the detector took a
        frame in each batch.
    """
    annotations: list[dict[str, Any]] = []
    thresholds = cast(Any, model).recall_thresholds
    counts = {"gt": 0, **{f"rcnn_{t}": 0 for t in thresholds}}
    seconds: list[float] = []
    model.eval()
    with torch.inference_mode(), tqdm(total=len(loader), desc=desc, disable=not place.is_main, leave=False) as bar:
        for batch in loader:
            start = time.perf_counter()
            detections = model(batch.to(place.device))
            if place.device.type == "cuda":
                torch.cuda.synchronize(place.device)
            seconds.append((time.perf_counter() - start) / batch.batch_size)
            detections = [item.to("cpu") for item in detections]
            _count_recalled(counts, batch, detections, thresholds)
            annotations += dataset.to_annotations(batch, detections)
            bar.update()
    return annotations, counts, seconds


def _count_recalled(
    counts: dict[str, int], batch: Batch, detections: Sequence[Detections], thresholds: Sequence[float]
) -> None:
    for boxes, labels, found in zip(batch.gt_boxes, batch.gt_labels, detections, strict=True):
        real = boxes[labels >= 0]
        counts["gt"] += len(real)
        if len(real) and len(found.boxes):
            best: Tensor = ops.iou_3d(real, found.boxes.to(real)).amax(dim=1)
            for threshold in thresholds:
                counts[f"rcnn_{threshold}"] += int((best > threshold).sum())


def evaluate_detector(
    model: nn.Module,
    dataset: LidarDataset,
    loader: DataLoader,
    place: Workers,
    folder: Path | None = None,
    desc: str = "test",
    *,
    quiet: bool = False,
) -> DetectorResult:
    """Test a detector on a data set and write its files.

    Args:
        model: detector on the device of ``place``.
        dataset: frames with labels.
        loader: of ``evaluation_loader``.
        place: this process; the shares of all are put together.
        folder: where ``result.pkl``, ``metrics.json`` and ``final_result/data/*.txt`` go; None writes nothing.
        desc: text of the progress bar.
        quiet: write the files, but print no table.

    Returns:
        The result, the same on every process.
    """
    truths = dataset.ground_truth()  # first, so that a split without labels costs no run
    annotations, counts, seconds = detect(model, loader, dataset, place, desc)
    shares = gather((annotations, counts, seconds))
    by_frame = {item["frame_id"]: item for share, _, _ in shares for item in share}
    ordered = [by_frame[frame] for frame in dataset.frame_ids]
    evaluation = _judge(dataset, truths, ordered)
    recall = _recall([share[1] for share in shares])
    lines = [f"{key}: {value:.4f}" for key, value in recall.items()]
    evaluation = Evaluation({**evaluation.metrics, **recall}, evaluation.text + "\n" + "\n".join(lines))
    result = DetectorResult(evaluation, ordered, seconds_per_frame([share[2] for share in shares]))
    if folder is not None and place.is_main:
        write_result(result, folder)
        if not quiet:
            LOG.info("%s\nwritten to %s", evaluation.text, folder)
    return result


def _judge(dataset: LidarDataset, truths: Annotations, annotations: Annotations) -> Evaluation:
    """Evaluate by the rules that a data set names in ``eval_metric`` (KITTI's where it does not), or by its own."""
    own = getattr(dataset, "evaluate", None)
    if own is not None:
        return cast(Evaluation, own(annotations))
    return EVALUATIONS[getattr(dataset, "eval_metric", "kitti")](truths, annotations, dataset.class_names)


def seconds_per_frame(shares: Sequence[Sequence[float]]) -> float:
    """Average the seconds a frame over the batches of every process, after the first tenth of each, which warms up."""
    warm = [share[-(-len(share) // 10) :] or share for share in shares]
    return float(np.mean([seconds for share in warm for seconds in share]))


def _recall(counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    total = {key: sum(part[key] for part in counts) for key in counts[0]}
    return {f"recall/{key}": total[key] / max(total["gt"], 1) for key in total if key != "gt"}


def write_result(result: DetectorResult, folder: Path) -> None:
    """Write detections and figures in OpenPCDet's layout."""
    with atomic_path(folder / "result.pkl") as path:
        path.write_bytes(pickle.dumps(result.annotations))
    with atomic_path(folder / "metrics.json") as path:
        path.write_text(json.dumps(dict(result.evaluation.metrics), indent=1), encoding="utf-8")
    if all("bbox" in annotation for annotation in result.annotations):
        write_kitti_labels(result.annotations, folder / "final_result" / "data")


def epochs_of(folder: Path, start_epoch: int = 0, patience: float = 0.0) -> Iterator[Path]:
    """Give a folder's epoch checkpoints as they appear, oldest first; every process gets the same ones.

    Args:
        folder: of the checkpoints, or of the run.
        start_epoch: those before it are left out.
        patience: seconds without a new one after which it ends; 0 takes what there is.

    Raises:
        CheckpointError: when there was none.
    """
    folder = folder / "ckpt" if (folder / "ckpt").is_dir() else folder
    given: set[Path] = set()
    since = time.monotonic()
    while True:
        found = [file for file in epoch_checkpoints(folder) if int(epoch_of(file)) >= start_epoch and file not in given]
        found, is_over = gather((found[:1], time.monotonic() - since >= patience))[0]
        if found:
            given.update(found)
            yield from found
            since = time.monotonic()
        elif is_over:
            break
        else:
            time.sleep(min(POLL_SECONDS, patience))
    if not given:
        raise CheckpointError(f"{folder} holds no checkpoint_epoch_*.pth from epoch {start_epoch} on; train first")


def evaluate_checkpoints(
    config: EasyDict,
    run: RunFolder,
    place: Workers,
    checkpoints: Iterable[Path],
    num_workers: int,
    *,
    split: str | None = None,
    tag: str = "default",
    batch_size: int | None = None,
) -> dict[str, DetectorResult]:
    """Test checkpoints of a run and write each one's figures.

    Args:
        config: of ``load_config``.
        run: where ``eval/epoch_N/<split>/<tag>`` goes.
        place: this process.
        checkpoints: files; each is tested before the next one is asked for.
        num_workers: loader processes.
        split: what to test on; None takes ``DATA_SPLIT.test``.
        tag: last folder.
        batch_size: over all processes; None takes ``BATCH_SIZE_PER_GPU``.

    Returns:
        The result of each checkpoint by file name.
    """
    split = split or str(config.DATA_CONFIG.DATA_SPLIT["test"])
    dataset = build_split(config, split)
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch_size must be at least 1, got {batch_size}")
    per_process = max(1, batch_size // place.world_size if batch_size else int(config.OPTIMIZATION.BATCH_SIZE_PER_GPU))
    loader = evaluation_loader(dataset, place, batch_size=per_process, num_workers=num_workers)
    results = {}
    for file in checkpoints:
        model = restore_student(config, dataset.geometry, file).model.to(place.device)
        folder = run.evaluation(epoch_of(file), split, tag)
        results[file.name] = evaluate_detector(model, dataset, loader, place, folder, f"test {file.stem}")
        if place.is_main:
            _to_tensorboard(run, results[file.name], epoch_of(file), split)
    return results


def _to_tensorboard(run: RunFolder, result: DetectorResult, epoch: str, split: str) -> None:
    if not epoch.isdigit():
        return
    with SummaryWriter(str(run.tensorboard / f"eval_{split}")) as writer:
        for key, value in result.evaluation.metrics.items():
            writer.add_scalar(key, value, int(epoch))
