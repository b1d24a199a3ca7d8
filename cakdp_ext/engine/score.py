"""Scoring as a stage of a run: which student, which frames, by how many processes, and how a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
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
from cakdp_ext.engine.distributed import Workers, gather
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.train import settings_of
from cakdp_ext.held_out import HELD_OUT, evenly_spaced
from cakdp_ext.pruning import (
    EXACT_SCORING,
    PLAIN_SCORING,
    RACE,
    RANKED,
    ChannelGraph,
    FrameGaps,
    PruningConfig,
    RaceRules,
    Standing,
    channel_graph,
    class_logits,
    decide,
    in_order,
    load_scores,
    save_scores,
    started_scores,
    with_gaps,
)
from cakdp_ext.types import FilterScores, LidarGeometry


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
    """Score the filters of the student (Eq. 4) and keep the scores in the run folder.

    Frames are dealt out to the processes, and the file is written whenever each has done one: a killed run goes on
    where it was, with any number of processes. However many there are, the scores are the same.

    Args:
        config: of ``load_config``, with ``MODEL.PRUNING``; its ``SCORING`` says how.
        run: where the scores go.
        place: this process.
        num_workers: data loading processes.

    Raises:
        ConfigError: for a criterion that asks for no scores, or a race without ``KEEP_RATIO``.
        ValueError: when the scores file belongs to another model, rule or split.
    """
    pruning = required_pruning(config)
    if pruning.criterion not in RANKED:
        raise ConfigError(f"MODEL.PRUNING.CRITERION {pruning.criterion} asks for no scores; run tools/prune.py")
    rules = _race_rules(pruning) if pruning.scoring == RACE else None
    dataset = scoring_frames(config)
    model = unpruned_student(config, dataset.geometry).to(place.device).eval()
    graph = channel_graph(model, dataset.geometry)
    previous = load_scores(run.scores) if run.scores.is_file() else None
    scores = replace(started_scores(model, graph, pruning.removal, pruning.split, previous), race=None)
    with tqdm(desc="score", unit="filter", leave=False, mininterval=1.0, disable=not place.is_main) as bar:
        method = PLAIN_SCORING if pruning.scoring == PLAIN_SCORING else EXACT_SCORING
        gaps = FrameGaps(model, class_logits, graph, pruning.removal, method=method, progress=bar.update)
        stage = _Stage(dataset, graph, gaps, run, place, num_workers, bar)
        if rules is None:
            scores = stage.measure(scores, dataset.frame_ids, np.arange(len(graph.groups)))
        else:
            scores = race(scores, dataset.frame_ids, rules, stage.measure)
    if place.is_main:
        save_scores(run.scores, scores)
    LOG.info("%s in %s", _said(scores, graph), run.scores)
    return scores


def _race_rules(pruning: PruningConfig) -> RaceRules:
    if pruning.keep_ratio is None:
        raise ConfigError(
            "a race decides on one cut: give MODEL.PRUNING.KEEP_RATIO (--keep), or score exactly (SCORING: exact)"
        )
    return RaceRules(pruning.keep_ratio, pruning.confidence)


def _said(scores: FilterScores, graph: ChannelGraph) -> str:
    frames = f"scores of {graph.num_filters} filters on {len(scores.frame_ids)} frames"
    if scores.race is None or scores.gaps is None:
        return frames
    share = float((~np.isnan(scores.gaps)).mean())
    left = int((scores.race.decided != 0).sum())
    return (
        f"race for KEEP_RATIO {scores.race.keep_ratio}: {frames}, {share:.0%} of them measured; {left} of "
        f"{len(graph.groups)} decisions settled at confidence {scores.race.confidence}, expected agreement with exact "
        f"scores {scores.race.agreement:.2%};"
    )


@dataclass(frozen=True)
class _Stage:
    """Measures frames, together with the other processes.

    Attributes:
        dataset: all frames.
        graph: of the student.
        gaps: measures one frame.
        run: where the scores so far are kept.
        place: this process.
        num_workers: data loading processes.
        bar: told of this process's work.
    """

    dataset: LidarDataset
    graph: ChannelGraph
    gaps: FrameGaps
    run: RunFolder
    place: Workers
    num_workers: int
    bar: tqdm

    def measure(self, scores: FilterScores, frame_ids: Sequence[str], wanted: np.ndarray) -> FilterScores:
        """Measure some groups on some frames, except where that is on record already."""
        todo = {frame: missing for frame in frame_ids if len(missing := _missing(scores, frame, wanted))}
        LOG.info(
            "scoring %d filters on %d frames of %s, %d done",
            sum(len(self.graph.groups[n]) for n in wanted), len(frame_ids), scores.split, len(frame_ids) - len(todo),
        )  # fmt: skip
        if not todo:
            return scores
        share = list(todo)[self.place.rank :: self.place.world_size]
        self.bar.total = self.bar.n + sum(len(self.graph.groups[n]) for frame in share for n in todo[frame])
        batches = self._batches(list(todo))
        for _ in range(-(-len(todo) // self.place.world_size)):
            batch = next(batches, None)
            row = {} if batch is None else {batch.frame_ids[0]: self.gaps.measure(batch, todo[batch.frame_ids[0]])[0]}
            rows = {frame: found for each in gather(row) for frame, found in each.items()}
            scores = in_order(with_gaps(scores, rows, self.graph), self.dataset.frame_ids, self.graph)
            if self.place.is_main:
                save_scores(self.run.scores, scores)
        return scores

    def _batches(self, frame_ids: Sequence[str]) -> Iterator:
        frames = self.dataset.subset(frame_ids)
        for batch in evaluation_loader(frames, self.place, batch_size=1, num_workers=self.num_workers):
            yield batch.to(self.place.device)


def _missing(scores: FilterScores, frame: str, wanted: np.ndarray) -> np.ndarray:
    """Pick the groups that were not measured on a frame yet."""
    if frame not in scores.frame_ids or scores.gaps is None:
        return wanted
    return wanted[np.isnan(scores.gaps[scores.frame_ids.index(frame), wanted])]


Measure = Callable[[FilterScores, Sequence[str], np.ndarray], FilterScores]


def race(scores: FilterScores, frame_ids: Sequence[str], rules: RaceRules, measure: Measure) -> FilterScores:
    """Add frames until the filters that stay are settled.

    Args:
        scores: so far.
        frame_ids: all frames that may be looked at; they come in an order drawn with a fixed seed.
        rules: when a filter leaves the race.
        measure: adds frames to scores, for some groups.

    Returns:
        Scores of the filters on the frames on which they were in the race, and how it ended.
    """
    order = [frame_ids[i] for i in np.random.default_rng(0).permutation(len(frame_ids))]
    assert scores.gaps is not None
    standing = Standing.start(scores.gaps.shape[1])
    for stage in rules.stages(len(order)):
        scores = measure(scores, [order[i] for i in stage], standing.open)
        assert scores.gaps is not None
        seen = [scores.frame_ids.index(frame) for frame in order[: stage.stop]]
        standing = decide(standing, scores.gaps[seen], len(order), rules)
        LOG.info(
            "%d of %d frames: %d still open, expected agreement %.2f%%",
            stage.stop, len(order), len(standing.open), 100 * standing.agreement,
        )  # fmt: skip
        if standing.agreement >= rules.agreement or not len(standing.open):
            break
    return replace(scores, race=standing.result(rules))
