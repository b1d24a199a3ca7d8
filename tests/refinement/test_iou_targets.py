import math

import pytest
import torch
from shapely import affinity
from shapely.geometry import box as rectangle

from cakdp_ext.refinement import anchor_iou_targets, center_cell_targets, decoded_iou_targets
from cakdp_ext.refinement import targets as targets_module


def random_boxes(count, seed, spread=8.0):
    generator = torch.Generator().manual_seed(seed)
    centers = (torch.rand(count, 3, generator=generator) - 0.5) * torch.tensor([spread, spread, 1.0])
    sizes = 1.0 + 3.0 * torch.rand(count, 3, generator=generator)
    headings = (torch.rand(count, 1, generator=generator) - 0.5) * 6.0
    return torch.cat([centers, sizes, headings], dim=1)


def footprint(box, heading):
    x, y, dx, dy = box[0], box[1], box[3], box[4]
    return affinity.rotate(rectangle(x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2), math.degrees(heading))


def nearest_bev_iou(box1, box2):
    first, second = (footprint(b, round(b[6] / (math.pi / 2)) * math.pi / 2) for b in (box1, box2))
    return first.intersection(second).area / first.union(second).area


def iou_3d(box1, box2):
    low = max(b[2] - b[5] / 2 for b in (box1, box2))
    high = min(b[2] + b[5] / 2 for b in (box1, box2))
    overlap = footprint(box1, box1[6]).intersection(footprint(box2, box2[6])).area * max(high - low, 0.0)
    return overlap / (math.prod(box1[3:6]) + math.prod(box2[3:6]) - overlap)


def slow_anchor_targets(anchors, gt_boxes, gt_labels, num_classes):
    expected = torch.zeros(len(anchors), num_classes)
    for row, anchor in enumerate(anchors.tolist()):
        overlaps = [nearest_bev_iou(anchor, gt) for gt in gt_boxes.tolist()]
        best = max(range(len(overlaps)), key=overlaps.__getitem__)
        expected[row, gt_labels[best]] = overlaps[best]
    return expected


def slow_decoded_targets(boxes, gt_boxes, gt_labels, num_classes):
    expected = torch.zeros(len(boxes), num_classes)
    for row, box in enumerate(boxes.tolist()):
        for gt, label in zip(gt_boxes.tolist(), gt_labels.tolist(), strict=True):
            expected[row, label] = max(expected[row, label].item(), iou_3d(box, gt))
    return expected


RULES = [
    pytest.param(anchor_iou_targets, slow_anchor_targets, id="anchor"),
    pytest.param(decoded_iou_targets, slow_decoded_targets, id="decoded"),
]


@pytest.mark.parametrize(("rule", "slow"), RULES)
def test_targets_agree_with_polygon_clipping(rule, slow):
    boxes, gt_boxes = random_boxes(60, seed=1), random_boxes(6, seed=2)
    gt_labels = torch.tensor([0, 2, 1, 0, 2, 2])
    expected = slow(boxes, gt_boxes, gt_labels, 3)
    assert (expected > 0.05).sum() > 20
    torch.testing.assert_close(rule(boxes, gt_boxes, gt_labels, 3), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("rule", "slow"), RULES)
def test_chunking_changes_nothing(rule, slow, monkeypatch):
    boxes, gt_boxes, gt_labels = random_boxes(50, seed=3), random_boxes(4, seed=4), torch.tensor([1, 0, 0, 1])
    whole = rule(boxes, gt_boxes, gt_labels, 2)
    monkeypatch.setattr(targets_module, "MAX_PAIRS", 28)
    assert whole.count_nonzero() > 10
    assert torch.equal(rule(boxes, gt_boxes, gt_labels, 2), whole)


@pytest.mark.parametrize(("rule", "slow"), RULES)
def test_padded_ground_truth_is_ignored_even_where_it_overlaps(rule, slow):
    boxes, gt_boxes, gt_labels = random_boxes(20, seed=5), random_boxes(3, seed=6), torch.tensor([1, 0, 1])
    padded_boxes = torch.cat([boxes[:2], gt_boxes, torch.zeros(4, 7)])
    padded_labels = torch.cat([torch.full((2,), -1), gt_labels, torch.full((4,), -1)])
    assert torch.equal(rule(boxes, padded_boxes, padded_labels, 2), rule(boxes, gt_boxes, gt_labels, 2))


@pytest.mark.parametrize(("rule", "slow"), RULES)
@pytest.mark.parametrize(
    ("num_boxes", "labels"), [(5, torch.empty(0)), (5, torch.tensor([-1.0, -1.0])), (0, torch.tensor([1.0]))]
)
def test_empty_input_gives_zeros_of_the_right_shape(rule, slow, num_boxes, labels):
    labels = labels.long()
    targets = rule(random_boxes(num_boxes, seed=7), random_boxes(len(labels), seed=7), labels, 3)
    assert targets.shape == (num_boxes, 3)
    assert targets.count_nonzero() == 0


@pytest.mark.parametrize(("rule", "slow"), RULES)
def test_a_class_without_channel_is_refused(rule, slow):
    with pytest.raises(ValueError, match="below num_classes = 2, got 2"):
        rule(random_boxes(3, seed=8), random_boxes(1, seed=8), torch.tensor([2]), 2)


@pytest.mark.parametrize(("rule", "slow"), RULES)
def test_far_from_the_origin_a_box_on_its_ground_truth_has_iou_one(rule, slow):
    box = torch.tensor([[69.0, -38.5, -1.0, 3.9, 1.6, 1.56, 0.0]])
    assert rule(box, box, torch.tensor([1]), 3).tolist()[0] == pytest.approx([0.0, 1.0, 0.0], abs=1e-4)


def test_an_anchor_is_labelled_in_one_channel_only():
    anchor = torch.tensor([[0.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0]])
    gt_boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 1.0, 1.5, 0.0], [0.0, 0.0, 0.0, 4.0, 1.5, 1.5, 0.0]])
    targets = anchor_iou_targets(anchor, gt_boxes, torch.tensor([0, 1]), 2)
    assert targets.tolist()[0] == pytest.approx([0.0, 0.75])
    assert decoded_iou_targets(anchor, gt_boxes, torch.tensor([0, 1]), 2).tolist()[0] == pytest.approx([0.5, 0.75])


def test_no_gradient_flows_to_the_predicted_boxes():
    boxes = random_boxes(4, seed=9).requires_grad_()
    assert not decoded_iou_targets(boxes, random_boxes(2, seed=9), torch.tensor([0, 0]), 1).requires_grad


def test_a_box_that_is_not_finite_overlaps_nothing_and_leaves_the_others():
    boxes, gt_boxes, gt_labels = random_boxes(10, seed=10), random_boxes(3, seed=11), torch.tensor([0, 0, 0])
    expected = decoded_iou_targets(boxes, gt_boxes, gt_labels, 1)
    assert expected[0] > 0
    boxes[0, 0], expected[0] = float("nan"), 0.0
    assert torch.equal(decoded_iou_targets(boxes, gt_boxes, gt_labels, 1), expected)


LOW, CELL, COLUMNS, ROWS = (-4.0, 0.8), (0.8, 0.4), 9, 7


def map_centers():
    centers = [
        (LOW[0] + (i + 0.5) * CELL[0], LOW[1] + (j + 0.5) * CELL[1]) for j in range(ROWS) for i in range(COLUMNS)
    ]
    return torch.tensor(centers)


def slow_center_cells(centers, gt_boxes, gt_labels, num_classes):
    """Give 1 to the cell nearest to every object, axis by axis: the one it lies in, or the border cell beside it."""
    expected = torch.zeros(len(centers), num_classes)
    for box, label in zip(gt_boxes.tolist(), gt_labels.tolist(), strict=True):
        x, y = (
            min(sorted(set(axis)), key=lambda at, k=k: abs(at - box[k])) for k, axis in enumerate(centers.T.tolist())
        )
        expected[(centers == torch.tensor([x, y])).all(dim=1), label] = 1.0
    return expected


def objects_on_the_map(count, seed, beyond=0.0):
    boxes, extent = random_boxes(count, seed), torch.tensor([COLUMNS * CELL[0], ROWS * CELL[1]])
    share = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * (1 + 2 * beyond) - beyond
    boxes[:, :2] = torch.tensor(LOW) + share * extent
    return boxes


@pytest.mark.parametrize("beyond", [0.0, 0.5])
@pytest.mark.parametrize("per_cell", [1, 2])
def test_center_cells_are_those_nearest_to_the_objects(beyond, per_cell):
    centers = map_centers().repeat_interleave(per_cell, dim=0)
    centers = centers[torch.randperm(len(centers), generator=torch.Generator().manual_seed(0))]
    gt_boxes, gt_labels = objects_on_the_map(25, 12, beyond), torch.arange(25) % 3
    expected = slow_center_cells(centers, gt_boxes, gt_labels, 3)
    targets = center_cell_targets(centers, CELL, gt_boxes, gt_labels, 3)
    assert torch.equal(targets, expected)
    assert per_cell * 15 < targets.sum() <= per_cell * 25


@pytest.mark.parametrize(
    ("x", "y", "column", "row"),
    [(-4.0, 0.8, 0, 0), (3.199, 3.599, 8, 6), (-3.1999, 1.2001, 1, 1), (-3.2001, 1.1999, 0, 0), (90.0, -90.0, 8, 0)],
)
def test_border_cells(x, y, column, row):
    centers = map_centers().double()
    box = torch.tensor([[x, y, 0, 4, 2, 1.5, 0]], dtype=torch.float64)
    assert center_cell_targets(centers, CELL, box, torch.tensor([1]), 2).nonzero().tolist() == [
        [row * COLUMNS + column, 1]
    ]


def test_two_objects_in_a_cell_count_once_and_each_class_for_itself():
    boxes = random_boxes(3, 13)
    boxes[:, :2] = map_centers()[10]
    targets = center_cell_targets(map_centers(), CELL, boxes, torch.tensor([0, 0, 2]), 3)
    assert targets[10].tolist() == [1.0, 0.0, 1.0]
    assert targets.sum() == 2


def test_center_cells_ignore_padding():
    boxes, labels = objects_on_the_map(4, 14), torch.tensor([1, 0, -1, -1])
    targets = center_cell_targets(map_centers(), CELL, boxes, labels, 2)
    assert torch.equal(targets, center_cell_targets(map_centers(), CELL, boxes[:2], labels[:2], 2))
    nothing = center_cell_targets(map_centers(), CELL, boxes, torch.full((4,), -1), 2)
    assert nothing.shape == (63, 2)
    assert nothing.count_nonzero() == 0


def test_center_cells_of_no_cells_and_of_a_class_without_channel():
    assert center_cell_targets(torch.zeros(0, 2), CELL, random_boxes(1, 15), torch.tensor([0]), 3).shape == (0, 3)
    with pytest.raises(ValueError, match="below num_classes = 2, got 2"):
        center_cell_targets(map_centers(), CELL, random_boxes(1, 15), torch.tensor([2]), 2)
