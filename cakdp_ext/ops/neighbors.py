"""Which points lie in a part of space, and which of them are nearest to its centres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cakdp_ext.ops import native
from cakdp_ext.ops.checks import as_counts, as_float, as_index, check_alike, check_same_device, check_same_frames
from cakdp_ext.ops.reference import neighbors as reference

NeighborType = Literal["cube", "ball"]


@dataclass(frozen=True)
class Neighbors:
    """Lists of points, one a region, one after another.

    Attributes:
        start: ``(M,)`` int64, where the list of each region begins in ``index``.
        length: ``(M,)`` int64, how long it is.
        index: ``(T,)`` int64 rows of the points, ascending within a list.
    """

    start: Tensor
    length: Tensor
    index: Tensor


@torch.no_grad()
def local_neighbors(
    xyz: Tensor,
    counts: Tensor,
    new_xyz: Tensor,
    new_counts: Tensor,
    max_distance: float,
    num_samples: int | None = None,
    neighbor_type: NeighborType = "cube",
) -> Neighbors:
    """List the points of its own frame around each query.

    On CUDA the number of all neighbours is read on the host, once a call. There, counts that do not add up are not an
    error, since telling would need another such read: queries and points that belong to no frame find nothing and are
    not found.

    Args:
        xyz: ``(N, 3)`` metres, the points of all frames, frame after frame.
        counts: ``(B,)`` int32 or int64, how many of them each frame has.
        new_xyz: ``(M, 3)`` metres, the queries of all frames; same device and dtype.
        new_counts: ``(B,)``, how many of them each frame has.
        max_distance: metres; a point exactly that far still counts.
        num_samples: keep the first so many points of a query, by their row; None for all.
        neighbor_type: ``cube``, half as wide as ``max_distance`` along every axis, or ``ball``.

    Returns:
        The lists; a point or a query with a NaN or an infinity is in none and has none.

    Raises:
        ValueError: for another shape, dtype or device, a setting that cannot be, or, on CPU, counts that do not add up.

    Source:
        PV-RCNN++ (Shi et al., IJCV 2023), section "VectorPool aggregation".
    """
    xyz, new_xyz = as_float(xyz, "xyz", (None, 3)), as_float(new_xyz, "new_xyz", (None, 3))
    check_alike(xyz, new_xyz, ("xyz", "new_xyz"))
    counts = as_counts(counts, "counts", xyz, "xyz")
    new_counts = as_counts(new_counts, "new_counts", new_xyz, "new_xyz")
    check_same_frames(counts, new_counts, ("counts", "new_counts"))
    if not (math.isfinite(max_distance) and max_distance > 0):
        raise ValueError(f"max_distance must be positive metres, got {max_distance}")
    limit = as_limit(num_samples, "num_samples")
    if neighbor_type == "cube":
        return _in_boxes(xyz, counts, cubes(new_xyz, max_distance), new_counts, limit)
    if neighbor_type != "ball":
        raise ValueError(f"neighbor_type must be 'cube' or 'ball', got {neighbor_type!r}")
    run = native.implementation("neighbors_in_balls", xyz.device) or reference.neighbors_in_balls
    return Neighbors(*run(xyz, counts, new_xyz, new_counts, float(max_distance), limit))


@torch.no_grad()
def neighbors_in_boxes(
    points: Tensor,
    boxes: Tensor,
    point_counts: Tensor | None = None,
    box_counts: Tensor | None = None,
    max_points: int | None = None,
) -> Neighbors:
    """List the points of its own frame that each box holds; boxes may share points, and faces belong to their box.

    The number of all points found is read on the host, and counts are checked, as in :func:`local_neighbors`.

    Args:
        points: ``(N, 3)`` metres, the points of all frames, frame after frame.
        boxes: ``(M, 7)`` metres and radians, of all frames; same device and dtype. One with a size that is not
            positive, a NaN or an infinity holds nothing.
        point_counts: ``(B,)`` int32 or int64, how many points each frame has; None for a single frame.
        box_counts: ``(B,)``, how many boxes; given exactly where ``point_counts`` is.
        max_points: keep the first so many points of a box, by their row; None for all.

    Returns:
        The lists.

    Raises:
        ValueError: for another shape, dtype or device, a limit below 0, or, on CPU, counts that do not add up.
    """
    points, boxes = as_float(points, "points", (None, 3)), as_float(boxes, "boxes", (None, 7))
    check_alike(points, boxes, ("points", "boxes"))
    counts = as_count_pair(points, point_counts, boxes, box_counts, ("boxes", "box_counts"))
    return _in_boxes(points, counts[0], boxes, counts[1], as_limit(max_points, "max_points"))


@torch.no_grad()
def local_three_nn(xyz: Tensor, centers: Tensor, neighbors: Neighbors) -> tuple[Tensor, Tensor]:
    """Find the three nearest of its query's neighbours for every centre around the query.

    Args:
        xyz: ``(N, 3)`` metres, the points that the neighbours index.
        centers: ``(M, G, 3)`` metres, G centres around each of M queries; same device and dtype.
        neighbors: the lists of the M queries.

    Returns:
        distance_squared ``(M, G, 3)`` square metres, nearest first, and index ``(M, G, 3)`` int64 rows of ``xyz``; of
        equally near points the first in the list. Where a list has fewer points, infinity and -1, so that a weight
        of one over the distance is 0.

    Raises:
        ValueError: for another shape, dtype or device, or, on CPU, lists that reach beyond ``index`` or hold rows that
            do not exist (on CUDA those are ignored).

    Source:
        PV-RCNN++ (Shi et al., IJCV 2023), section "VectorPool aggregation".
    """
    xyz, centers = as_float(xyz, "xyz", (None, 3)), as_float(centers, "centers", (None, None, 3))
    check_alike(xyz, centers, ("xyz", "centers"))
    lists = as_neighbors(neighbors, len(centers), xyz, "xyz")
    run = native.implementation("three_nn_local", xyz.device) or reference.three_nn_local
    return run(xyz, centers, lists.start, lists.length, lists.index)


def cubes(centers: Tensor, half_size: float) -> Tensor:
    """Write axis-aligned cubes around centres ``(M, 3)`` as boxes ``(M, 7)``."""
    boxes = centers.new_zeros(len(centers), 7)
    boxes[:, :3] = centers
    boxes[:, 3:6] = 2 * half_size
    return boxes


def as_count_pair(
    points: Tensor, point_counts: Tensor | None, boxes: Tensor, box_counts: Tensor | None, names: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """Return the counts of points and boxes by frame, those of a single frame where neither is given.

    Args:
        points: ``(N, 3)``.
        point_counts: ``(B,)`` or None.
        boxes: ``(M, 7)``.
        box_counts: ``(B,)`` or None.
        names: what errors call ``boxes`` and ``box_counts``.

    Raises:
        ValueError: for counts that :func:`as_counts` refuses, of other frames, or given for one of the two only.
    """
    if point_counts is None and box_counts is None:
        return _one_frame(points), _one_frame(boxes)
    if point_counts is None or box_counts is None:
        raise ValueError(f"point_counts and {names[1]} go together, give both or neither")
    point_counts = as_counts(point_counts, "point_counts", points, "points")
    box_counts = as_counts(box_counts, names[1], boxes, names[0])
    check_same_frames(point_counts, box_counts, ("point_counts", names[1]))
    return point_counts, box_counts


def as_limit(limit: int | None, name: str) -> int:
    """Return a limit as the native ops take it, -1 for none."""
    if limit is not None and limit < 0:
        raise ValueError(f"{name} must be at least 0, got {limit}; for no limit give None")
    return -1 if limit is None else int(limit)


def as_neighbors(neighbors: Neighbors, num_lists: int, rows: Tensor, name: str) -> Neighbors:
    """Return lists as int64, one for each of so many regions, on the device of the rows that they index."""
    start = as_index(neighbors.start, "start", (num_lists,))
    length = as_index(neighbors.length, "length", (num_lists,))
    index = as_index(neighbors.index, "index", (None,))
    for given, kind in ((start, "start"), (length, "length"), (index, "index")):
        check_same_device(given, rows, (kind, name))
    return Neighbors(start, length, index)


def _one_frame(rows: Tensor) -> Tensor:
    return torch.full((1,), len(rows), dtype=torch.int64, device=rows.device)


def _in_boxes(points: Tensor, point_counts: Tensor, boxes: Tensor, box_counts: Tensor, limit: int) -> Neighbors:
    run = native.implementation("neighbors_in_boxes", points.device) or reference.neighbors_in_boxes
    return Neighbors(*run(points, point_counts, boxes, box_counts, limit))
