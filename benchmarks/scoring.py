"""What do filter scores cost? The plain definition of Eq. 4, the exact short cut and the race, side by side.

After ``make demo``: ``python benchmarks/scoring.py``. After ``make real``, at full size on real frames:
``python benchmarks/scoring.py --cfg cfgs/kitti/few_frames/second_cakdp.yaml --frames 2 --plain_share 0.01 --ratios``

"Plain" runs the whole network up to the class logits for every filter: no boxes, no NMS. A share of the filters, spread
evenly over all layers, is timed, some of them on every frame, right before the exact way on that frame; the rest is
taken to cost as much.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from cakdp_ext.config import load_config
from cakdp_ext.cpu_memory import keep_freed_memory
from cakdp_ext.datasets import collate
from cakdp_ext.engine.data import one_frame
from cakdp_ext.engine.score import race as run_race
from cakdp_ext.engine.score import scoring_frames, unpruned_student
from cakdp_ext.pruning import (
    CAPR,
    PLAIN_SCORING,
    FrameGaps,
    LayerRules,
    RaceRules,
    channel_graph,
    class_logits,
    count_macs,
    counting,
    lacking,
    ladder_from_scores,
    peak_memory,
    started_scores,
    with_gaps,
)
from cakdp_ext.pruning.incremental import IncrementalReplay


class Raced(NamedTuple):
    """How a race went: wall-clock seconds, share of all gaps that it measured, agreement stated and true."""

    seconds: float
    measured: float
    stated: float
    true: float


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="cfgs/synthetic/second_cakdp.yaml", help="YAML with MODEL.PRUNING")
    parser.add_argument("--frames", type=int, default=16, help="of MODEL.PRUNING.SPLIT, evenly spaced")
    parser.add_argument("--plain_share", type=float, default=0.05, help="of the filters, for the plain definition")
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.3, 0.5, 0.75], help="keep ratios to race for")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", dest="overrides", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    config = load_config(args.cfg, args.overrides)
    config.MODEL.PRUNING.NUM_FRAMES = args.frames
    dataset = scoring_frames(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = unpruned_student(config, dataset.geometry).to(device).eval()
    graph = channel_graph(model, dataset.geometry)
    batches = [one_frame(dataset, i).to(device) for i in range(len(dataset))]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {args.threads} threads"
    print(f"{graph.num_filters} filters in {len(graph.groups)} decisions, {len(batches)} frames, {where}")
    step = collate([dataset[i] for i in range(min(config.OPTIMIZATION.BATCH_SIZE_PER_GPU, len(dataset)))]).to(device)
    bench(model, graph, batches, args, peak_of_training_step(deepcopy(model), step, device))


def bench(model, graph, batches, args, training):
    """Time the three ways and print them, and the memory beside that of ``training``, one step."""
    device = batches[0].voxels.device
    with peak_memory(device) as peak:
        plain_seconds, exact_seconds, gaps, worst = side_by_side(model, graph, batches, args.plain_share)
    total = statistics.mean(plain_seconds) * len(graph.groups) * len(batches)
    print(f"plain  {total:9.1f} s   {len(plain_seconds)} decisions timed, "
          f"{1e3 * statistics.mean(plain_seconds):.0f} ms each, and scaled")  # fmt: skip
    print(f"exact  {exact_seconds:9.1f} s   {total / exact_seconds:6.1f} times as fast   "
          f"largest relative difference to plain {worst:.1e}")  # fmt: skip
    for ratio in args.ratios:
        raced = race(model, graph, batches, gaps, ratio)
        print(f"race   {raced.seconds:9.1f} s   {total / raced.seconds:6.1f} times as fast   keep {ratio}: "
              f"{raced.measured:.0%} of the gaps, agreement {raced.true:.2%} ({raced.stated:.2%} stated)")  # fmt: skip
    print(f"multiply-accumulates avoided by exact scoring: {avoided(model, graph, batches[0]):.1%} of the plain ones")
    if peak.num_bytes and training.num_bytes:
        print(f"peak memory: exact scoring {peak.num_bytes / 2**30:.2f} GiB, one training step "
              f"{training.num_bytes / 2**30:.2f} GiB")  # fmt: skip


def side_by_side(model, graph, batches, share):
    """Go through the frames with both ways, the plain one for a share of the filters.

    Returns:
        Seconds of each decision that was timed the plain way, seconds of the exact way, its ``(frames, groups)`` gaps,
        and the largest relative difference between the two.
    """
    slow, fast = FrameGaps(model, class_logits, graph, method=PLAIN_SCORING), FrameGaps(model, class_logits, graph)
    numbers = np.arange(0, len(graph.groups), max(round(1 / share), 1))
    plain, exact, rows, worst = [], 0.0, [], 0.0
    slow.measure(batches[0], numbers[:1])
    for i, batch in enumerate(tqdm(batches, "plain, exact", leave=False)):
        mine = numbers[i :: len(batches)]
        seconds, wanted = timed(lambda: slow.measure(batch, mine))  # noqa: B023
        plain += [seconds / (len(mine) + 1)] * len(mine)  # the complete network is run once, too
        seconds, row = timed(lambda: fast.measure(batch))  # noqa: B023
        exact += seconds
        rows.append(row)
        wanted = wanted[0, mine]
        worst = max(worst, (np.abs(row[0, mine] - wanted) / np.maximum(wanted, 1e-9)).max(initial=0))
    return plain, exact, np.concatenate(rows), worst


def race(model, graph, batches, exact_gaps, ratio):
    """Race for a keep ratio and compare what it keeps with what the exact gaps keep."""
    gaps, frames = FrameGaps(model, class_logits, graph), {batch.frame_ids[0]: batch for batch in batches}

    def measure(scores, asked):
        rows = {frame: gaps.measure(frames[frame], missing)[0] for frame, missing in lacking(scores, asked).items()}
        return counting(with_gaps(scores, rows), asked, graph)

    start = started_scores(model, graph, "channel", "")
    seconds, scores = timed(lambda: run_race(start, list(frames), RaceRules(ratio), measure))
    kept = ladder_from_scores(scores, graph, CAPR, LayerRules()).kept_by_ratio(ratio)
    wanted = set(np.argsort(-exact_gaps.mean(axis=0), kind="stable")[: len(kept)].tolist())
    measured = (~np.isnan(scores.gaps)).sum() / exact_gaps.size
    return Raced(seconds, float(measured), scores.race.agreement, len(kept & wanted) / len(kept))


def avoided(model, graph, batch):
    """Share of the plain definition's multiply-accumulates that exact scoring does without, on one frame."""
    replay = IncrementalReplay(model, lambda: class_logits(model, batch), graph)
    with replay.opened():
        for start in range(0, len(graph.groups), replay.num_together):
            replay.gaps(graph.groups[start : start + replay.num_together])
        spent = replay.macs
    return 1 - spent / (count_macs(lambda network: class_logits(network, batch), model).total * len(graph.groups))


def peak_of_training_step(model, batch, device):
    """Measure the memory of one forward and backward of the student, with its YAML's frames a step."""
    model.train()
    with peak_memory(device) as peak:
        sum(model(batch).losses.values()).backward()
    return peak


def timed(call: Callable):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
