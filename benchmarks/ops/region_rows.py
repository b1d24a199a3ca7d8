"""Rows about the points of regions: RoIs of Part-A2's size, and neighbourhoods of keypoints as in PV-RCNN++."""

from __future__ import annotations

import torch
from case import Case, Gradient, Work, moved, row, rows_read
from rivals import OPENPCDET, openpcdet, spatial
from scenes import Scene

from cakdp_ext import ops
from cakdp_ext.ops.cells import PoolMode

REACH = 1.6
"""Metres around a keypoint."""


@row("neighbors_in_boxes")
def _(scene: Scene) -> Case:
    points, rois = scene.cloud, scene.rois
    return Case(
        f"{len(rois)} in {len(points):,}",
        lambda: ops.neighbors_in_boxes(points, rois),
        Work(moved(points, rois, ops.neighbors_in_boxes(points, rois))),
    )


@row("group_by_cell")
def _(scene: Scene) -> Case:
    points, rois = scene.cloud, scene.rois
    found = ops.neighbors_in_boxes(points, rois)

    def ours() -> object:
        return ops.group_by_cell(points, rois, found, (12, 12, 12))

    read = rows_read(points, found.index) + moved(rois, found)
    return Case(f"{len(rois)} x 12^3, {len(found.index):,} points", ours, Work(read + moved(ours())))


def roi_pooling(scene: Scene, mode: PoolMode, backward: bool) -> Case:
    """Search, division into cells and pooling forward; backward the pooling."""
    points, rois = scene.cloud, scene.rois
    features = scene.normal(len(points), 16).requires_grad_(backward)
    grad = scene.normal(len(rois), 12, 12, 12, 16)
    cells = ops.roiaware_cells(rois, points, 12)
    rows, _ = cells.pairs()

    def ours() -> torch.Tensor:
        return ops.roiaware_pool(rois, points, features, 12, mode=mode)

    def theirs() -> torch.Tensor:
        return openpcdet.rois.RoIAwarePool3d(12)(rois, points, features, pool_method=mode)

    size = f"{len(rois)} x 12^3 x 16 of {len(points):,}"
    operations = len(rows) * features.shape[1]  # every feature of every point in a cell is compared or added
    if backward:  # the gradient of filled cells in, beside it the points that it goes to, that of all features out
        filled = int((cells.count > 0).sum())
        to_points = 8 * (filled * features.shape[1] if mode == "max" else len(rows))
        work = Work(4 * filled * features.shape[1] + to_points + moved(features), operations)
        theirs_backward = Gradient(theirs, features, grad)
        return Case(size, Gradient(ours, features, grad), work, {OPENPCDET: theirs_backward})
    work = Work(moved(points, rois, grad) + rows_read(features, rows), operations)
    return Case(size, ours, work, {OPENPCDET: theirs})


@row("roiaware_pool, max")
def _(scene: Scene) -> Case:
    return roi_pooling(scene, "max", backward=False)


@row("roiaware_pool, max, backward")
def _(scene: Scene) -> Case:
    return roi_pooling(scene, "max", backward=True)


@row("roiaware_pool, avg")
def _(scene: Scene) -> Case:
    return roi_pooling(scene, "avg", backward=False)


@row("roiaware_pool, avg, backward")
def _(scene: Scene) -> Case:
    return roi_pooling(scene, "avg", backward=True)


def neighbours(scene: Scene, shape: ops.NeighborType) -> Case:
    """All points around each keypoint."""
    points, queries = scene.cloud, scene.cloud_keypoints
    counts = scene.counts(len(points)), scene.counts(len(queries))
    on_host, norm = (points.cpu(), queries.cpu()), 2 if shape == "ball" else float("inf")

    def ours() -> object:
        return ops.local_neighbors(points, counts[0], queries, counts[1], REACH, neighbor_type=shape)

    def by_scipy() -> object:
        tree = spatial.cKDTree(on_host[0])
        return tree.query_ball_point(on_host[1], REACH, p=norm, return_sorted=True, workers=scene.threads)

    return Case(f"{len(queries):,} in {len(points):,}", ours, Work(moved(points, queries, ours())), {"scipy": by_scipy})


@row("local_neighbors, cube")
def _(scene: Scene) -> Case:
    return neighbours(scene, "cube")


@row("local_neighbors, ball")
def _(scene: Scene) -> Case:
    return neighbours(scene, "ball")


def local_three_nn(scene: Scene, search: bool) -> Case:
    """The three nearest of its keypoint's neighbours for each of 27 centres, with or without the search for those."""
    points, queries = scene.cloud, scene.cloud_keypoints
    counts = scene.counts(len(points)), scene.counts(len(queries))
    found = ops.local_neighbors(points, counts[0], queries, counts[1], REACH)
    centers = queries[:, None] + 0.8 * scene.normal(len(queries), 27, 3)

    def ours() -> object:
        lists = ops.local_neighbors(points, counts[0], queries, counts[1], REACH) if search else found
        return ops.local_three_nn(points, centers, lists)

    def theirs() -> object:
        number = len(found.index) // len(queries) + 1
        step = openpcdet.points.three_nn_for_vector_pool_by_two_step
        return step(points, counts[0], queries, centers, counts[1], REACH, -1, 0, number, 27, 1.0)

    size = f"{len(queries):,} x 27, {len(found.index):,} points"
    if search:
        return Case(size, ours, Work(moved(points, queries, centers, ours())), {OPENPCDET: theirs})
    return Case(size, ours, Work(rows_read(points, found.index) + moved(found, centers, ours())))


@row("local_three_nn")
def _(scene: Scene) -> Case:
    return local_three_nn(scene, search=False)


@row("local_three_nn with its search")
def _(scene: Scene) -> Case:
    return local_three_nn(scene, search=True)


def vector_pooling(scene: Scene, backward: bool) -> Case:
    """Means of features in the 27 cells around each keypoint, and of offsets."""
    points, queries = scene.cloud, scene.cloud_keypoints
    counts = scene.counts(len(points)), scene.counts(len(queries))
    features = scene.normal(len(points), 16).requires_grad_(backward)
    grad = scene.normal(len(queries), 27, 3 + 16)
    cells = ops.vector_cells(points, counts[0], queries, counts[1], (3, 3, 3), REACH)
    rows, _ = cells.pairs()
    average = len(rows) // len(queries) + 1

    def ours() -> torch.Tensor:
        given = (points, counts[0], features, queries, counts[1])
        return ops.vector_pool(*given, (3, 3, 3), REACH, use_xyz=True)[0]

    def theirs() -> torch.Tensor:
        given = (points, counts[0], features, queries, counts[1])
        return openpcdet.points.vector_pool_with_voxel_query_op(*given, 3, 3, 3, REACH, 16, True, average)[0]

    size = f"{len(queries):,} x 3^3 x 16, {len(rows):,} points"
    if backward:  # the gradient of the output and the rows of the cells in, the gradient of all features out
        work = Work(4 * len(queries) * 27 * 16 + moved(rows, features), 16 * len(rows))
        theirs_backward = Gradient(theirs, features, grad[..., 3:].flatten(1))
        return Case(size, Gradient(ours, features, grad.flatten(1)), work, {OPENPCDET: theirs_backward})
    work = Work(moved(points, queries, grad, cells.count) + rows_read(features, rows), 19 * len(rows))
    return Case(size, ours, work, {OPENPCDET: theirs})


@row("vector_pool")
def _(scene: Scene) -> Case:
    return vector_pooling(scene, backward=False)


@row("vector_pool, backward")
def _(scene: Scene) -> Case:
    return vector_pooling(scene, backward=True)
