"""The frame that networks are looked at with."""

import torch

from cakdp_ext.example_frame import example_frame
from cakdp_ext.types import LidarGeometry

GEOMETRY = LidarGeometry((0, -4, -3, 8, 4, 1), (0.5, 0.5, 0.5), num_point_features=5)


def test_columns_in_the_middle_of_the_range_with_points_in_their_voxels():
    frame = example_frame(GEOMETRY)
    cells = ((frame.points[:, 1:4] - torch.tensor([0, -4, -3])) / 0.5).floor().int()
    assert torch.equal(cells.flip(1), frame.voxel_coords[:, 1:])
    assert torch.equal(frame.points[:, 1:], frame.voxels[:, 0])
    assert torch.equal(frame.points[:, 0].int(), frame.voxel_coords[:, 0])
    assert frame.points.shape == (128, 6)
    assert frame.voxel_coords[:, 1:].float().mean(dim=0).tolist() == [3.5, 7.5, 7.5]
    assert len(frame.voxel_coords.unique(dim=0)) == 128


def test_it_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    example_frame(GEOMETRY)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_range_of_a_single_layer_of_voxels_has_one():
    pillars = LidarGeometry((0, -4, -3, 8, 4, 1), (0.5, 0.5, 4.0))
    assert example_frame(pillars).voxel_coords[:, 1].tolist() == [0] * 16
