"""Print how long each op takes at the sizes of KITTI detectors: native, as a reference, and in another library.

Usage: python benchmarks/ops.py [--threads 1] [--repeats 5]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cakdp_ext import ops
from cakdp_ext.ops import native

try:
    import shapely
except ImportError:
    shapely = None
try:
    from scipy.spatial import cKDTree
except ImportError:
    cKDTree = None


@dataclass(frozen=True)
class Case:
    """One row: an op at a size, and the same question put to shapely or scipy where they can answer it."""

    op: str
    size: str
    run: Callable[[], object]
    shapely_run: Callable[[], object] | None = None
    scipy_run: Callable[[], object] | None = None

    def other_run(self) -> Callable[[], object] | None:
        """What the library that is installed does."""
        return (self.shapely_run if shapely else None) or (self.scipy_run if cKDTree else None)


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


def scanned_points(count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 3), float32, dense near the sensor as a scan's are: 64 beams that meet the ground or an object."""
    beam = torch.deg2rad(torch.linspace(-24.8, 2, 64))[torch.randint(64, (count,), generator=generator)]
    azimuth = (torch.rand(count, generator=generator) - 0.5) * math.pi / 2
    ground = torch.where(beam < 0, 1.73 / torch.sin(-beam), torch.inf)
    reach = torch.minimum(5 + 65 * torch.rand(count, generator=generator) ** 2, ground)
    reach = reach + 0.02 * torch.randn(count, generator=generator)
    x, y = torch.cos(beam) * torch.cos(azimuth), torch.cos(beam) * torch.sin(azimuth)
    return reach[:, None] * torch.stack((x, y, torch.sin(beam)), dim=1)


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
    return rows + point_cases(truth, generator) + neighbour_cases(generator) + pooling_cases(generator)


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


def neighbour_cases(generator: torch.Generator) -> list[Case]:
    """The rows about the layers of PointNet++ and the set abstraction of PV-RCNN."""
    cloud = scanned_points(40_000, generator)
    keypoints = cloud[ops.farthest_point_sampling(cloud[None], 4096)[0]]
    points, queries = torch.tensor([len(cloud)]), torch.tensor([len(keypoints)])
    index, empty = ops.ball_query(cloud, points, keypoints, queries, 0.8, 16)
    features = torch.randn(len(cloud), 64, generator=generator, requires_grad=True)
    grad = torch.randn(len(keypoints), 64, 16, generator=generator)
    unknown, some = cloud[:16_384], torch.tensor([16_384])
    weights, nearest = ops.three_nn(unknown, some, keypoints, queries)
    coarse = torch.randn(len(keypoints), 128, generator=generator, requires_grad=True)
    fine_grad = torch.randn(len(unknown), 128, generator=generator)

    def group_with_gradient() -> object:
        return torch.autograd.grad(ops.group_points(features, index, empty), features, grad)

    def interpolate_with_gradient() -> object:
        return torch.autograd.grad(ops.three_interpolate(coarse, nearest, weights), coarse, fine_grad)

    return [
        Case("farthest points", "2,048 of 40,000", lambda: ops.farthest_point_sampling(cloud[None], 2048)),
        Case(
            "ball_query",
            "4,096 in 40,000, 0.8",
            lambda: ops.ball_query(cloud, points, keypoints, queries, 0.8, 16),
            scipy_run=lambda: cKDTree(cloud).query_ball_point(keypoints, 0.8, return_sorted=True),
        ),
        Case(
            "ball_query, 2 radii",
            "4,096 in 40,000",
            lambda: ops.ball_query(cloud, points, keypoints, queries, [0.4, 0.8], [16, 16]),
        ),
        Case("group_points", "4,096 x 64 x 16", lambda: ops.group_points(features.detach(), index, empty)),
        Case("  and gradient", "4,096 x 64 x 16", group_with_gradient),
        Case(
            "three_nn",
            "16,384 in 4,096",
            lambda: ops.three_nn(unknown, some, keypoints, queries),
            scipy_run=lambda: cKDTree(keypoints).query(unknown, 3),
        ),
        Case("three_interpolate", "16,384 x 128", lambda: ops.three_interpolate(coarse.detach(), nearest, weights)),
        Case("  and gradient", "16,384 x 128", interpolate_with_gradient),
    ]


def lidar_like(count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 3) around a sensor, the denser the nearer."""
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    distance = 2 - 15 * torch.rand(count, generator=generator).log()
    height = torch.rand(count, generator=generator) * 3 - 2
    return torch.stack((distance * angle.cos(), distance * angle.sin(), height), dim=1)


def pooling_cases(generator: torch.Generator) -> list[Case]:
    """The rows about the points of regions: RoIs of Part-A2's size, keypoints as in PV-RCNN++."""
    points = lidar_like(60_000, generator)
    rois = boxes_on_a_road(128, generator)
    rois[:, :3] = points[torch.randint(len(points), (128,), generator=generator)]
    keypoints = points[torch.randint(len(points), (2048,), generator=generator)] + 0.1
    counts, new_counts = torch.tensor([len(points)]), torch.tensor([len(keypoints)])
    features = torch.randn(len(points), 16, generator=generator)
    cells = ops.roiaware_cells(rois, points, 12)
    neighbors = ops.local_neighbors(points, counts, keypoints, new_counts, 1.6)
    centers = keypoints[:, None] + 0.8 * torch.randn(2048, 27, 3, generator=generator)
    size = f"128 x 12^3 in {len(points):,}"

    def trained(mode: Literal["max", "avg"]) -> None:
        given = features.clone().requires_grad_()
        ops.pool_cells(given, cells, mode)[0].sum().backward()

    return [
        Case("roiaware_pool, max", size, lambda: ops.roiaware_pool(rois, points, features, 12, mode="max")),
        Case("roiaware_pool, avg", size, lambda: ops.roiaware_pool(rois, points, features, 12, mode="avg")),
        Case("pool_cells, max", "with gradient", lambda: trained("max")),
        Case("pool_cells, avg", "with gradient", lambda: trained("avg")),
        Case(
            "local_neighbors",
            f"2,048 in {len(points):,}",
            lambda: ops.local_neighbors(points, counts, keypoints, new_counts, 1.6),
        ),
        Case(
            "local_three_nn",
            f"2,048 x 27, {len(neighbors.index):,}",
            lambda: ops.local_three_nn(points, centers, neighbors),
        ),
        Case(
            "vector_pool",
            "2,048 x 3^3",
            lambda: ops.vector_pool(points, counts, features, keypoints, new_counts, (3, 3, 3), 1.6, use_xyz=True),
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
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; the others take one")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), float32, native: {native.REASON or 'yes'}")
    print(f"{'op':<24}{'size':<24}{'native ms':>12}{'reference ms':>14}{'other ms':>12}")
    for case in cases():
        other = case.other_run()
        columns = [
            "-" if native.REASON else f"{milliseconds(case.run, args.repeats):.2f}",
            f"{reference_milliseconds(case.run, args.repeats):.2f}",
            "-" if other is None else f"{milliseconds(other, 1):.2f}",
        ]
        print(f"{case.op:<24}{case.size:<24}{columns[0]:>12}{columns[1]:>14}{columns[2]:>12}")


if __name__ == "__main__":
    main()
