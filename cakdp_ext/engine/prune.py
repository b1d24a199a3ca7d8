"""Scoring and planning as stages of a run: which frames, which model, where the artefacts go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from torch import nn
from tqdm.auto import tqdm

from cakdp_ext.checkpoint import find_checkpoint, read_checkpoint
from cakdp_ext.config import ConfigError, load_config, merge
from cakdp_ext.datasets import LidarDataset
from cakdp_ext.engine.build import (
    distill_config,
    load_source_config,
    pruning_config,
    require_same_world,
    restore_student,
)
from cakdp_ext.engine.cut import Cuts, Place
from cakdp_ext.engine.data import build_split, evaluation_loader
from cakdp_ext.engine.distributed import Workers
from cakdp_ext.engine.measure import device_name
from cakdp_ext.engine.plan_view import cost_table, plan_png, plan_table
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.sweep import SweepRow, sweep, sweep_csv, sweep_png, sweep_table
from cakdp_ext.engine.train import settings_of
from cakdp_ext.files import write_whole
from cakdp_ext.held_out import HELD_OUT, evenly_spaced
from cakdp_ext.pruning import (
    BUDGETS,
    PROPR,
    RANKED,
    ChannelGraph,
    PruningConfig,
    channel_graph,
    class_logits,
    criterion_of,
    first_difference,
    import_score_table,
    ladder_from_scores,
    load_scores,
    model_fingerprint,
    proportional_ladder,
    save_plan,
    save_scores,
    score_filters,
    scored_by,
)
from cakdp_ext.types import Batch, FilterScores, LidarGeometry, PruningPlan


def required_pruning(config: EasyDict) -> PruningConfig:
    """Read ``MODEL.PRUNING``, which the stage cannot do without; a mistake in ``MODEL.DISTILL`` comes out here too."""
    distill_config(config)
    pruning = pruning_config(config)
    if pruning is None:
        raise ConfigError(f"{config.CONFIG_FILE} has no MODEL.PRUNING section; there is nothing to prune")
    return pruning


def unpruned_student(config: EasyDict, geometry: LidarGeometry) -> nn.Module:
    """Restore the trained student that ``MODEL.PRUNING.STUDENT`` names."""
    pruning = required_pruning(config)
    source = load_source_config(pruning.student, config.CONFIG_FILE)
    require_same_world(source, config)
    return restore_student(source, geometry, pruning.student.ckpt).model


def scoring_frames(config: EasyDict) -> LidarDataset:
    """The ``NUM_FRAMES`` evenly spaced frames of ``SPLIT`` that filters are scored on; 0 takes all."""
    pruning = required_pruning(config)
    dataset = build_split(config, pruning.split)
    if pruning.split == HELD_OUT:
        _require_same_held_out(config, pruning.student.ckpt)
    if not 0 < pruning.num_frames < len(dataset):
        return dataset
    return dataset.subset([dataset.frame_ids[i] for i in evenly_spaced(len(dataset), pruning.num_frames)])


def _require_same_held_out(config: EasyDict, ckpt: str) -> None:
    """Frames that the student was trained on are not held out, whatever the YAML says now."""
    asked = str(config.DATA_CONFIG.get("NUM_HELD_OUT", 0))
    settings = read_checkpoint(ckpt).get("settings") or _settings_beside(ckpt)
    trained = settings.get("DATA_CONFIG.NUM_HELD_OUT", "0") if settings else asked
    if not settings:
        LOG.warning("nothing says whether %s was trained without the %s frames that are held out now", ckpt, asked)
    if trained != asked:
        raise ConfigError(
            f"{ckpt} was trained with DATA_CONFIG.NUM_HELD_OUT {trained}, now {asked} is asked for: frames that it was "
            "trained on would be scored as held out; keep the number, or score with MODEL.PRUNING.SPLIT train"
        )


def _settings_beside(ckpt: str) -> dict[str, str]:
    """Read what a training by OpenPCDet's script, which notes no settings, left in its run folder; {} for nothing."""
    merged = find_checkpoint(ckpt).resolve().parents[1] / "merged_config.yaml"
    return settings_of(load_config(merged)) if merged.is_file() else {}


def score(config: EasyDict, run: RunFolder, place: Workers, num_workers: int = 2) -> FilterScores:
    """Score every filter of the student (Eq. 4) and keep the scores in the run folder.

    A killed run goes on where it was: the file is written after every frame, and no frame counts twice.

    Raises:
        ConfigError: when run under several processes, or for a criterion that asks for no scores.
        ValueError: when the scores file belongs to another model, rule or split.
    """
    if place.world_size > 1:
        raise ConfigError("filters are scored by one process; start tools/score_filters.py without torchrun")
    pruning = required_pruning(config)
    if pruning.criterion not in RANKED:
        raise ConfigError(f"MODEL.PRUNING.CRITERION {pruning.criterion} asks for no scores; run tools/prune.py")
    dataset = scoring_frames(config)
    model = unpruned_student(config, dataset.geometry).to(place.device).eval()
    graph = channel_graph(model, dataset.geometry)
    previous = load_scores(run.scores) if run.scores.is_file() else None
    done = set(previous.frame_ids) if previous else set()
    todo = dataset.subset([frame for frame in dataset.frame_ids if frame not in done])
    LOG.info("scoring %d filters on %d frames of %s, %d done", _count(graph), len(dataset), pruning.split, len(done))
    with tqdm(total=len(todo) * _count(graph), desc="score", unit="filter", leave=False, mininterval=1.0) as bar:
        scores = score_filters(
            model,
            _batches(todo, place, num_workers),
            class_logits,
            graph,
            removal=pruning.removal,
            split=pruning.split,
            previous=previous,
            on_frame=lambda partial: save_scores(run.scores, partial),
            progress=lambda count: bar.update(count),
        )
    save_scores(run.scores, scores)
    LOG.info("scores of %d frames in %s", len(scores.frame_ids), run.scores)
    return scores


def _count(graph: ChannelGraph) -> int:
    return sum(layer.num_filters for layer in graph.prunable)


def _batches(dataset: LidarDataset, place: Workers, num_workers: int) -> Iterator[Batch]:
    if len(dataset) == 0:
        return
    for batch in evaluation_loader(dataset, place, batch_size=1, num_workers=num_workers):
        yield batch.to(place.device)


def ask_for(config: EasyDict, budget: Mapping[str, Any], rules: Mapping[str, Any]) -> EasyDict:
    """Lay what a command line says over MODEL.PRUNING; whatever is None stays as it is.

    Args:
        config: of ``load_config``; not changed.
        budget: ``keep_ratio``, ``params``, ``macs`` or ``latency``; one that is given takes the place of all others.
        rules: other keys of the section, by their names in ``PruningConfig``.

    Raises:
        ConfigError: where the YAML has no such section.
    """
    required_pruning(config)
    said = {key.upper(): value for key, value in {**budget, **rules}.items() if value is not None}
    if any(value is not None for value in budget.values()):
        said = {**dict.fromkeys(map(str.upper, BUDGETS)), **said}
    return EasyDict(merge(config, {"MODEL": {"PRUNING": said}}))


@dataclass(frozen=True)
class CutRequest:
    """What is shown of a cut before it is kept.

    Attributes:
        place: where costs are measured.
        shows_costs: whether the whole network and the cut one are run and timed.
        keeps: whether anything is written.
    """

    place: Place = field(default_factory=Place)
    shows_costs: bool = True
    keeps: bool = True


def make_plan(config: EasyDict, run: RunFolder, request: CutRequest | None = None) -> PruningPlan:
    """Choose the filters that stay, show what that comes to, and keep the plan and its picture in the run folder.

    Raises:
        ConfigError: when there are no scores yet, not of every frame, or of another model, rule or split; when no cut
            is within the budget. Nothing is written then.
        ValueError: when a layer would be left without filters.
    """
    request = request or CutRequest()
    cuts = cuts_of(config, run, request.place)
    plan = cuts.choose()
    LOG.info("%s", plan_table(plan))
    if request.shows_costs:
        LOG.info("on %d frames, %s:\n%s", len(cuts.frames), device_name(request.place.device),
                 cost_table({"before the cut": cuts.measure(None), "after the cut": cuts.measure(plan)}))  # fmt: skip
    if not request.keeps:
        LOG.info("nothing is written")
        return plan
    save_plan(run.plan, plan)
    title = f"{plan.keep_ratio:.1%} of the filters, by {criterion_of(plan)}"
    write_whole(run.plan_picture, plan_png(plan, title))
    LOG.info("plan in %s, picture in %s", run.plan, run.plan_picture)
    return plan


def sweep_cuts(
    config: EasyDict, run: RunFolder, request: CutRequest, ratios: Sequence[float] = (), *, with_latency: bool = False
) -> list[SweepRow]:
    """Show what the cuts of several keep ratios cost, and keep the curve in the run folder as CSV and as a picture.

    Args:
        config: of ``load_config``, with ``MODEL.PRUNING``; its budget plays no part.
        run: where the curve goes.
        request: as in `make_plan`; costs are always counted.
        ratios: see `sweep`.
        with_latency: whether each cut is run and timed.

    Raises:
        ConfigError, ValueError: as `make_plan`, and for a ratio that cannot be cut. Nothing is written then.
    """
    cuts = cuts_of(config, run, request.place)
    rows = sweep(cuts, ratios, with_latency=with_latency)
    where = f"{len(cuts.frames)} frames, {device_name(request.place.device)}"
    LOG.info("by %s with %s, on %s:\n%s", cuts.ladder.criterion, cuts.ladder.rules, where, sweep_table(rows))
    if not request.keeps:
        LOG.info("nothing is written")
        return rows
    write_whole(run.path / "sweep.csv", sweep_csv(rows))
    write_whole(
        run.path / "sweep.png", sweep_png(rows, f"{Path(config.CONFIG_FILE).name}: costs of the cut, on {where}")
    )
    LOG.info("curve in %s and %s", run.path / "sweep.csv", run.path / "sweep.png")
    return rows


def cuts_of(config: EasyDict, run: RunFolder, place: Place) -> Cuts:
    """Find the cuts that MODEL.PRUNING leaves to choose from: by the scores, or without any (ProPr).

    Raises:
        ConfigError: as `make_plan`.
    """
    pruning = required_pruning(config)
    if pruning.criterion == PROPR:
        geometry = build_split(config, str(config.DATA_CONFIG.DATA_SPLIT["test"])).geometry
        _, graph = _student_graph(config, geometry)
        return Cuts(config, pruning, proportional_ladder(graph, pruning.rules), {}, place)
    dataset = scoring_frames(config)
    model, graph = _student_graph(config, dataset.geometry)
    scores = named_scores(pruning.scores, graph) if pruning.scores else _own_scores(run, pruning, dataset)
    file = str(pruning.scores or run.scores)
    if scores.fingerprint not in ("", model_fingerprint(model)):
        raise ConfigError(f"{file} holds the scores of another model than {pruning.student.ckpt}; score that one")
    ladder = ladder_from_scores(scores, graph, pruning.criterion, pruning.rules)
    return Cuts(config, pruning, ladder, {**scored_by(scores), "scores": file}, place)


def _student_graph(config: EasyDict, geometry: LidarGeometry) -> tuple[nn.Module, ChannelGraph]:
    with torch.random.fork_rng():
        model = unpruned_student(config, geometry)
        return model, channel_graph(model, geometry)


def named_scores(path: str, graph: ChannelGraph) -> FilterScores:
    """Read a file of scores; a ``.txt`` is a table of the paper's authors."""
    return import_score_table(path, graph) if path.endswith(".txt") else load_scores(path)


def _own_scores(run: RunFolder, pruning: PruningConfig, dataset: LidarDataset) -> FilterScores:
    """Scores of the run folder, which must be those that the YAML asks for."""
    if not run.scores.is_file():
        raise ConfigError(
            f"no filter scores at {run.scores}; run tools/score_filters.py with the same --cfg and --extra_tag"
        )
    scores = load_scores(run.scores)
    require_made_with({"removal": scores.removal, "split": scores.split}, pruning, str(run.scores))
    missing = set(dataset.frame_ids) - set(scores.frame_ids)
    if missing:
        raise ConfigError(
            f"{run.scores} lacks {len(missing)} of {len(dataset)} frames; run tools/score_filters.py again, it goes on "
            "where it was stopped"
        )
    return scores


def require_made_with(source: Mapping[str, Any], pruning: PruningConfig, where: str) -> None:
    """Refuse scores or a plan that were made with other settings than the YAML asks for now.

    Raises:
        ConfigError: naming the first setting that differs.
    """
    if difference := first_difference(source, pruning):
        made, asked = difference
        raise ConfigError(f"{where} was made with {made}, now {asked} is asked for; use another --extra_tag")
