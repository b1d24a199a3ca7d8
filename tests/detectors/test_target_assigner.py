from __future__ import annotations

import math

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.detectors.anchors import AnchorSpec, anchor_grid
from cakdp_ext.detectors.target_assigner import (
    BACKGROUND,
    IGNORED,
    AxisAlignedTargetAssigner,
    TargetAssignerConfig,
    match_anchors,
    reachable_cells,
)
from cakdp_ext.types import LidarGeometry

GEOMETRY = LidarGeometry((0.0, -8.0, -3.0, 16.0, 8.0, 1.0), (0.5, 0.5, 0.5), 4)
SPECS = (
    AnchorSpec("Car", ((3.9, 1.6, 1.56),), (0.0, 1.57), (-1.78,), 2, 0.6, 0.45),
    AnchorSpec("Pedestrian", ((0.8, 0.6, 1.73),), (0.0, 1.57), (-0.6,), 2, 0.5, 0.35),
)
NAMES = ("Pedestrian", "Car")
ASSIGNER = AxisAlignedTargetAssigner(TargetAssignerConfig(), SPECS, NAMES)


def rectangle(box):
    x, y, _, dx, dy, _, heading = box
    turns = heading / (math.pi / 2)
    if round(turns) % 2:
        dx, dy = dy, dx
    return x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2


def slow_iou(box1, box2):
    a, b = rectangle(box1), rectangle(box2)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (box1[3] * box1[4] + box2[3] * box2[4] - shared)


def slow_targets(specs, anchors, boxes, labels):
    """One anchor after the other, in plain Python: label and object of each."""
    per_cell = anchors.shape[2]
    flat = anchors.reshape(-1, 7).tolist()
    spec_of_channel = [spec for spec in specs for _ in range(spec.num_per_cell)]
    found = []
    for spec in specs:
        objects = [m for m, label in enumerate(labels.tolist()) if label == NAMES.index(spec.class_name)]
        sites = [i for i in range(len(flat)) if spec_of_channel[i % per_cell] is spec]
        ious = {i: [slow_iou(flat[i], boxes[m].tolist()) for m in objects] for i in sites}
        best = [max(ious[i][k] for i in sites) for k in range(len(objects))]
        for i in sites:
            highest = max(ious[i], default=0.0)
            owner = objects[ious[i].index(highest)] if objects else -1
            is_best = any(abs(ious[i][k] - best[k]) < 1e-6 and best[k] > 0 for k in range(len(objects)))
            if is_best or highest >= spec.matched_threshold:
                found.append((i, NAMES.index(spec.class_name), owner))
            else:
                found.append((i, BACKGROUND if highest < spec.unmatched_threshold else IGNORED, -1))
    found.sort()
    return [label for _, label, _ in found], [owner for _, _, owner in found]


def scene(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=random)
    sizes = torch.tensor([[0.8, 0.6, 1.73], [3.9, 1.6, 1.56]])[labels]
    centers = torch.rand(count, 3, generator=random) * torch.tensor([16.0, 16.0, 2.0]) - torch.tensor([0.0, 8.0, 2.0])
    headings = 8 * torch.rand(count, 1, generator=random) - 4
    sizes = sizes * (0.8 + 0.4 * torch.rand(count, 3, generator=random))
    return torch.cat([centers, sizes, headings], dim=1), labels


@pytest.mark.parametrize("seed", range(3))
def test_assignment_agrees_with_a_loop_over_anchors(seed):
    boxes, labels = scene(7, seed)
    anchors = anchor_grid(SPECS, GEOMETRY)
    targets = ASSIGNER.assign(anchors, boxes[None], labels[None])
    expected_labels, expected_objects = slow_targets(SPECS, anchors, boxes, labels)
    assert targets.labels[0].tolist() == expected_labels
    assert targets.gt_indices[0].tolist() == expected_objects
    assert {BACKGROUND, IGNORED, 0, 1} == set(expected_labels)


def test_frames_are_independent_and_padding_is_nothing():
    first, second = scene(4, 0), scene(2, 1)
    boxes, labels = torch.zeros(3, 5, 7), torch.full((3, 5), -1)
    for frame, (frame_boxes, frame_labels) in enumerate((first, second)):
        boxes[frame, : len(frame_boxes)], labels[frame, : len(frame_boxes)] = frame_boxes, frame_labels
    anchors = anchor_grid(SPECS, GEOMETRY)
    together = ASSIGNER.assign(anchors, boxes, labels)
    for frame, (frame_boxes, frame_labels) in enumerate((first, second)):
        alone = ASSIGNER.assign(anchors, frame_boxes[None], frame_labels[None])
        assert torch.equal(together.labels[frame], alone.labels[0])
        assert torch.equal(together.gt_indices[frame], alone.gt_indices[0])
    assert (together.labels[2] == BACKGROUND).all()
    assert together.num_positives.tolist() == [*((together.labels[:2] >= 0).sum(1)).tolist(), 1]


def test_a_batch_without_room_for_objects_is_all_background():
    targets = ASSIGNER.assign(anchor_grid(SPECS, GEOMETRY), torch.zeros(2, 0, 7), torch.zeros(2, 0, dtype=torch.int64))
    assert (targets.labels == BACKGROUND).all()
    assert (targets.gt_indices == -1).all()
    assert [len(part) for part in targets.positives] == [0, 0]


def test_every_object_that_touches_an_anchor_gets_its_best_ones_ties_included():
    similarity = torch.tensor([[0.3, 0.0], [0.3, 0.0], [0.2, 0.0], [0.0, 0.0]])
    assert match_anchors(similarity, 0.6, 0.25).tolist() == [0, 0, BACKGROUND, BACKGROUND]


def test_a_forced_anchor_stands_for_the_object_it_overlaps_most():
    """Anchor 0 is the best there is for object 1 but overlaps object 0 more."""
    similarity = torch.tensor([[0.5, 0.4], [0.7, 0.1]])
    assert match_anchors(similarity, 0.6, 0.45).tolist() == [0, 0]


def test_between_the_thresholds_an_anchor_is_ignored():
    similarity = torch.tensor([[0.60], [0.59], [0.45], [0.44], [0.9]])
    assert match_anchors(similarity, 0.6, 0.45).tolist() == [0, IGNORED, IGNORED, BACKGROUND, 0]


def test_no_anchors_match_nothing():
    assert match_anchors(torch.zeros(0, 3), 0.6, 0.45).shape == (0,)


def test_no_overlapping_anchor_is_out_of_reach():
    anchors = anchor_grid(SPECS, GEOMETRY)
    boxes, _ = scene(60, 5)
    for box in boxes:
        near = reachable_cells(anchors, box[None])
        overlaps = [
            any(slow_iou(anchor, box.tolist()) > 0 for anchor in cell) for cell in anchors.flatten(0, 1).tolist()
        ]
        assert not (torch.tensor(overlaps) & ~near.flatten()).any()
        assert near.float().mean() < 0.5


def test_objects_of_other_classes_match_nothing():
    boxes, _ = scene(5, 0)
    targets = ASSIGNER.assign(anchor_grid(SPECS, GEOMETRY), boxes[None], torch.full((1, 5), 2))
    assert (targets.labels == BACKGROUND).all()


def test_matching_height_sets_objects_far_above_the_anchors_aside():
    config = TargetAssignerConfig(match_height=True)
    assigner = AxisAlignedTargetAssigner(config, SPECS, NAMES)
    anchors = anchor_grid(SPECS, GEOMETRY)
    box = anchors[8, 8, 0].clone()
    above = box + torch.tensor([0, 0, 5.0, 0, 0, 0, 0])
    labels = torch.tensor([[1]])
    assert assigner.assign(anchors, box.view(1, 1, 7), labels).labels[0].max() == 1
    assert (assigner.assign(anchors, above.view(1, 1, 7), labels).labels == BACKGROUND).all()


def test_anchors_of_an_unknown_class_are_refused():
    with pytest.raises(ConfigError, match="anchors for class 'Pedestrian'; CLASS_NAMES has Car"):
        AxisAlignedTargetAssigner(TargetAssignerConfig(), SPECS, ("Car",))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "ATSS", "NAME must be AxisAlignedTargetAssigner"),
        ("box_coder", "PointResidualCoder", "BOX_CODER must be ResidualCoder"),
        ("pos_fraction", 0.5, "POS_FRACTION must be -1"),
    ],
)
def test_what_is_not_supported_is_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        TargetAssignerConfig(**{key: value})
