"""Scoring and planning as stages of a run: which frames, which model, where the artefacts go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from easydict import EasyDict
from torch import nn
from tqdm.auto import tqdm

from cakdp_ext.checkpoint import find_checkpoint, read_checkpoint
from cakdp_ext.config import ConfigError, load_config
from cakdp_ext.datasets import LidarDataset
from cakdp_ext.engine.build import (
    distill_config,
    load_source_config,
    pruning_config,
    require_same_world,
    restore_student,
)
from cakdp_ext.engine.data import build_split, evaluation_loader
from cakdp_ext.engine.distributed import Workers
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.train import settings_of
from cakdp_ext.held_out import HELD_OUT, evenly_spaced
from cakdp_ext.pruning import (
    PROPR,
    RANKED,
    ChannelGraph,
    PruningConfig,
    channel_graph,
    class_logits,
    criterion_of,
    import_score_table,
    load_scores,
    model_fingerprint,
    plan_from_scores,
    proportional_plan,
    save_plan,
    save_scores,
    score_filters,
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


def make_plan(config: EasyDict, run: RunFolder) -> PruningPlan:
    """Choose the filters that stay by MODEL.PRUNING.CRITERION and keep the plan in the run folder.

    Raises:
        ConfigError: when there are no scores yet, not of every frame, or of another model, rule or split.
        ValueError: when a layer would be left without filters.
    """
    pruning = required_pruning(config)
    plan = _proportional(config, pruning) if pruning.criterion == PROPR else _by_scores(config, pruning, run)
    save_plan(run.plan, plan)
    LOG.info("%s\nplan in %s", plan_table(plan), run.plan)
    return plan


def _proportional(config: EasyDict, pruning: PruningConfig) -> PruningPlan:
    geometry = build_split(config, str(config.DATA_CONFIG.DATA_SPLIT["test"])).geometry
    _, graph = _student_graph(config, geometry)
    return proportional_plan(graph, pruning.keep_ratio, min_filters=pruning.min_filters)


def _by_scores(config: EasyDict, pruning: PruningConfig, run: RunFolder) -> PruningPlan:
    """Plan from the run folder's scores, which must be whole, or from those that the YAML names."""
    dataset = scoring_frames(config)
    model, graph = _student_graph(config, dataset.geometry)
    scores = named_scores(pruning.scores, graph) if pruning.scores else _own_scores(run, pruning, dataset)
    if scores.fingerprint and scores.fingerprint != model_fingerprint(model):
        raise ConfigError(
            f"{pruning.scores or run.scores} holds the scores of another model than {pruning.student.ckpt}; "
            "score that one"
        )
    return plan_from_scores(
        scores,
        graph,
        pruning.keep_ratio,
        criterion=pruning.criterion,
        min_filters=pruning.min_filters,
        source={"scores": str(pruning.scores or run.scores)},
    )


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
    keys = ("criterion", "keep_ratio", "min_filters", *(() if pruning.scores else ("removal", "split")))
    for key in keys:
        asked = getattr(pruning, key)
        if source.get(key, asked) != asked:
            raise ConfigError(
                f"{where} was made with {key.upper()} {source[key]}, now {asked} is asked for; use another --extra_tag"
            )


def plan_table(plan: PruningPlan) -> str:
    """One line a layer: filters kept, of how many, as a bar; below, what they were chosen by and what sums tie."""
    width = max(map(len, plan.num_filters))
    lines = []
    for layer, total in plan.num_filters.items():
        kept = len(plan.keep_indices[layer])
        bar = "#" * round(24 * kept / total)
        lines.append(f"{layer:<{width}}  {kept:>5} of {total:<5} {bar}")
    kept, total = sum(map(len, plan.keep_indices.values())), sum(plan.num_filters.values())
    lines.append(f"{'all':<{width}}  {kept:>5} of {total:<5} ({plan.keep_ratio:.1%})")
    return "\n".join([*lines, *_decisions(plan)])


def _decisions(plan: PruningPlan) -> list[str]:
    """Say how many decisions there were, and which layers' filters were decided on together."""
    kept, total = plan.source.get("decisions", (None, None))
    lines = [f"by {criterion_of(plan)}" + (f": {kept} of {total} decisions stay" if total else "")]
    ties = plan.source.get("sums", ())
    if ties:
        lines.append("filters that meet in a sum are one decision, which counts once:")
    for tie in ties:
        stay, count = tie["decisions"]
        lines.append(f"  {stay} of {count} stay: {' + '.join(tie['layers'])}")
    return lines
