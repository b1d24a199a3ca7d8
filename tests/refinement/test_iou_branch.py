"""What the IoU branch of either kind of head is asked for and taught."""

import pytest
import torch

from cakdp_ext.center_maps import CenterCells
from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.refinement import (
    CenterIoUHeadConfig,
    IoUHeadConfig,
    anchor_branch_loss,
    center_branch_loss,
    center_branch_targets,
    center_cell_targets,
    decoded_iou_targets,
    iou_loss,
)

CELL, COLUMNS, ROWS = (0.8, 0.4), 6, 5


@pytest.fixture
def cells():
    y, x = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    centers = (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * torch.tensor(CELL)
    return CenterCells(centers, CELL)


def boxes_of(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([COLUMNS * CELL[0], ROWS * CELL[1], 1.0])
    sizes = 1 + torch.rand(*shape, 3, generator=generator)
    headings = torch.rand(*shape, 1, generator=generator) * 6
    return torch.cat([torch.rand(*shape, 3, generator=generator) * extent, sizes, headings], dim=-1)


@pytest.fixture
def objects():
    return boxes_of(2, 4, seed=1), torch.tensor([[0, 2, 2, -1], [1, -1, -1, -1]])


def not_asked():
    raise AssertionError("no box is needed")


@pytest.mark.parametrize(
    ("config", "label"), [(IoUHeadConfig, "anchor"), (CenterIoUHeadConfig, "decoded_box")], ids=["anchor", "center"]
)
def test_each_kind_of_head_has_a_label_by_default(config, label):
    assert from_node(config, None, "IOU_HEAD") == config(label, 1.0)
    assert from_node(config, {"WEIGHT": 2}, "IOU_HEAD").weight == 2.0


@pytest.mark.parametrize(
    ("config", "label", "valid"),
    [(IoUHeadConfig, "center", "anchor or decoded_box"), (CenterIoUHeadConfig, "anchor", "decoded_box or center")],
)
def test_a_label_of_the_other_kind_of_head_is_refused(config, label, valid):
    with pytest.raises(ConfigError, match=f"IOU_HEAD: LABEL must be {valid}, got '{label}'"):
        from_node(config, {"LABEL": label}, "IOU_HEAD")


@pytest.mark.parametrize("config", [IoUHeadConfig, CenterIoUHeadConfig])
def test_unknown_samples_are_refused(config):
    with pytest.raises(ConfigError, match="IOU_HEAD: SAMPLES must be all or positive, got 'some'"):
        from_node(config, {"SAMPLES": "some"}, "IOU_HEAD")


def test_a_branch_teaches_the_samples_that_its_config_names(cells, objects):
    logits = torch.zeros(2, 30, 3, requires_grad=True)
    center_branch_loss(CenterIoUHeadConfig("center", 1.0, "positive"), logits, cells, not_asked, *objects).backward()
    targets = center_branch_targets("center", cells, not_asked, *objects, 3)
    assert torch.equal(logits.grad != 0, targets > 0)


def test_center_label_needs_no_boxes(cells, objects):
    targets = center_branch_targets("center", cells, not_asked, *objects, 3)
    assert targets.shape == (2, 30, 3)
    for frame in range(2):
        rows = (objects[0][frame], objects[1][frame])
        assert torch.equal(targets[frame], center_cell_targets(cells.centers, CELL, *rows, 3))
    assert targets.sum() == 4


def test_boxes_that_the_classes_share_are_labelled_for_each(cells, objects):
    boxes = boxes_of(2, 30, seed=2)
    targets = center_branch_targets("decoded_box", cells, lambda: boxes, *objects, 3)
    for frame in range(2):
        assert torch.equal(targets[frame], decoded_iou_targets(boxes[frame], objects[0][frame], objects[1][frame], 3))
    assert (targets > 0).sum() > 20


def test_boxes_of_a_class_are_compared_with_its_own_objects(cells, objects):
    boxes = boxes_of(2, 30, 3, seed=3)
    targets = center_branch_targets("decoded_box", cells, lambda: boxes, *objects, 3)
    assert (targets > 0).sum() > 20
    for kind in range(3):
        alone = center_branch_targets("decoded_box", cells, lambda kind=kind: boxes[:, :, kind], *objects, 3)
        assert torch.equal(targets[..., kind], alone[..., kind])
    shared = boxes[:, :, :1].expand(-1, -1, 3, -1)
    one = center_branch_targets("decoded_box", cells, lambda: boxes[:, :, 0], *objects, 3)
    assert torch.equal(center_branch_targets("decoded_box", cells, lambda: shared, *objects, 3), one)


@pytest.mark.parametrize("label", ["decoded_box", "center"])
def test_center_loss_is_equation_six_with_beta(label, cells, objects):
    boxes, logits = boxes_of(2, 30, 3, seed=4).requires_grad_(), torch.randn(2, 30, 3, requires_grad=True)
    config = CenterIoUHeadConfig(label, weight=0.25)
    loss = center_branch_loss(config, logits, cells, lambda: boxes, *objects)
    targets = center_branch_targets(label, cells, lambda: boxes, *objects, 3)
    assert loss.item() == pytest.approx(0.25 * iou_loss(logits, targets).item(), rel=1e-6)
    loss.backward()
    assert logits.grad.count_nonzero() == logits.numel()
    assert boxes.grad is None


@pytest.mark.parametrize("label", ["decoded_box", "center"])
def test_frames_without_objects_are_background(label, cells):
    logits, boxes = torch.zeros(2, 30, 3), boxes_of(2, 30, seed=5)
    nothing = torch.zeros(2, 0, 7), torch.zeros(2, 0, dtype=torch.long)
    loss = center_branch_loss(CenterIoUHeadConfig(label), logits, cells, lambda: boxes, *nothing)
    assert loss.item() == pytest.approx(30 * 3 * 0.25)


def test_anchor_loss_asks_for_boxes_only_where_they_are_the_label(objects):
    anchors, logits = boxes_of(30, seed=6), torch.zeros(2, 30, 3)
    assert anchor_branch_loss(IoUHeadConfig(), logits, anchors, not_asked, *objects) > 0
    with pytest.raises(AssertionError, match="no box is needed"):
        anchor_branch_loss(IoUHeadConfig("decoded_box"), logits, anchors, not_asked, *objects)
