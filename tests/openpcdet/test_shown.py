"""Points are counted in the voxels of networks that sort the points themselves, against a dictionary."""

from collections import Counter

import pytest
import torch

from cakdp_ext.openpcdet.shown import taps_of
from cakdp_ext.types import LidarGeometry, Role

GEOMETRY = LidarGeometry((0, -2, -1, 4, 2, 1), (0.5, 0.5, 1.0))


class Model:
    geometry, sites = GEOMETRY, None


def voxel_of(point):
    """Give (batch, z, y, x), or None outside the range."""
    batch, x, y, z = point[:4]
    if not (0 <= x < 4 and -2 <= y < 2 and -1 <= z < 1):
        return None
    return int(batch), int(z + 1), int((y + 2) / 0.5), int(x / 0.5)


@pytest.mark.parametrize("counts", [None, torch.ones(3)])
@pytest.mark.parametrize("num_points", [400, 0])
def test_counts_are_made_where_none_or_others_are_left(counts, num_points):
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([2.0, 5.0, 5.0, 2.5, 1.0])
    points = torch.rand(num_points, 5, generator=generator) * spread - torch.tensor([0.0, 0.5, 2.5, 1.2, 0.0])
    points[:, 0] = points[:, 0].floor()
    wanted = Counter(voxel_of(point) for point in points.tolist())
    wanted.pop(None, None)
    cells = sorted(wanted, key=hash)
    coords = torch.tensor([*cells[::2], (1, 0, 0, 0)] if (1, 0, 0, 0) not in wanted else cells[::2])
    data = {"points": points, "voxel_coords": coords, "voxel_features": torch.rand(len(coords), 4)}
    if counts is not None:
        data["voxel_num_points"] = counts
    shown = taps_of(Model, data, None, frozenset({Role.VOXELS})).voxels
    assert shown.num_points.tolist() == [wanted.get(tuple(cell), 0) for cell in coords.tolist()]
    assert torch.equal(shown.coords, coords)
    assert num_points == 0 or shown.num_points.max() > 1


def test_counts_that_fit_are_taken_and_pillars_go_before_voxels():
    coords = torch.tensor([[0, 0, 1, 1], [0, 0, 2, 1]])
    data = {"voxel_coords": coords.float(), "voxel_num_points": torch.tensor([3.0, 4.0]), "voxel_features": None}
    data["pillar_features"] = torch.rand(2, 6)
    shown = taps_of(Model, data, None, frozenset({Role.VOXELS})).voxels
    assert shown.num_points.tolist() == [3, 4]
    assert shown.features is data["pillar_features"]
    assert torch.equal(shown.coords, coords)
