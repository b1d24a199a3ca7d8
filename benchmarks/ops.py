"""Print how long each op takes at the sizes of KITTI detectors: native, as a reference, and in shapely where it can.

Usage: python benchmarks/ops.py [--threads 1] [--repeats 5]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.ops import native

try:
    import shapely
except ImportError:
    shapely = None


@dataclass(frozen=True)
class Case:
    """One row: an op at a size, and the same question put to shapely where it can answer it."""

    op: str
    size: str
    run: Callable[[], object]
    shapely_run: Callable[[], object] | None = None


def boxes_on_a_road(count: int, generator: torch.Generator) -> Tensor:
    """Car-sized boxes (count, 7), float32, over KITTI's range."""
    boxes = torch.rand(count, 7, generator=generator)
    boxes[:, :3] = boxes[:, :3] * torch.tensor([70.4, 80, 1]) - torch.tensor([0, 40, 1.5])
    boxes[:, 3:6] = torch.tensor([3.9, 1.6, 1.56]) * (0.8 + 0.4 * boxes[:, 3:6])
    boxes[:, 6] = (boxes[:, 6] - 0.5) * 2 * math.pi
    return boxes


def crowded(count: int, generator: torch.Generator) -> Tensor:
    """What a dense head proposes: about twenty jittered boxes around each object."""
    boxes = boxes_on_a_road(math.ceil(count / 20), generator).repeat_interleave(20, dim=0)[:count]
    return boxes + torch.randn(boxes.shape, generator=generator) * torch.tensor([0.4, 0.4, 0.1, 0.1, 0.1, 0.1, 0.2])


def occupied_voxels(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Distinct cells (V, 4), V at most ``count``, dense near the middle of the grid."""
    cells = torch.randn(count, 3, generator=generator) * torch.tensor(shape) / 8 + torch.tensor(shape) / 2
    cells = cells.round().clamp(min=torch.zeros(3), max=torch.tensor(shape) - 1.0).long().unique(dim=0)
    return torch.cat((torch.zeros(len(cells), 1, dtype=torch.int64), cells), dim=1)


def shapely_overlaps(boxes1: Tensor, boxes2: Tensor) -> np.ndarray:
    """Areas of the candidate pairs that a spatial index finds."""
    first, second = (shapely.polygons(ops.box_corners(boxes.double())[:, :4, :2].numpy()) for boxes in (boxes1, boxes2))
    found, query = shapely.STRtree(first).query(second)[::-1]
    return shapely.area(shapely.intersection(first[found], second[query]))


def cases() -> list[Case]:
    """The table's rows."""
    generator = torch.Generator().manual_seed(0)
    anchors, truth = boxes_on_a_road(211_200, generator), boxes_on_a_road(40, generator)
    proposals = crowded(16_384, generator)
    scores = torch.rand(len(proposals), generator=generator)
    frames = torch.arange(len(proposals)) % 4
    rows = [
        Case(
            "boxes_overlap_bev",
            "1,000 x 1,000",
            lambda: ops.boxes_overlap_bev(proposals[:1000], proposals[1000:2000]),
            lambda: shapely_overlaps(proposals[:1000], proposals[1000:2000]),
        ),
        Case("iou_3d", "211,200 x 40", lambda: ops.iou_3d(anchors, truth), lambda: shapely_overlaps(anchors, truth)),
        Case("iou_3d", "1,000 x 1,000", lambda: ops.iou_3d(proposals[:1000], proposals[1000:2000])),
        Case("iou_3d_aligned", "4,096", lambda: ops.iou_3d_aligned(proposals[:4096], proposals[1:4097])),
        Case("nearest_bev_iou", "211,200 x 40", lambda: ops.nearest_bev_iou(anchors, truth)),
    ]
    for count, threshold in ((2048, 0.7), (4096, 0.7), (4096, 0.1), (9000, 0.7), (16_384, 0.7)):
        rows.append(
            Case(
                f"nms at {threshold}",
                f"{count:,}",
                lambda n=count, t=threshold: ops.nms(proposals[:n], scores[:n], t),
            )
        )
    near = (proposals[:4096], scores[:4096], 0.7)
    rows.append(Case("nms, axis-aligned", "4,096", lambda: ops.nms(*near, axis_aligned=True)))
    rows.append(Case("nms by OpenPCDet's rule", "4,096", lambda: ops.nms(*near, compat=True)))
    rows.append(Case("nms of 4 frames", "16,384", lambda: ops.nms(proposals, scores, 0.7, groups=frames)))
    return rows + point_cases(truth, generator)


def point_cases(boxes: Tensor, generator: torch.Generator) -> list[Case]:
    """The rows about points and voxels."""
    points = torch.rand(120_000, 3, generator=generator) * torch.tensor([70.4, 80, 3]) - torch.tensor([0, 40, 2.5])
    shape = (21, 800, 704)
    voxels = occupied_voxels(60_000, shape, generator)
    centers = voxels[:, [3, 2, 1]] * torch.tensor([0.1, 0.1, 0.2])
    queries = voxels[torch.randint(len(voxels), (128 * 216,), generator=generator)]
    positions = queries[:, [3, 2, 1]] * torch.tensor([0.1, 0.1, 0.2])
    return [
        Case("points_in_boxes", "120,000 x 40", lambda: ops.points_in_boxes(points, boxes)),
        Case(
            "voxel_query",
            f"27,648 in {len(voxels):,}",
            lambda: ops.voxel_query(queries, positions, voxels, centers, shape, 1, (4, 4, 4), 0.4, 16),
        ),
    ]


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Median over repeats, after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def reference_milliseconds(run: Callable[[], object], repeats: int) -> float:
    """The same with every native op set aside."""
    chosen = native.implementation
    native.implementation = lambda name, device: None
    try:
        return milliseconds(run, repeats)
    finally:
        native.implementation = chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; shapely takes one")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), float32, native: {native.REASON or 'yes'}")
    print(f"{'op':<24}{'size':<22}{'native ms':>12}{'reference ms':>14}{'shapely ms':>12}")
    for case in cases():
        columns = [
            "-" if native.REASON else f"{milliseconds(case.run, args.repeats):.2f}",
            f"{reference_milliseconds(case.run, args.repeats):.2f}",
            "-" if shapely is None or case.shapely_run is None else f"{milliseconds(case.shapely_run, 1):.2f}",
        ]
        print(f"{case.op:<24}{case.size:<22}{columns[0]:>12}{columns[1]:>14}{columns[2]:>12}")


if __name__ == "__main__":
    main()
