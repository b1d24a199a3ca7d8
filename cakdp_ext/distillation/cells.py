"""Which predictions lie in the bird's-eye-view cell of another prediction, or of a position?"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError

SAME_POSITION = 1e-3
"""Metres; positions that are nearer than that are one position, written with rounding errors."""
BORDER = 1e-3
"""Share of a cell; so near below a border counts as on it, and what is on a border belongs to the cell above."""
OFF_GRID = 0.05
"""Share of a cell by which a centre may miss its place in the grid."""


@dataclass(frozen=True)
class CellGrid:
    """The cells of a bird's-eye-view map.

    Attributes:
        low: ``(2,)`` float64 metric x, y of the lower corner.
        size: ``(2,)`` float64 metres of a cell along x and y.
        shape: number of cells along x and y.
    """

    low: Tensor
    size: Tensor
    shape: tuple[int, int]

    @classmethod
    def behind(cls, centers: Tensor, whose: str) -> CellGrid:
        """Find the grid that centres of cells belong to; several predictions may share a cell.

        Args:
            centers: ``(A, 2)`` metric x, y, in any order.
            whose: named in errors.

        Raises:
            ConfigError: where they tell no grid: a map of fewer than two cells along x or y, or centres beside it.
        """
        positions = centers.double()
        (left, width, columns), (bottom, height, rows) = (_axis(values, whose) for values in positions.unbind(1))
        low, size = positions.new_tensor((left, bottom)), positions.new_tensor((width, height))
        places = (positions - low) / size - 0.5
        if not bool(((places - places.round()).abs() < OFF_GRID).all()):
            raise ConfigError(
                f"the centres of the {whose}'s predictions lie on no regular grid; give those of its cells"
            )
        return cls(low, size, (columns, rows))

    @property
    def num_cells(self) -> int:
        """How many cells there are."""
        return self.shape[0] * self.shape[1]

    def cells_of(self, positions: Tensor) -> Tensor:
        """Give the number ``(N,)`` of the cell that each metric position ``(N, 2)`` lies in, -1 beyond the map."""
        cells = ((positions.to(self.low) - self.low) / self.size + BORDER).floor().long()
        is_inside = ((cells >= 0) & (cells < cells.new_tensor(self.shape))).all(dim=1)
        return (cells[:, 1] * self.shape[0] + cells[:, 0]).masked_fill(~is_inside, -1)

    def __str__(self) -> str:
        high = self.low + self.size * self.low.new_tensor(self.shape)
        (left, bottom), (right, top) = self.low.tolist(), high.tolist()
        return f"x {left:.2f} to {right:.2f} m, y {bottom:.2f} to {top:.2f} m"


def _axis(values: Tensor, whose: str) -> tuple[float, float, int]:
    """Give lower border, size of a cell and number of cells along one axis."""
    values = values.unique()
    steps = values.diff()
    steps = steps[steps > SAME_POSITION]
    if len(steps) == 0:
        raise ConfigError(f"the {whose}'s map has fewer than two cells along x or y; their size cannot be told")
    low, extent = float(values[0]), float(values[-1] - values[0])
    num_steps = round(extent / float(steps.median()))
    size = extent / num_steps
    return low - size / 2, size, num_steps + 1


@dataclass(frozen=True)
class _Members:
    """The predictions that lie in each cell of a grid.

    Attributes:
        sites: ``(T,)`` int64, cell after cell, ascending within a cell.
        first: ``(cells,)`` int64, where those of each cell begin.
        count: ``(cells,)`` int64, how many they are.
    """

    sites: Tensor
    first: Tensor
    count: Tensor

    @classmethod
    def of(cls, grid: CellGrid, centers: Tensor) -> _Members:
        cells, sites = grid.cells_of(centers).sort(stable=True)
        count = torch.bincount(cells[cells >= 0], minlength=grid.num_cells)
        return cls(sites[cells >= 0], count.cumsum(0) - count, count)


@dataclass(frozen=True)
class SitesByCell:
    """The predictions in every cell of a map.

    Attributes:
        grid: the cells.
        rows: ``(cells, n)`` int64, which predictions, ascending; lists of fewer than n are filled up with their last.
        is_empty: ``(cells,)`` bool, True where a cell has none.
    """

    grid: CellGrid
    rows: Tensor
    is_empty: Tensor

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Find the predictions in whose cell each metric position lies.

        Args:
            positions: ``(N, 2)`` x, y.

        Returns:
            ``rows (N, n)`` int64 and ``is_there (N,)`` bool, False beyond the map, where the rows mean nothing.
        """
        cells = self.grid.cells_of(positions)
        return self.rows[cells.clamp(min=0)], (cells >= 0) & ~self.is_empty[cells.clamp(min=0)]


@functools.lru_cache(maxsize=4)  # tensors are hashed by identity, and kept alive here
@torch.no_grad()
def map_grid(centers: Tensor) -> CellGrid:
    """Find the cells of a whole map; computed once for a tensor, see :func:`match_sites`.

    Args:
        centers: ``(A, 2)`` metric x, y of the cells behind a head's predictions.

    Raises:
        ConfigError: where they tell no grid.
    """
    return CellGrid.behind(centers, "head")


@functools.lru_cache(maxsize=2)  # tensors are hashed by identity, and kept alive here
@torch.no_grad()
def sites_by_cell(centers: Tensor) -> SitesByCell:
    """Sort the predictions of a map by cell; computed once for a tensor, see :func:`match_sites`.

    Args:
        centers: ``(A, 2)`` metric x, y of the cells behind a student's predictions.

    Raises:
        ConfigError: where they tell no grid.
    """
    grid = CellGrid.behind(centers, "student")
    members = _Members.of(grid, centers)
    slots = torch.arange(int(members.count.max()), device=centers.device)
    places = members.first[:, None] + slots.minimum((members.count[:, None] - 1).clamp(min=0))
    return SitesByCell(grid, members.sites[places.clamp(max=len(members.sites) - 1)], members.count == 0)


@torch.no_grad()
def sites_in_cells(student_centers: Tensor, teacher_centers: Tensor) -> Tensor:
    """Find the teacher's predictions in the cell of every prediction of the student, by metric position.

    These are the predictions whose cell's centre lies in the student's cell (one cell for equal strides, several for a
    teacher of smaller stride); where there are none, those of the teacher's cell that holds the student's centre.

    Args:
        student_centers: ``(A, 2)`` metric x, y of the cells behind the student's predictions.
        teacher_centers: ``(T, 2)`` of those behind the teacher's.

    Returns:
        ``(A, n)`` int64, which of the T, ascending; lists of fewer than n are filled up with their last entry.

    Raises:
        ConfigError: where a prediction of the student has no cell of the teacher's, or a map tells no grid.
    """
    teacher_centers = teacher_centers.to(student_centers.device)
    students, teachers = CellGrid.behind(student_centers, "student"), CellGrid.behind(teacher_centers, "teacher")
    within, around = _Members.of(students, teacher_centers), _Members.of(teachers, teacher_centers)
    own, home = students.cells_of(student_centers), teachers.cells_of(student_centers)
    has_within = within.count[own] > 0
    first = torch.where(has_within, within.first[own], around.first[home] + len(within.sites))
    count = torch.where(has_within, within.count[own], around.count[home].masked_fill(home < 0, 0))
    _check_everywhere(count > 0, student_centers, students, teachers)
    slots = torch.arange(int(count.max()), device=count.device)
    return torch.cat([within.sites, around.sites])[first[:, None] + slots.minimum(count[:, None] - 1)]


def _check_everywhere(is_found: Tensor, centers: Tensor, students: CellGrid, teachers: CellGrid) -> None:
    num_lost = int((~is_found).sum())
    if num_lost:
        x, y = centers[int(is_found.int().argmin())].tolist()
        raise ConfigError(
            f"{num_lost} of {len(centers)} predictions of the student have no cell of the teacher's, the first at "
            f"({x:.2f}, {y:.2f}) m: the student's map covers {students}, the teacher's {teachers}; "
            "give both the same POINT_CLOUD_RANGE"
        )
