"""Rows about points and voxels: who is near, and what features say there."""

from __future__ import annotations

import rivals
import torch
from case import Case, Gradient, Work, moved, row, rows_read
from rivals import OPENPCDET, fpsample, openpcdet, spatial
from scenes import GRID, Scene

from cakdp_ext import ops

# The work of a search is to read what is searched and to write what is found: how many pairs have to be measured on the
# way depends on how clever the search is, so none is counted.


@row("points_in_boxes")
def _(scene: Scene) -> Case:
    points, boxes = scene.field_points, scene.truth
    return Case(
        f"{len(points):,} x {len(boxes)}",
        lambda: ops.points_in_boxes(points, boxes),
        Work(moved(points, boxes, ops.points_in_boxes(points, boxes))),
        {OPENPCDET: lambda: openpcdet.rois.points_in_boxes_gpu(points[None], boxes[None])},
    )


@row("voxel_query")
def _(scene: Scene) -> Case:
    voxels, queries = scene.voxels, scene.voxel_queries
    centers, positions = scene.voxel_centers(voxels), scene.voxel_centers(queries)
    narrow = queries.int()

    def ours() -> object:
        return ops.voxel_query(queries, positions, voxels, centers, GRID, 1, (4, 4, 4), 0.4, 16)

    return Case(
        f"{len(queries):,} in {len(voxels):,}",
        ours,
        Work(moved(voxels, centers, queries, positions, ours())),
        {OPENPCDET: lambda: rivals.openpcdet_voxel_query(narrow, positions, voxels, centers, GRID)},
    )


@row("ball_query")
def _(scene: Scene) -> Case:
    points, queries = scene.scan, scene.scan_keypoints
    counts = scene.counts(len(points)), scene.counts(len(queries))
    on_host = points.cpu(), queries.cpu()

    def ours() -> object:
        return ops.ball_query(points, counts[0], queries, counts[1], 0.8, 16)

    return Case(
        f"{len(queries):,} in {len(points):,}, 0.8 m",
        ours,
        Work(moved(points, queries, ours())),
        {
            OPENPCDET: lambda: openpcdet.points.ball_query(0.8, 16, points, counts[0], queries, counts[1]),
            # the nearest 16, not the first 16: as lists of all neighbours it would take longer
            "scipy": lambda: spatial.cKDTree(on_host[0]).query(
                on_host[1], 16, distance_upper_bound=0.8, workers=scene.threads
            ),
        },
    )


@row("ball_query, two radii")
def _(scene: Scene) -> Case:
    points, queries = scene.scan, scene.scan_keypoints
    counts, radii = (scene.counts(len(points)), scene.counts(len(queries))), (0.4, 0.8)

    def ours() -> object:
        return ops.ball_query(points, counts[0], queries, counts[1], radii, (16, 16))

    def theirs() -> object:
        return [openpcdet.points.ball_query(radius, 16, points, counts[0], queries, counts[1]) for radius in radii]

    return Case(
        f"{len(queries):,} in {len(points):,}, 0.4 and 0.8 m",
        ours,
        Work(moved(points, queries, ours())),
        {OPENPCDET: theirs},
    )


def grouping(scene: Scene, backward: bool) -> Case:
    """The features of the neighbours that a ball query found."""
    points, queries = scene.scan, scene.scan_keypoints
    counts = scene.counts(len(points)), scene.counts(len(queries))
    index, empty = ops.ball_query(points, counts[0], queries, counts[1], 0.8, 16)
    narrow = index.int()
    features = scene.normal(len(points), 64).requires_grad_(backward)
    grad = scene.normal(len(queries), 64, 16)

    def ours() -> torch.Tensor:
        return ops.group_points(features, index, empty)

    def theirs() -> torch.Tensor:
        return openpcdet.points.grouping_operation(features, counts[0], narrow, counts[1])

    size = f"{len(queries):,} x 64 x 16"
    if backward:  # the gradient of the output in, that of all features out
        work = Work(moved(grad, index, empty, features), grad.numel())
        theirs_backward = Gradient(theirs, features, grad)
        return Case(size, Gradient(ours, features, grad), work, {OPENPCDET: theirs_backward})
    return Case(size, ours, Work(rows_read(features, index) + moved(index, empty, grad)), {OPENPCDET: theirs})


@row("group_points")
def _(scene: Scene) -> Case:
    return grouping(scene, backward=False)


@row("group_points, backward")
def _(scene: Scene) -> Case:
    return grouping(scene, backward=True)


@row("farthest_point_sampling")
def _(scene: Scene) -> Case:
    points, number = scene.scan, scene.number(2048)
    on_host = points.cpu().numpy()
    return Case(
        f"{number:,} of {len(points):,}",
        lambda: ops.farthest_point_sampling(points[None], number),
        Work(moved(points, ops.farthest_point_sampling(points[None], number))),
        {
            OPENPCDET: lambda: openpcdet.points.farthest_point_sample(points[None], number),
            "fpsample": lambda: fpsample.bucket_fps_kdline_sampling(on_host, number, h=7, start_idx=0),
        },
    )


@row("farthest_point_sampling_stacked")
def _(scene: Scene) -> Case:
    points, number = scene.scan.repeat(4, 1), scene.number(2048)
    counts = scene.counts(*[len(scene.scan)] * 4)
    return Case(
        f"4 x {number:,} of {len(scene.scan):,}",
        lambda: ops.farthest_point_sampling_stacked(points, counts, number),
        Work(moved(points, ops.farthest_point_sampling_stacked(points, counts, number))),
        {OPENPCDET: lambda: openpcdet.points.stack_farthest_point_sample(points, counts, number)},
    )


@row("three_nn")
def _(scene: Scene) -> Case:
    unknown, known = scene.scan[: scene.number(16_384)], scene.scan_keypoints
    counts = scene.counts(len(unknown)), scene.counts(len(known))
    on_host = unknown.cpu(), known.cpu()

    def ours() -> object:
        return ops.three_nn(unknown, counts[0], known, counts[1])

    return Case(
        f"{len(unknown):,} in {len(known):,}",
        ours,
        Work(moved(unknown, known, ours())),
        {
            OPENPCDET: lambda: openpcdet.points.three_nn(unknown, counts[0], known, counts[1]),
            "scipy": lambda: spatial.cKDTree(on_host[1]).query(on_host[0], 3, workers=scene.threads),
        },
    )


def interpolation(scene: Scene, backward: bool) -> Case:
    """The features of the three nearest, weighted by their nearness."""
    unknown, known = scene.scan[: scene.number(16_384)], scene.scan_keypoints
    distances, index = ops.three_nn(unknown, scene.counts(len(unknown)), known, scene.counts(len(known)))
    weights = torch.softmax(-distances, dim=1)
    narrow = index.int()
    features = scene.normal(len(known), 128).requires_grad_(backward)
    grad = scene.normal(len(unknown), 128)

    def ours() -> torch.Tensor:
        return ops.three_interpolate(features, index, weights)

    def theirs() -> torch.Tensor:
        return openpcdet.points.three_interpolate(features, narrow, weights)

    size, operations = f"{len(unknown):,} x 128", 6 * grad.numel()  # three products and sums a number
    if backward:
        theirs_backward = Gradient(theirs, features, grad)
        work = Work(moved(grad, index, weights, features), operations)
        return Case(size, Gradient(ours, features, grad), work, {OPENPCDET: theirs_backward})
    work = Work(rows_read(features, index) + moved(index, weights, grad), operations)
    return Case(size, ours, work, {OPENPCDET: theirs})


@row("three_interpolate")
def _(scene: Scene) -> Case:
    return interpolation(scene, backward=False)


@row("three_interpolate, backward")
def _(scene: Scene) -> Case:
    return interpolation(scene, backward=True)
