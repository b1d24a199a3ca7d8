"""Planning as a stage of a run: by which scores, within which budget, and where the plan goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from torch import nn

from cakdp_ext.config import ConfigError, merge
from cakdp_ext.engine.cut import Cuts, Place
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.measure import device_name
from cakdp_ext.engine.plan_view import cost_table, plan_png, plan_table
from cakdp_ext.engine.runs import LOG, RunFolder
from cakdp_ext.engine.score import required_pruning, scoring_frames, unpruned_student
from cakdp_ext.engine.sweep import SweepRow, sweep, sweep_csv, sweep_png, sweep_table
from cakdp_ext.files import write_whole
from cakdp_ext.pruning import (
    BUDGETS,
    PROPR,
    ChannelGraph,
    PruningConfig,
    channel_graph,
    criterion_of,
    first_difference,
    import_score_table,
    ladder_from_scores,
    load_scores,
    model_fingerprint,
    proportional_ladder,
    require_race_for,
    save_plan,
    scored_by,
    whole_frames,
)
from cakdp_ext.types import FilterScores, LidarGeometry, PruningPlan


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
        ConfigError: when there are no scores yet, not of exactly the frames that are asked for, or of another model,
            rule or split; when no cut is within the budget. Nothing is written then.
        ValueError: when a layer would be left without filters, or the scores are of a race that did not settle the cut.
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
    cuts = cuts_of(config, run, request.place, is_sweep=True)
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


def cuts_of(config: EasyDict, run: RunFolder, place: Place, *, is_sweep: bool = False) -> Cuts:
    """Find the cuts that MODEL.PRUNING leaves to choose from: by the scores, or without any (ProPr).

    Args:
        config: of ``load_config``, with ``MODEL.PRUNING``.
        run: whose scores count where the section names none.
        place: where costs are measured.
        is_sweep: whether other cuts than that of its budget are asked for.

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
    scores = named_scores(pruning.scores, graph) if pruning.scores else _own_scores(run, pruning)
    file = str(pruning.scores or run.scores)
    if scores.fingerprint not in ("", model_fingerprint(model)):
        raise ConfigError(f"{file} holds the scores of another model than {pruning.student.ckpt}; score that one")
    _require_asked_frames(scores, pruning, dataset.frame_ids, file)
    require_race_for(scores, None if is_sweep else pruning.keep_ratio, pruning.criterion)
    ladder = ladder_from_scores(scores, graph, pruning.criterion, pruning.rules)
    return Cuts(config, pruning, ladder, {**scored_by(scores), "scores": file}, place)


def _student_graph(config: EasyDict, geometry: LidarGeometry) -> tuple[nn.Module, ChannelGraph]:
    with torch.random.fork_rng():
        model = unpruned_student(config, geometry)
        return model, channel_graph(model, geometry)


def named_scores(path: str, graph: ChannelGraph) -> FilterScores:
    """Read a file of scores; a ``.txt`` is a table of the paper's authors."""
    return import_score_table(path, graph) if path.endswith(".txt") else load_scores(path)


def _own_scores(run: RunFolder, pruning: PruningConfig) -> FilterScores:
    """Scores of the run folder, which must be by the rule and of the split that the YAML asks for."""
    if not run.scores.is_file():
        raise ConfigError(
            f"no filter scores at {run.scores}; run tools/score_filters.py with the same --cfg and --extra_tag"
        )
    scores = load_scores(run.scores)
    require_made_with({"removal": scores.removal, "split": scores.split}, pruning, str(run.scores))
    return scores


def _require_asked_frames(scores: FilterScores, pruning: PruningConfig, frame_ids: Sequence[str], where: str) -> None:
    """Refuse scores that are no means over exactly the frames that are asked for; what is named by hand may not say.

    Raises:
        ConfigError: for a scoring that was stopped, or one of another split or number of frames.
    """
    if pruning.scores and (scores.gaps is None or not scores.frame_ids):
        return
    cure = "run tools/score_filters.py again, it goes on where it was stopped"
    if pruning.scores:
        cure = "complete it with tools/score_filters.py in its run folder, or ask for its SPLIT and NUM_FRAMES"
    asked, total = f"SPLIT {pruning.split}, NUM_FRAMES {pruning.num_frames}", len(frame_ids)
    if scores.split != pruning.split:
        raise ConfigError(f"{where} was made with SPLIT {scores.split}, now {asked} is asked for; {cure}")
    if scores.race is not None and scores.race.num_frames not in (None, total):
        raise ConfigError(
            f"{where} holds a race over {scores.race.num_frames} frames, {total} are asked for ({asked}); {cure}"
        )
    missing = set() if scores.race is not None else set(frame_ids) - set(whole_frames(scores))
    if missing:
        raise ConfigError(f"{where} lacks {len(missing)} of {total} frames; {cure}")
    more = set(scores.frame_ids) - set(frame_ids)
    if more and scores.gaps is not None:
        raise ConfigError(f"{where} counts {len(more)} frames that are not asked for ({asked}); {cure}")


def require_made_with(source: Mapping[str, Any], pruning: PruningConfig, where: str) -> None:
    """Refuse scores or a plan that were made with other settings than the YAML asks for now.

    Raises:
        ConfigError: naming the first setting that differs.
    """
    if difference := first_difference(source, pruning):
        made, asked = difference
        raise ConfigError(f"{where} was made with {made}, now {asked} is asked for; use another --extra_tag")
