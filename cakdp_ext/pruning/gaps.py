"""By how much do the category predictions change without a filter? Eq. 4's term for every filter of one frame."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cakdp_ext.looking import evaluating
from cakdp_ext.pruning.graph import ChannelGraph, Filter
from cakdp_ext.pruning.incremental import IncrementalReplay, NotUnderstoodError
from cakdp_ext.pruning.layers import replaced_forwards, without_channels
from cakdp_ext.pruning.replay import Absence, SuffixReplay
from cakdp_ext.pruning.rulebooks import RulebookMemory
from cakdp_ext.types import Batch

REMOVALS = ("channel", "zero_weight")
EXACT_SCORING, PLAIN_SCORING = "exact", "plain"
_CHECKED_TO, _ROUNDING = 1e-3, 1e-6

Measure = Callable[[Sequence[Sequence[Filter]]], Tensor]
"""Groups -> ``(groups, B)`` float64 gaps."""
_Way = Callable[[Batch], AbstractContextManager[tuple[Measure, int]]]


class FrameError(ValueError):
    """A frame, or what the network says of it, that no way of measuring can use."""


class FrameGaps:
    """Measures, frame by frame, how far the category predictions are from those of the complete network.

    Args:
        model: the network; its modes and weights are left as they were.
        predict: gives the raw class logits ``(B, A, C)`` of a batch.
        graph: of the network.
        removal: ``channel`` or ``zero_weight``, see :func:`cakdp_ext.pruning.score_filters`.
        method: ``exact`` computes differences only; ``plain`` the whole network again for every group. Both say the
            same.
        progress: called with the number of filters done since the last call.

    Raises:
        ValueError: for an unknown rule or method.
    """

    def __init__(
        self,
        model: nn.Module,
        predict: Callable[[nn.Module, Batch], Tensor],
        graph: ChannelGraph,
        removal: str = "channel",
        *,
        method: str = EXACT_SCORING,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        for name, value, known in (("removal", removal, REMOVALS), ("method", method, (EXACT_SCORING, PLAIN_SCORING))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self._model, self._predict, self._graph, self._removal = model, predict, graph, removal
        self._progress = progress or (lambda _: None)
        self._ways: Sequence[_Way] = {EXACT_SCORING: [self._incremental, self._replayed], PLAIN_SCORING: [self._plain]}[
            method
        ]

    def measure(self, batch: Batch, wanted: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Give ``(B, groups)`` float64: what Eq. 4 sums, for every group absent in turn.

        Args:
            batch: frames, on the model's device.
            wanted: numbers of the groups that are measured; the others' gaps are NaN. None for all.

        Raises:
            ValueError: for logits of another shape, or NaN among them.
        """
        numbers = list(range(len(self._graph.groups))) if wanted is None else sorted(wanted)
        for way in self._ways[:-1]:
            try:
                return self._measured(way, batch, numbers)
            except NotUnderstoodError as reason:
                frames = ", ".join(batch.frame_ids)
                warnings.warn(
                    f"filters are scored by repeating whole layers, which is slower: {reason} (frame {frames})",
                    stacklevel=2,
                )
        return self._measured(self._ways[-1], batch, numbers)

    def _measured(self, way: _Way, batch: Batch, numbers: Sequence[int]) -> np.ndarray:
        gaps = np.full((len(batch.frame_ids), len(self._graph.groups)), np.nan)
        with _full_float32(), way(batch) as (measure, together):
            for start in range(0, len(numbers), together):
                these = numbers[start : start + together]
                found = measure([self._graph.groups[n] for n in these]).cpu()
                self._refuse_nan(found, these, batch)
                gaps[:, these] = found.numpy().T
                self._progress(sum(len(self._graph.groups[n]) for n in these))
        return gaps

    @contextmanager
    def _incremental(self, batch: Batch) -> Iterator[tuple[Measure, int]]:
        replay = IncrementalReplay(self._model, lambda: self._logits(batch), self._graph, self._removal)

        def measure(groups: Sequence[Sequence[Filter]]) -> Tensor:
            with _understanding():
                gaps = replay.gaps(groups)
            if gaps.isnan().any():
                raise NotUnderstoodError("differences that are no numbers")
            return gaps

        with ExitStack() as stack:
            with _understanding(), RulebookMemory().installed():
                logits = stack.enter_context(replay.opened())
                self._require_numbers(logits, batch)
                self._check(replay, logits, batch)
            yield measure, replay.num_together

    def _check(self, replay: IncrementalReplay, logits: Tensor, batch: Batch) -> None:
        """Hold the differences to whole forwards without some filters: what is fast has to be right.

        Which filters those are depends on nothing but the frame, so that no score depends on what was scored before.

        Raises:
            NotUnderstoodError: when they differ.
        """
        before = logits.float().sigmoid()
        for group in replay.samples(zlib.crc32("".join(batch.frame_ids).encode())):
            with _absent(self._model, self._absence(group)), replay.witnessed(group) as judge:
                found = self._logits(batch)
            fast, plain = judge(found), category_gap(found, before).cpu()
            if not torch.allclose(fast, plain, rtol=_CHECKED_TO, atol=_ROUNDING):
                raise NotUnderstoodError(
                    f"without filter {group[0].channel} of {group[0].layer} and others the predictions change by "
                    f"{plain.tolist()}, not by {fast.tolist()}"
                )
        replay.trust()

    @contextmanager
    def _replayed(self, batch: Batch) -> Iterator[tuple[Measure, int]]:
        replay = SuffixReplay(self._model, lambda: self._logits(batch))
        with replay.opened() as logits:
            self._require_numbers(logits, batch)
            before = logits.float().sigmoid()
            yield lambda groups: _each(groups, lambda g: category_gap(replay.without(self._absence(g)), before)), 1

    @contextmanager
    def _plain(self, batch: Batch) -> Iterator[tuple[Measure, int]]:
        with evaluating(self._model):
            logits = self._logits(batch)
            self._require_numbers(logits, batch)
            before = logits.float().sigmoid()

            def without(group: Sequence[Filter]) -> Tensor:
                with _absent(self._model, self._absence(group)):
                    return category_gap(self._logits(batch), before)

            yield lambda groups: _each(groups, without), 1

    def _logits(self, batch: Batch) -> Tensor:
        logits = self._predict(self._model, batch)
        if logits.ndim != 3 or len(logits) != len(batch.frame_ids) or not logits.shape[1]:
            raise FrameError(
                f"predict must give class logits (B, A, C) with B = {len(batch.frame_ids)} frames and A >= 1, "
                f"got {tuple(logits.shape)}"
            )
        return logits

    def _absence(self, group: Sequence[Filter]) -> Absence:
        if self._removal == "channel":
            return Absence(inputs=self._on_device(self._graph.consumer_channels(group)))
        return Absence(outputs=self._on_device({n: [i for name, i in group if name == n] for n, _ in group}))

    def _on_device(self, channels: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        device = next(self._model.parameters()).device
        return {name: torch.tensor(values, device=device) for name, values in channels.items()}

    def _require_numbers(self, logits: Tensor, batch: Batch) -> None:
        _refuse_frames(logits.isnan().flatten(1).any(dim=1), batch, "the complete network")

    def _refuse_nan(self, gaps: Tensor, numbers: Sequence[int], batch: Batch) -> None:
        for number, row in zip(numbers, gaps.isnan(), strict=True):
            filter_ = self._graph.groups[number][0]
            _refuse_frames(row, batch, f"the network without filter {filter_.channel} of {filter_.layer}")


@contextmanager
def _understanding() -> Iterator[None]:
    """Let whatever goes wrong count as something that is not understood: another way may do."""
    try:
        yield
    except (NotUnderstoodError, FrameError):
        raise
    except Exception as error:
        raise NotUnderstoodError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keep CUDA from rounding products to TensorFloat-32, which is coarser than many a filter's gap."""
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.allow_tf32 = was


def _each(groups: Sequence[Sequence[Filter]], gap: Callable[[Sequence[Filter]], Tensor]) -> Tensor:
    return torch.stack([gap(group) for group in groups])


def category_gap(logits: Tensor, baseline: Tensor) -> Tensor:
    """Sum |p - p'| over anchors and classes, divided by the number of anchors.

    Args:
        logits: ``(B, A, C)`` of the network without a filter.
        baseline: ``(B, A, C)`` probabilities of the complete network.

    Returns:
        ``(B,)`` float64.

    Source: CaKDP (Zhang et al., CVPR 2024), Eq. 4, the summand.
    """
    gap = (logits.float().sigmoid() - baseline).abs().sum(dim=(1, 2), dtype=torch.float64)
    return gap / baseline.shape[1]


def _absent(model: nn.Module, absence: Absence) -> Any:
    """Let some layers do without channels, the whole network otherwise as it is."""

    def lacking(name: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def run(input: Any, *rest: Any, **kwargs: Any) -> Any:
            if name in absence.inputs:
                input = without_channels(module, input, absence.inputs[name])
            output = forward(input, *rest, **kwargs)
            return without_channels(module, output, absence.outputs[name]) if name in absence.outputs else output

        return run

    modules = {name: model.get_submodule(name) for name in (*absence.inputs, *absence.outputs)}
    return replaced_forwards({module: lacking(name, module) for name, module in modules.items()})


def _refuse_frames(is_nan: Tensor, batch: Batch, which: str) -> None:
    frames = [frame for frame, bad in zip(batch.frame_ids, is_nan.tolist(), strict=True) if bad]
    if frames:
        raise FrameError(
            f"{which} gives NaN class logits for frame {', '.join(frames)}; check that frame's points and the weights"
        )
