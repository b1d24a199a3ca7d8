"""Points in the cells of boxes, in float64 numpy and one point at a time."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation


def unit_positions(points, box):
    """Positions (N, 3) of points in a box, 0 to 1 from its lower to its upper faces."""
    x, y, z, dx, dy, dz, heading = box
    local = Rotation.from_euler("z", -heading).apply(points - (x, y, z))
    return local / (dx, dy, dz) + 0.5


def far_from_faces(points, boxes, num_cells, gap=1e-3):
    """The points that no box holds within a share of a cell of a face of one of its cells."""
    keep = np.ones(len(points), dtype=bool)
    for box in boxes:
        cell = unit_positions(points, box) * num_cells
        near = np.abs(cell - cell.round()) < gap
        keep &= ~near.any(1)
    return points[keep]


def members_of(points, boxes, num_cells, max_points=None):
    """For every box a dict from cell (i, j, k) to the rows of its points, in order."""
    answer = []
    for box in boxes:
        position = unit_positions(points, box)
        cells = {}
        for row in np.flatnonzero(((position >= 0) & (position <= 1)).all(1)):
            cell = tuple(np.minimum(position[row] * num_cells, np.array(num_cells) - 1).astype(int))
            cells.setdefault(cell, []).append(row)
        answer.append({cell: rows[:max_points] for cell, rows in cells.items()})
    return answer


def pooled(features, members, num_cells, mode):
    """Features (N, C) pooled over the cells (M, X, Y, Z, C), and the winners of a maximum, -1 where there are none."""
    shape = (len(members), *num_cells, features.shape[1])
    values, winner = np.zeros(shape), np.full(shape, -1)
    for box, cells in enumerate(members):
        for cell, rows in cells.items():
            own = features[rows]
            values[(box, *cell)] = own.max(0) if mode == "max" else own.mean(0)
            winner[(box, *cell)] = np.array(rows)[own.argmax(0)]
    return torch.from_numpy(values), torch.from_numpy(winner)


def rounded(array, dtype):
    """What an array holds once it is a tensor of a dtype, in float64."""
    return torch.from_numpy(array).to(dtype).double().numpy()
