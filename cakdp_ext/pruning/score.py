"""How much does every filter matter for the category predictions? Eq. 4 of the paper, averaged over frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from cakdp_ext import __version__
from cakdp_ext.pruning.artefacts import model_fingerprint
from cakdp_ext.pruning.gaps import EXACT_SCORING, FrameGaps
from cakdp_ext.pruning.graph import ChannelGraph
from cakdp_ext.types import Batch, FilterScores


def score_filters(
    model: nn.Module,
    batches: Iterable[Batch],
    predict: Callable[[nn.Module, Batch], Tensor],
    graph: ChannelGraph,
    *,
    removal: str = "channel",
    split: str = "",
    method: str = EXACT_SCORING,
    previous: FilterScores | None = None,
    on_frame: Callable[[FilterScores], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> FilterScores:
    """Measure by how much the category predictions change when a filter is absent.

    Args:
        model: what is scored; its modes and weights are left as they were.
        batches: frames, one or several a batch, on the model's device. A frame that was counted before, in
            ``previous`` or here, is not counted again.
        predict: gives the raw class logits ``(B, A, C)`` of a batch.
        graph: of ``model``.
        removal: ``channel``: the filter is absent for whatever it feeds, exactly as after surgery; ``zero_weight``:
            its weights and bias are zero but the norms behind it go on, so it outputs a constant, as in the paper's
            released code.
        split: data split that the frames come from.
        method: ``exact`` computes only what a missing filter changes; ``plain`` the whole network for each. They give
            the same scores.
        previous: scores of the same model, rule and split to go on with; its frames count as far as all filters were
            measured there.
        on_frame: called with the scores so far after each frame.
        progress: called with the number of filters done since the last call.

    Returns:
        Scores of every prunable filter. Those of a group are equal shares of what all of it is worth: filters that meet
        in a sum go together or not at all, so that Eq. 4 is asked of the group, and the sum over it is the answer.

    Raises:
        ValueError: for an unknown rule, ``previous`` scores of something else, no frame at all, logits of another
            shape, or NaN among them.

    Source: CaKDP (Zhang et al., CVPR 2024), Eq. 3-5.
    """
    gaps = FrameGaps(model, predict, graph, removal, method=method, progress=progress)
    scores, every = started_scores(model, graph, removal, split, previous), np.arange(len(graph.groups))
    scores = counting(scores, dict.fromkeys(whole_frames(previous) if previous else (), every), graph)
    for batch in batches:
        new = {frame: i for i, frame in enumerate(batch.frame_ids) if frame not in scores.frame_ids}
        rows = gaps.measure(batch) if lacking(scores, dict.fromkeys(new, every)) else None
        for frame, i in new.items():
            if rows is not None:
                scores = with_gaps(scores, {frame: rows[i]})
            scores = counting(scores, dict.fromkeys((*scores.frame_ids, frame), every), graph)
            if on_frame is not None:
                on_frame(scores)
    if not scores.frame_ids:
        raise ValueError(f"filters cannot be scored on no frame; the batches of split {split!r} are empty")
    return scores


def started_scores(
    model: nn.Module, graph: ChannelGraph, removal: str, split: str, previous: FilterScores | None = None
) -> FilterScores:
    """Begin with no frame that counts; what ``previous`` scores know of any frame is spare.

    Raises:
        ValueError: when those are of another model, rule, split or scope, or cannot be gone on with.
    """
    zeros = {layer.name: np.zeros(layer.num_filters) for layer in graph.prunable}
    gaps = np.zeros((0, len(graph.groups)))
    fresh = FilterScores(zeros, model_fingerprint(model), removal, split, (), __version__, gaps)
    if previous is None:
        return fresh
    for name in ("fingerprint", "removal", "split"):
        before, now = getattr(previous, name), getattr(fresh, name)
        if before != now:
            what = "model (its weights differ)" if name == "fingerprint" else name
            raise ValueError(
                f"the previous scores are of another {what}: {before!r}, now {now!r}; "
                "score into another file, or remove the old one"
            )
    if {name: len(values) for name, values in previous.values.items()} != {n: len(v) for n, v in zeros.items()}:
        raise ValueError(
            f"the previous scores cover {', '.join(previous.values)}, but {', '.join(zeros)} can be pruned now; "
            "score with the same scope, or remove the old file"
        )
    if previous.gaps is None or previous.gaps.shape != (len(previous.frame_ids), len(graph.groups)):
        raise ValueError(
            "the previous scores do not say what each frame gave, so that no frame can be added; score into another "
            "file, or remove the old one"
        )
    return counting(replace(previous, version=__version__, race=None), {}, graph)


def with_gaps(scores: FilterScores, gaps: Mapping[str, np.ndarray]) -> FilterScores:
    """Put what was measured on record, without counting it.

    Args:
        scores: so far.
        gaps: frame -> ``(groups,)``, what each group's absence changes there; NaN where that was not measured.
    """
    spare = dict(scores.spare)
    for frame, new in gaps.items():
        old = spare.get(frame, new)
        spare[frame] = np.where(np.isnan(old), new, old)
    return replace(scores, spare=spare)


def counting(scores: FilterScores, asked: Mapping[str, np.ndarray], graph: ChannelGraph) -> FilterScores:
    """Let exactly what is asked for count, as far as it was measured; the rest of what is on record is spare.

    Args:
        scores: so far.
        asked: frame -> numbers of the groups that count there; in this order, so that scores do not depend on who was
            first to be done.
        graph: of the network.
    """
    record = _record(scores)
    is_asked = {frame: np.isin(np.arange(len(graph.groups)), numbers) for frame, numbers in asked.items()}
    counted = {frame: np.where(is_asked[frame], record[frame], np.nan) for frame in asked if frame in record}
    rest = {frame: np.where(is_asked.get(frame, False), np.nan, row) for frame, row in sorted(record.items())}
    gaps = np.stack(list(counted.values())) if counted else np.zeros((0, len(graph.groups)))
    spare = {frame: row for frame, row in rest.items() if not np.isnan(row).all()}
    return _averaged(replace(scores, frame_ids=tuple(counted), gaps=gaps, spare=spare), graph)


def lacking(scores: FilterScores, asked: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pick what is asked for and was never measured: frame -> numbers of groups, without frames that lack nothing."""
    record = _record(scores)
    missing = {
        frame: numbers[np.isnan(record[frame][numbers])] if frame in record else numbers
        for frame, numbers in asked.items()
    }
    return {frame: numbers for frame, numbers in missing.items() if len(numbers)}


def whole_frames(scores: FilterScores) -> tuple[str, ...]:
    """Name the frames that count on which every filter was measured."""
    if scores.gaps is None:
        return scores.frame_ids
    is_whole = ~np.isnan(scores.gaps).any(axis=1)
    return tuple(frame for frame, whole in zip(scores.frame_ids, is_whole, strict=True) if whole)


def _record(scores: FilterScores) -> dict[str, np.ndarray]:
    """Give all that was ever measured: frame -> ``(groups,)``."""
    assert scores.gaps is not None
    counted = dict(zip(scores.frame_ids, scores.gaps, strict=True))
    return dict(with_gaps(replace(scores, spare=counted), scores.spare).spare)


def _averaged(scores: FilterScores, graph: ChannelGraph) -> FilterScores:
    """Share the means over frames among the filters of each group."""
    means = _mean_gaps(scores)
    values = {layer.name: np.zeros(layer.num_filters) for layer in graph.prunable}
    for mean, group in zip(means, graph.groups, strict=True):
        for layer, channel in group:
            values[layer][channel] = mean / len(group)
    return replace(scores, values=values)


def _mean_gaps(scores: FilterScores) -> np.ndarray:
    """Average over the frames that count for each group: ``(groups,)`` float64; 0 where none does."""
    assert scores.gaps is not None
    is_known = ~np.isnan(scores.gaps)
    return np.where(is_known, scores.gaps, 0).sum(axis=0) / np.maximum(is_known.sum(axis=0), 1)
