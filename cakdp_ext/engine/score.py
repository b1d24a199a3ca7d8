"""Scoring as a stage of a run: which student, which frames, by how many processes, and how a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    Forced,
    FrameGaps,
    PruningConfig,
    RaceRules,
    Standing,
    channel_graph,
    class_logits,
    counting,
    decide,
    forced_by,
    lacking,
    load_scores,
    require_raceable,
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
    where it was, with any number of processes. However many there are, the scores are the same. What a file holds of
    frames that are not asked for now is kept beside and does not count.

    Args:
        config: of ``load_config``, with ``MODEL.PRUNING``; its ``SCORING`` says how.
        run: where the scores go.
        place: this process.
        num_workers: data loading processes.

    Raises:
        ConfigError: for a criterion that asks for no scores, or a race without ``KEEP_RATIO``.
        ValueError: when the scores file belongs to another model, rule or split; for a race by another criterion than
            CaPr, or one that cannot keep as much as the rules of the layers ask for.
    """
    pruning = required_pruning(config)
    if pruning.criterion not in RANKED:
        raise ConfigError(f"MODEL.PRUNING.CRITERION {pruning.criterion} asks for no scores; run tools/prune.py")
    rules = _race_rules(pruning) if pruning.scoring == RACE else None
    dataset = scoring_frames(config)
    model = unpruned_student(config, dataset.geometry).to(place.device).eval()
    graph = channel_graph(model, dataset.geometry)
    forced = Forced() if rules is None else _forced(rules, pruning, graph)
    scores = started_scores(model, graph, pruning.removal, pruning.split, _previous(run, place))
    with tqdm(desc="score", unit="filter", leave=False, mininterval=1.0, disable=not place.is_main) as bar:
        method = PLAIN_SCORING if pruning.scoring == PLAIN_SCORING else EXACT_SCORING
        gaps = FrameGaps(model, class_logits, graph, pruning.removal, method=method, progress=bar.update)
        stage = _Stage(dataset, graph, gaps, run, place, num_workers, bar)
        if rules is None:
            scores = stage.measure(scores, dict.fromkeys(dataset.frame_ids, np.arange(len(graph.groups))))
        else:
            scores = race(scores, dataset.frame_ids, rules, stage.measure, forced)
    if place.is_main:
        save_scores(run.scores, scores)
    LOG.info("%s in %s", _said(scores, graph), run.scores)
    return scores


def _previous(run: RunFolder, place: Workers) -> FilterScores | None:
    """Let the first process read the scores so far: others may not see its folder, or see it later."""
    found: FilterScores | ValueError | None = None
    if place.is_main and run.scores.is_file():
        try:
            found = load_scores(run.scores)
        except ValueError as error:  # all of them end, none waits for the others
            found = error
    found = gather(found)[0]
    if isinstance(found, ValueError):
        raise found
    return found


def _race_rules(pruning: PruningConfig) -> RaceRules:
    require_raceable(pruning.criterion)
    if pruning.keep_ratio is None:
        raise ConfigError(
            "a race decides on one cut: give MODEL.PRUNING.KEEP_RATIO (--keep), or score exactly (SCORING: exact)"
        )
    return RaceRules(pruning.keep_ratio, pruning.confidence, seed=pruning.seed)


def _forced(rules: RaceRules, pruning: PruningConfig, graph: ChannelGraph) -> Forced:
    """Tell a race what the rules of the layers force to stay, and the user what it cannot know."""
    forced = forced_by(pruning.rules, graph)
    pruning.rules.room_beside(len(forced.always), rules.keep_ratio, len(graph.groups))
    if pruning.round_to > 1:
        LOG.warning(
            "a race decides filter by filter; with ROUND_TO %d whole blocks stay or go, so that tools/prune.py may "
            "find the cut not settled and ask for exact scores", pruning.round_to,
        )  # fmt: skip
    return forced


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

    def measure(self, scores: FilterScores, asked: Mapping[str, np.ndarray]) -> FilterScores:
        """Measure what is asked for and not on record, and let exactly that count.

        Args:
            scores: so far.
            asked: frame -> numbers of groups.
        """
        todo, wanted = lacking(scores, asked), list(asked.values())[-1]
        LOG.info(
            "scoring %d filters on %d frames of %s, %d done",
            sum(len(self.graph.groups[n]) for n in wanted), len(asked), scores.split, len(asked) - len(todo),
        )  # fmt: skip
        if not todo:
            return counting(scores, asked, self.graph)
        share = list(todo)[self.place.rank :: self.place.world_size]
        self.bar.total = self.bar.n + sum(len(self.graph.groups[n]) for frame in share for n in todo[frame])
        batches = self._batches(list(todo))
        for _ in range(-(-len(todo) // self.place.world_size)):
            batch = next(batches, None)
            row = {} if batch is None else {batch.frame_ids[0]: self.gaps.measure(batch, todo[batch.frame_ids[0]])[0]}
            rows = {frame: found for each in gather(row) for frame, found in each.items()}
            scores = counting(with_gaps(scores, rows), asked, self.graph)
            if self.place.is_main:
                save_scores(self.run.scores, scores)
        return scores

    def _batches(self, frame_ids: Sequence[str]) -> Iterator:
        frames = self.dataset.subset(frame_ids)
        for batch in evaluation_loader(frames, self.place, batch_size=1, num_workers=self.num_workers):
            yield batch.to(self.place.device)


Measure = Callable[[FilterScores, Mapping[str, np.ndarray]], FilterScores]
"""Scores so far and what is asked for, frame -> numbers of groups, to scores in which exactly that counts."""


def race(
    scores: FilterScores, frame_ids: Sequence[str], rules: RaceRules, measure: Measure, forced: Forced | None = None
) -> FilterScores:
    """Add frames until the filters that stay are settled.

    Args:
        scores: so far.
        frame_ids: all frames that may be looked at; they come in an order drawn with the seed of ``rules``.
        rules: when a filter leaves the race.
        measure: adds frames to scores, for some groups.
        forced: what the rules of the layers force to stay.

    Returns:
        Scores of the filters on the frames on which they were in this race, whatever else is known of them, and how it
        ended.
    """
    order = [frame_ids[i] for i in np.random.default_rng(rules.seed).permutation(len(frame_ids))]
    assert scores.gaps is not None
    forced, asked = forced or Forced(), dict[str, np.ndarray]()
    standing = Standing.start(scores.gaps.shape[1], forced)
    for stage in rules.stages(len(order)):
        asked |= dict.fromkeys((order[i] for i in stage), standing.open)
        scores = measure(scores, asked)
        assert scores.gaps is not None
        standing = decide(standing, scores.gaps, len(order), rules, forced)
        LOG.info(
            "%d of %d frames: %d still open, expected agreement %.2f%%",
            stage.stop, len(order), len(standing.open), 100 * standing.agreement,
        )  # fmt: skip
        if standing.agreement >= rules.agreement or not len(standing.open):
            break
    return replace(scores, race=standing.result(rules, len(order)))
