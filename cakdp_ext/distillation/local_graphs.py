"""Which voxels hold most points, what surrounds each of them, and what a layer makes of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cakdp_ext.taps import SparseFeatures, VoxelFeatures
from cakdp_ext.voxel_norm import VoxelBatchNorm1d
from cakdp_ext.voxel_rows import find_rows, voxel_keys


@dataclass(frozen=True)
class GraphSettings:
    """Which voxels make graphs; keys of PointDistiller.

    Attributes:
        num_voxels: N, so many voxels of a frame are compared, those with most points.
        num_neighbors: K, voxels of a graph, the one in its middle included.
        weight_temperature: of the softmax that makes weights of numbers of points; small values leave few voxels with
            a weight, large ones give all the same.
    """

    num_voxels: int = 1024
    num_neighbors: int = 16
    weight_temperature: float = 0.5

    def __post_init__(self) -> None:
        for name in ("num_voxels", "num_neighbors"):
            check_count(name, getattr(self, name))
        if not (math.isfinite(self.weight_temperature) and self.weight_temperature > 0):
            raise ValueError(f"WEIGHT_TEMPERATURE must be a finite number above 0, got {self.weight_temperature}")


def check_count(name: str, value: object) -> None:
    """Refuse what is no whole number from 1 on.

    Raises:
        ValueError: naming the key.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name.upper()} must be a whole number of at least 1, got {value!r}")


@dataclass(frozen=True)
class Graphs:
    """The voxels that are compared, each with its neighbours.

    Attributes:
        frame: ``(R,)`` int64, ascending.
        student_rows: ``(R,)`` int64 rows of the student's features.
        teacher_rows: ``(R,)`` int64 rows of the teacher's.
        neighbors: ``(R, K)`` int64, which of the R.
        weights: ``(R,)`` float32, summing to 1 over each frame.
    """

    frame: Tensor
    student_rows: Tensor
    teacher_rows: Tensor
    neighbors: Tensor
    weights: Tensor


class GraphLayer(nn.Module):
    """The paper's aggregation: a 1x1 layer on a voxel beside each of its neighbours, norm, ReLU, the largest of all.

    The layer on the concatenation is written as two, one for the voxel and one for the neighbour, so that none is
    computed K times. The norm has no scale of its own, which would let student and teacher agree on nothing at all.

    Args:
        channels: of a voxel.
        graph_channels: of a graph.
    """

    def __init__(self, channels: int, graph_channels: int) -> None:
        super().__init__()
        self.center = nn.Linear(channels, graph_channels)
        self.neighbor = nn.Linear(channels, graph_channels, bias=False)
        self.norm = VoxelBatchNorm1d(graph_channels, affine=False)

    def forward(self, features: Tensor, neighbors: Tensor) -> Tensor:
        """Aggregate.

        Args:
            features: ``(R, C)`` of the voxels.
            neighbors: ``(R, K)`` int64, which of the R.

        Returns:
            ``(R, G)``; in training a single pair of voxels, which has no variance, goes by the running statistics.
        """
        pairs = self.center(features)[:, None] + self.neighbor(features)[neighbors]
        return self.norm(pairs.flatten(0, 1)).view(pairs.shape).relu().amax(dim=1)


def points_in_cells(voxels: VoxelFeatures, scale: SparseFeatures, finest: SparseFeatures) -> Tensor:
    """Count the points in the active cells of a scale, whose grid is laid over that of the voxels.

    Args:
        voxels: what the detector reads.
        scale: whose cells.
        finest: the scale of least stride, which says how many layers of voxels there are.

    Returns:
        ``(N,)`` int64, one a row of ``scale``; points of a cell that is not active are lost.
    """
    batch, z, y, x = voxels.coords.unbind(1)
    z = z * scale.spatial_shape[0] // finest.spatial_shape[0]
    cells = torch.stack([batch, z, y // scale.stride, x // scale.stride], dim=1)
    rows = find_rows(voxel_keys(scale.coords), voxel_keys(cells))
    is_active = rows >= 0
    counts = voxels.num_points.new_zeros(len(scale.coords))
    return counts.index_add_(0, rows[is_active], voxels.num_points[is_active])


@torch.no_grad()
def build_graphs(student_coords: Tensor, teacher_coords: Tensor, num_points: Tensor, settings: GraphSettings) -> Graphs:
    """Choose the voxels of every frame, their neighbours and their weights.

    Args:
        student_coords: ``(N, 4)`` int64, ``(batch, z, y, x)``.
        teacher_coords: ``(M, 4)``, in any order.
        num_points: ``(N,)`` int64 in each voxel of the student's.
        settings: N, K and the temperature.
    """
    keys = voxel_keys(student_coords)
    rows = keys.argsort()
    answers = find_rows(voxel_keys(teacher_coords), keys[rows])
    rows = rows[answers >= 0]
    frames = [rows[:0], *rows.split(torch.bincount(student_coords[rows, 0]).tolist())] if len(rows) else [rows]
    chosen = [members[_most(num_points[members], settings.num_voxels)] for members in frames]
    neighbors, weights, start = [], [], 0
    for members in chosen:
        neighbors.append(start + nearest(student_coords[members, 1:], settings.num_neighbors))
        weights.append(importance(num_points[members], settings.weight_temperature))
        start += len(members)
    picked = torch.cat(chosen)
    teacher_rows = find_rows(voxel_keys(teacher_coords), keys[picked])
    return Graphs(student_coords[picked, 0], picked, teacher_rows, torch.cat(neighbors), torch.cat(weights))


def _most(numbers: Tensor, count: int) -> Tensor:
    """Give the places of so many largest numbers, of equal ones the first."""
    return numbers.sort(descending=True, stable=True).indices[:count]


def nearest(cells: Tensor, num_neighbors: int) -> Tensor:
    """Find the nearest of some cells to each of them.

    Args:
        cells: ``(R, 3)`` int64.
        num_neighbors: K.

    Returns:
        ``(R, K)`` int64, each cell itself first, then nearer ones before farther ones, and of equally near ones the
        earlier row; where R is less than K the cell itself fills up.
    """
    gaps = (cells[:, None] - cells).square().sum(dim=2)
    rank = torch.arange(len(cells), device=cells.device)
    found = (gaps * len(cells) + rank).topk(min(num_neighbors, len(cells)), dim=1, largest=False).indices
    own = rank[:, None].expand(-1, num_neighbors - found.shape[1])
    return torch.cat([found, own], dim=1)


def importance(num_points: Tensor, temperature: float) -> Tensor:
    """Turn the numbers of points ``(R,)`` in the voxels of a frame into weights that sum to 1.

    Source:
        PointDistiller, section 3.2, "Reweighting Knowledge Distillation Loss", over shares of the largest number.
    """
    largest = max(int(num_points.max()), 1) if len(num_points) else 1
    return (num_points.float() / largest / temperature).softmax(dim=0)
