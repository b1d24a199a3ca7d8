"""Which points lie in a part of space, every point tried for every region."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DENSE_LIMIT = 1 << 20
"""Point-region pairs tested at once."""

Lists = tuple[Tensor, Tensor, Tensor]


def neighbors_in_boxes(
    points: Tensor, point_counts: Tensor, boxes: Tensor, box_counts: Tensor, max_points: int
) -> Lists:
    """List the points of its frame that each box holds, by their row.

    Args:
        points: ``(N, 3)``, frame after frame.
        point_counts: ``(B,)`` int64.
        boxes: ``(M, 7)``, frame after frame.
        box_counts: ``(B,)`` int64.
        max_points: so many of a box at most; negative for no limit.

    Returns:
        start ``(M,)``, length ``(M,)`` and index ``(T,)``, int64.
    """
    return _search(points, point_counts, boxes, box_counts, max_points, _in_boxes)


def neighbors_in_balls(
    points: Tensor, point_counts: Tensor, centers: Tensor, center_counts: Tensor, radius: float, max_points: int
) -> Lists:
    """List the points of its frame within a radius of each centre; otherwise as :func:`neighbors_in_boxes`.

    Args:
        points: ``(N, 3)``.
        point_counts: ``(B,)``.
        centers: ``(M, 3)``.
        center_counts: ``(B,)``.
        radius: metres; a point exactly that far still counts.
        max_points: so many of a ball at most.

    Returns:
        start ``(M,)``, length ``(M,)`` and index ``(T,)``, int64.
    """

    def in_balls(cloud: Tensor, middles: Tensor) -> Tensor:
        return (cloud - middles[:, None]).square().sum(2) <= radius * radius

    return _search(points, point_counts, centers, center_counts, max_points, in_balls)


def three_nn_local(
    points: Tensor, centers: Tensor, start: Tensor, length: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Find, for every centre, the three nearest points of the list that goes with it.

    Args:
        points: ``(N, 3)``.
        centers: ``(M, G, 3)``.
        start: ``(M,)`` int64.
        length: ``(M,)`` int64.
        index: ``(T,)`` int64 rows of the points.

    Returns:
        distance_squared and index ``(M, G, 3)``, nearest first; infinity and -1 where a list has fewer points.
    """
    check_lists(start, length, index, len(points))
    distance_squared = centers.new_full(centers.shape, torch.inf)
    nearest = torch.full_like(distance_squared, -1, dtype=torch.int64)
    for m, (begin, count) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        rows = index[begin : begin + max(0, count)]
        distances = (points[rows] - centers[m][:, None]).square().sum(2).nan_to_num(nan=torch.inf, posinf=torch.inf)
        distances, order = distances.sort(dim=1, stable=True)
        found = min(3, len(rows))
        distance_squared[m, :, :found] = distances[:, :found]
        nearest[m, :, :found] = rows[order[:, :found]].masked_fill(distances[:, :found].isinf(), -1)
    return distance_squared, nearest


def check_lists(start: Tensor, length: Tensor, index: Tensor, num_rows: int) -> None:
    """Raise ValueError where a list reaches beyond ``index``, or ``index`` beyond the rows."""
    reaches_out = (length > 0) & ((start < 0) | (start + length > len(index)))
    if bool(reaches_out.any()):
        raise ValueError(f"a list reaches beyond the {len(index)} rows that there are")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < num_rows:
        raise ValueError(f"a list holds row {int(index.min())} or {int(index.max())} of {num_rows}")


def _search(
    points: Tensor,
    point_counts: Tensor,
    regions: Tensor,
    region_counts: Tensor,
    max_points: int,
    holds: Callable[[Tensor, Tensor], Tensor],
) -> Lists:
    length = torch.zeros(len(regions), dtype=torch.int64, device=points.device)
    found = [length[:0]]
    first_point = first_region = 0
    for num_points, num_regions in zip(point_counts.tolist(), region_counts.tolist(), strict=True):
        cloud = points[first_point : first_point + num_points]
        for part in torch.arange(first_region, first_region + num_regions).split(
            max(1, DENSE_LIMIT // (1 + len(cloud)))
        ):
            held = holds(cloud, regions[part]) & cloud.isfinite().all(1) & regions[part].isfinite().all(1)[:, None]
            if max_points >= 0:
                held &= held.cumsum(1) <= max_points
            length[part] = held.sum(1)
            found.append(held.nonzero()[:, 1] + first_point)
        first_point, first_region = first_point + num_points, first_region + num_regions
    return length.cumsum(0) - length, length, torch.cat(found)


def _in_boxes(cloud: Tensor, boxes: Tensor) -> Tensor:
    x, y, z = (cloud - boxes[:, None, :3]).unbind(-1)
    cos, sin = torch.cos(boxes[:, 6:]), torch.sin(boxes[:, 6:])
    half = boxes[:, None, 3:6] / 2
    inside = ((x * cos + y * sin).abs() <= half[..., 0]) & ((y * cos - x * sin).abs() <= half[..., 1])
    return inside & (z.abs() <= half[..., 2]) & (half > 0).all(2)
