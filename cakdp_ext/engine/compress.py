"""The whole way: score, plan, cut, distil, test, measure, report. Each stage goes on where its last run stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from easydict import EasyDict

from cakdp_ext.config import dump_config, from_node
from cakdp_ext.datasets import LidarDataset
from cakdp_ext.engine.build import distill_config, load_source_config, restore_student
from cakdp_ext.engine.contestants import (
    STUDENT,
    Contestant,
    ensure_plan,
    environment_of,
    headline_metrics_of,
    require_sources,
    shown_ap,
    speak_of,
)
from cakdp_ext.engine.data import build_split, evaluation_loader, one_frame
from cakdp_ext.engine.distributed import Workers, barrier
from cakdp_ext.engine.evaluate import evaluate_detector
from cakdp_ext.engine.measure import cost_frames, measure_cost
from cakdp_ext.engine.report import Birdview, BirdviewPanel, Report, ReportRow, console_table, render_report
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.score import required_pruning, unpruned_student
from cakdp_ext.engine.train import TrainRequest
from cakdp_ext.engine.trials import train_by_engine
from cakdp_ext.pruning import apply_plan, channel_graph, criterion_of, iou_branch, load_plan
from cakdp_ext.refinement import IoURefinement
from cakdp_ext.types import LidarGeometry, PruningPlan


def compress(config: EasyDict, run: RunFolder, place: Workers, request: TrainRequest) -> Report | None:
    """Run every stage that is not done yet and report on the result.

    Args:
        config: of ``load_config``, with ``MODEL.PRUNING``.
        run: where scores, plan, checkpoints and the report go.
        place: this process; measuring and writing are the first one's.
        request: of the distilled training.

    Returns:
        The report, also in ``report.html`` and ``report.json`` of the run folder; None on other processes.

    Raises:
        ConfigError, CheckpointError: when teacher or student are missing or do not fit; the message says what to run.
    """
    pruning = required_pruning(config)
    require_sources(config)
    dataset = build_split(config, str(config.DATA_CONFIG.DATA_SPLIT["test"]))
    ensure_plan(config, run, place, request.num_workers)
    barrier()
    plan = load_plan(pruning.plan or run.plan)
    train_by_engine(config, run, place, request)
    contestants = list(_contestants(config, run, plan, dataset.geometry))
    rows = [_row(each, dataset, place, run, request.num_workers) for each in contestants]
    if not place.is_main:
        return None
    report = Report(
        title=f"{config.CONFIG_FILE}: {plan.keep_ratio:.0%} of the filters, by {criterion_of(plan, pruning)}",
        rows=tuple(rows),
        class_names=tuple(config.CLASS_NAMES),
        filters_per_layer={n: (len(plan.keep_indices[n]), total) for n, total in plan.num_filters.items()},
        birdviews=(_birdview(dataset, [c for c in contestants if c.is_shown], place),),
        settings=dump_config(config),
        environment=environment_of(place),
        reference=STUDENT,
        result=rows[-1].name,
        headline_metrics=headline_metrics_of(config),
    )
    render_report(report, run.path)
    LOG.info("\n%s\nreport in %s", console_table(report.rows, report.headline_metrics), run.path / "report.html")
    return report


def _contestants(config: EasyDict, run: RunFolder, plan: PruningPlan, geometry: LidarGeometry) -> Iterator[Contestant]:
    """Teacher, student, the cut alone, and the trained cut before and after its IoU mask."""
    distill = distill_config(config)
    if distill is not None:
        teacher = load_source_config(distill.teacher, config.CONFIG_FILE)
        model = restore_student(teacher, geometry, distill.teacher.ckpt).model
        speak_of(config.CLASS_NAMES, teacher.CLASS_NAMES, model)
        yield Contestant("teacher", model, teacher.MODEL.NAME, False)
    student = unpruned_student(config, geometry)
    yield Contestant(STUDENT, student, "before the cut")
    yield Contestant("pruned", apply_plan(student, plan, channel_graph(student, geometry)), "not trained again", False)
    trained = "pruned + distilled" if distill is not None else "pruned + trained"
    ckpt = run.checkpoints()[-1]
    result: Any = restore_student(config, geometry, ckpt).model
    if not iou_branch(result):
        yield Contestant(trained, result, ckpt.stem)
        return
    plain, mode = _without_refinement(config)
    yield Contestant(trained, restore_student(plain, geometry, ckpt).model, ckpt.stem)
    if mode != "none":
        yield Contestant(f"{trained} + IoU {mode}", result, "the result")


def _without_refinement(config: EasyDict) -> tuple[EasyDict, str]:
    """Give a copy whose IoU branch changes nothing, and what it does in ``config``."""
    plain, post_processing = deepcopy(config), config.MODEL.get("POST_PROCESSING") or {}
    plain.MODEL.POST_PROCESSING = {**post_processing, "IOU_REFINEMENT": {"MODE": "none"}}
    asked = from_node(IoURefinement, post_processing.get("IOU_REFINEMENT"), "MODEL.POST_PROCESSING.IOU_REFINEMENT")
    return plain, asked.mode


def _row(each: Contestant, dataset: LidarDataset, place: Workers, run: RunFolder, num_workers: int) -> ReportRow:
    model = each.model.to(place.device)
    loader = evaluation_loader(dataset, place, batch_size=1, num_workers=num_workers)
    result = evaluate_detector(model, dataset, loader, place, run.reported(each.name), f"test {each.name}", quiet=True)
    barrier()
    cost = measure_cost(model, cost_frames(dataset, place.device)) if place.is_main else None
    barrier()  # the others wait, so that nothing of theirs is timed
    if cost is None:
        return ReportRow(each.name)
    return ReportRow(
        name=each.name,
        params=cost.params,
        macs=cost.macs,
        latency_p50_ms=cost.latency.p50,
        latency_p90_ms=cost.latency.p90,
        peak_memory_mb=None if cost.memory is None else cost.memory / 2**20,
        ap=shown_ap(result.evaluation.metrics),
        note=each.note,
    )


def _birdview(dataset: LidarDataset, contestants: Sequence[Contestant], place: Workers) -> Birdview:
    """The frame with the most labelled objects, as each shown detector sees it."""
    names = [np.isin(truth["name"], dataset.class_names).sum() for truth in dataset.ground_truth()]
    batch = one_frame(dataset, int(np.argmax(names)))
    on_device = batch.to(place.device)
    panels = []
    for each in contestants:
        with torch.inference_mode():
            found = each.model.eval()(on_device)[0].to("cpu")
        panels.append(BirdviewPanel(each.name, found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()))
    low_x, low_y, _, high_x, high_y, _ = dataset.geometry.point_cloud_range
    points = batch.voxels.reshape(-1, batch.voxels.shape[-1])[:, :3].numpy()
    return Birdview(
        title=f"frame {batch.frame_ids[0]}",
        points=points[np.any(points != 0, axis=1)],
        gt_boxes=batch.gt_boxes[0][batch.gt_labels[0] >= 0].numpy(),
        panels=tuple(panels),
        extent=(low_x, low_y, high_x, high_y),
    )
