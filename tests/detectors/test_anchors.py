from __future__ import annotations

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.anchors import AnchorSpec, anchor_grid, class_anchors
from cakdp_ext.detectors.box_coder import ResidualCoder
from cakdp_ext.types import LidarGeometry

GEOMETRY = LidarGeometry((0.0, -2.0, -3.0, 6.0, 2.0, 1.0), (0.5, 0.5, 0.5), 4)
CAR = AnchorSpec("Car", ((3.9, 1.6, 1.56), (5.0, 2.0, 2.0)), (0.0, 1.57), (-1.78,), 2, 0.6, 0.45)
WALKER = AnchorSpec("Pedestrian", ((0.8, 0.6, 1.73),), (0.0,), (-0.6,), 2, 0.5, 0.35)


def slow_anchors(specs, geometry):
    x_min, y_min, _, x_max, y_max, _ = geometry.point_cloud_range
    columns, rows = (cells // specs[0].feature_map_stride for cells in geometry.grid_size[:2])
    found = []
    for row in range(rows):
        for column in range(columns):
            x = x_min + column * (x_max - x_min) / (columns - 1)
            y = y_min + row * (y_max - y_min) / (rows - 1)
            for spec in specs:
                for size in spec.anchor_sizes:
                    for heading in spec.anchor_rotations:
                        found.append([x, y, spec.anchor_bottom_heights[0] + size[2] / 2, *size, heading])
    return torch.tensor(found)


def test_grid_agrees_with_loops_in_the_order_of_the_sites():
    grid = anchor_grid((CAR, WALKER), GEOMETRY)
    assert grid.shape == (4, 6, 5, 7)
    torch.testing.assert_close(grid.view(-1, 7), slow_anchors((CAR, WALKER), GEOMETRY))


def test_outer_anchors_lie_on_the_border_of_the_range():
    grid = anchor_grid((CAR,), GEOMETRY)
    assert grid[0, 0, 0, :2].tolist() == [0.0, -2.0]
    assert grid[-1, -1, 0, :2].tolist() == [6.0, 2.0]


def test_aligned_anchors_lie_at_the_cells_centres():
    spec = AnchorSpec("Pedestrian", ((0.8, 0.6, 1.73),), (0.0,), (-0.6,), 2, 0.5, 0.35, align_center=True)
    torch.testing.assert_close(anchor_grid((spec,), GEOMETRY)[:, :, 0, :2].reshape(-1, 2), GEOMETRY.cell_centers(2))


def test_cell_centres_by_hand():
    centers = GEOMETRY.cell_centers(2, 3)
    assert centers.shape == (4 * 6 * 3, 2)
    assert centers[0].tolist() == centers[2].tolist() == [0.5, -1.5]
    assert centers[3].tolist() == [1.5, -1.5]
    assert centers[-1].tolist() == [5.5, 1.5]


def test_several_bottom_heights_come_first_in_one_class_and_are_refused_in_a_map():
    spec = AnchorSpec("Car", ((3.9, 1.6, 1.5),), (0.0,), (-1.5, 0.5), 2, 0.6, 0.45)
    anchors = class_anchors(spec, GEOMETRY)
    assert anchors.shape == (2, 4, 6, 1, 1, 7)
    assert anchors[:, 0, 0, 0, 0, 2].tolist() == [-0.75, 1.25]
    with pytest.raises(ConfigError, match="anchor_bottom_heights of Car has 2 entries"):
        anchor_grid((spec,), GEOMETRY)


def test_a_map_has_one_stride():
    other = AnchorSpec("Pedestrian", ((0.8, 0.6, 1.73),), (0.0,), (-0.6,), 4, 0.5, 0.35)
    with pytest.raises(ConfigError, match="feature_map_stride of Pedestrian is 4, of Car 2"):
        anchor_grid((CAR, other), GEOMETRY)


@pytest.mark.parametrize(("matched", "unmatched"), [(0.4, 0.5), (0.5, 0.0)])
def test_thresholds_out_of_order_are_refused(matched, unmatched):
    with pytest.raises(ValueError, match="expected 0 < unmatched_threshold <= matched_threshold"):
        AnchorSpec("Car", ((3.9, 1.6, 1.56),), (0.0,), (-1.78,), 2, matched, unmatched)


def test_sizes_that_are_no_sizes_are_refused():
    with pytest.raises(ValueError, match=r"anchor_sizes of Car must be \(dx, dy, dz\) > 0"):
        AnchorSpec("Car", ((3.9, 1.6),), (0.0,), (-1.78,), 2, 0.6, 0.45)


def test_deltas_by_hand():
    anchor = torch.tensor([1.0, 2.0, 3.0, 3.0, 4.0, 2.0, 0.5])
    box = torch.tensor([2.0, 4.0, 4.0, 6.0, 2.0, 2.0, 1.5])
    expected = torch.tensor([0.2, 0.4, 0.5, 0.693147, -0.693147, 0.0, 1.0])
    torch.testing.assert_close(ResidualCoder().encode(box, anchor), expected)


def test_decoding_undoes_encoding():
    torch.manual_seed(0)
    coder = ResidualCoder()
    boxes, anchors = torch.randn(2, 3, 50, 7, dtype=torch.float64)
    boxes[..., 3:6], anchors[..., 3:6] = boxes[..., 3:6].abs() + 0.1, anchors[..., 3:6].abs() + 0.1
    torch.testing.assert_close(coder.decode(coder.encode(boxes, anchors), anchors), boxes)


def test_a_box_without_size_has_finite_deltas():
    assert ResidualCoder().encode(torch.zeros(2, 7), torch.ones(2, 7)).isfinite().all()


def test_no_boxes_give_no_deltas():
    assert ResidualCoder().encode(torch.zeros(0, 7), torch.zeros(0, 7)).shape == (0, 7)
