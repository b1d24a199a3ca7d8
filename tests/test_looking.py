"""How networks are looked at: the frame, the modes."""

import pytest
import torch
from torch import nn

from cakdp_ext.looking import evaluating, example_frame
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


def test_a_network_is_left_in_the_modes_it_had_with_gradients_and_fit_for_training():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    network.train()
    network[2].eval()
    with torch.inference_mode(), evaluating(network):
        assert not any(module.training for module in network.modules())
        assert not torch.is_grad_enabled()
        seen = network(torch.ones(1, 2))
    assert not seen.is_inference()
    assert [module.training for module in network.modules()] == [True, True, True, False]


def test_the_modes_come_back_after_an_error():
    network = nn.Dropout()
    with pytest.raises(KeyError), evaluating(network):
        raise KeyError
    assert network.training


def test_what_is_no_module_is_looked_at_without_gradients():
    with evaluating(object()):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
