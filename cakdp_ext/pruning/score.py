"""How much does every filter matter for the category predictions? Eq. 4 of the paper, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cakdp_ext import __version__
from cakdp_ext.pruning.artefacts import model_fingerprint
from cakdp_ext.pruning.graph import ChannelGraph, Filter
from cakdp_ext.pruning.replay import Absence, SuffixReplay
from cakdp_ext.types import Batch, FilterScores

REMOVALS = ("channel", "zero_weight")


def score_filters(
    model: nn.Module,
    batches: Iterable[Batch],
    predict: Callable[[nn.Module, Batch], Tensor],
    graph: ChannelGraph,
    *,
    removal: str = "channel",
    split: str = "",
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
        previous: scores of the same model, rule and split to go on with.
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
    if removal not in REMOVALS:
        raise ValueError(f"removal must be one of {', '.join(REMOVALS)}, got {removal!r}")
    scores = _start(model, graph, removal, split, previous)
    gaps = _FrameGaps(model, predict, graph, removal, progress)
    for batch in batches:
        new = {frame: i for i, frame in enumerate(batch.frame_ids) if frame not in scores.frame_ids}
        of_groups = gaps.measure(batch) if new else None
        for frame, column in new.items():
            scores = _count(scores, frame, of_groups[:, column], graph)  # type: ignore[index]
            if on_frame is not None:
                on_frame(scores)
    if not scores.frame_ids:
        raise ValueError(f"filters cannot be scored on no frame; the batches of split {split!r} are empty")
    return scores


def _start(
    model: nn.Module, graph: ChannelGraph, removal: str, split: str, previous: FilterScores | None
) -> FilterScores:
    zeros = {layer.name: np.zeros(layer.num_filters) for layer in graph.prunable}
    fresh = FilterScores(zeros, model_fingerprint(model), removal, split, (), __version__)
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
    return replace(previous, version=__version__)


def _count(scores: FilterScores, frame: str, gaps: np.ndarray, graph: ChannelGraph) -> FilterScores:
    """Take one frame into the mean; the same frames in the same order give the same bits, interrupted or not."""
    number = len(scores.frame_ids) + 1
    now = {name: np.zeros_like(values) for name, values in scores.values.items()}
    for gap, group in zip(gaps, graph.groups, strict=True):
        for layer, channel in group:
            now[layer][channel] = gap / len(group)
    values = {name: mean + (now[name] - mean) / number for name, mean in scores.values.items()}
    return replace(scores, values=values, frame_ids=(*scores.frame_ids, frame))


class _FrameGaps:
    """Measures, frame by frame, how far the category predictions are from those of the complete network.

    Args:
        model: the network.
        predict: gives ``(B, A, C)`` logits.
        graph: of the network.
        removal: see :func:`score_filters`.
        progress: told how many filters are done.
    """

    def __init__(
        self,
        model: nn.Module,
        predict: Callable[[nn.Module, Batch], Tensor],
        graph: ChannelGraph,
        removal: str,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._model, self._predict, self._graph = model, predict, graph
        self._removal, self._progress = removal, progress

    def measure(self, batch: Batch) -> np.ndarray:
        """Give ``(groups, B)`` float64: what Eq. 4 sums, for every group absent in turn."""
        replay = SuffixReplay(self._model, lambda: _checked(self._predict(self._model, batch), batch))
        with replay.opened() as logits:
            _refuse_nan(logits.isnan().flatten(1).any(dim=1), batch, "the complete network")
            baseline = logits.float().sigmoid()
            rows = []
            for group in self._graph.groups:
                rows.append(_category_gap(replay.without(self._absence(group, logits.device)), baseline))
                if self._progress is not None:
                    self._progress(len(group))
            gaps = torch.stack(rows)
        for group, row in zip(self._graph.groups, gaps.isnan().cpu(), strict=True):
            _refuse_nan(row, batch, f"the network without filter {group[0].channel} of {group[0].layer}")
        return gaps.cpu().numpy()

    def _absence(self, group: Sequence[Filter], device: torch.device) -> Absence:
        if self._removal == "channel":
            return Absence(inputs=_on(device, self._graph.consumer_channels(group)))
        return Absence(outputs=_on(device, {layer: [i for name, i in group if name == layer] for layer, _ in group}))


def _on(device: torch.device, channels: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.tensor(values, device=device) for name, values in channels.items()}


def _category_gap(logits: Tensor, baseline: Tensor) -> Tensor:
    """Sum |p - p'| over anchors and classes, divided by the number of anchors.

    Args:
        logits: ``(B, A, C)`` of the network without a filter.
        baseline: ``(B, A, C)`` probabilities of the complete network.

    Returns:
        ``(B,)`` float64.

    Source: CaKDP, Eq. 4, the summand.
    """
    gap = (logits.float().sigmoid() - baseline).abs().sum(dim=(1, 2), dtype=torch.float64)
    return gap / baseline.shape[1]


def _checked(logits: Tensor, batch: Batch) -> Tensor:
    if logits.ndim != 3 or len(logits) != len(batch.frame_ids) or not logits.shape[1]:
        raise ValueError(
            f"predict must give class logits (B, A, C) with B = {len(batch.frame_ids)} frames and A >= 1, "
            f"got {tuple(logits.shape)}"
        )
    return logits


def _refuse_nan(is_nan: Tensor, batch: Batch, which: str) -> None:
    frames = [frame for frame, bad in zip(batch.frame_ids, is_nan.tolist(), strict=True) if bad]
    if frames:
        raise ValueError(
            f"{which} gives NaN class logits for frame {', '.join(frames)}; check that frame's points and the weights"
        )
