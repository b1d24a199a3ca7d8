"""What the maps of a center head say, against loops over cells."""

from __future__ import annotations

import math

import pytest
import torch

from cakdp_ext.center_maps import BRANCHES, CODE_SIZE, CenterCells, ClassesOfParts, codes_of

FRAMES, ROWS, COLUMNS, SIZE = 2, 3, 4, (0.8, 0.4)
PARTS = {"one": [[0, 1, 2]], "one, turned": [[2, 0, 1]], "two": [[2, 0], [1]], "three": [[1], [2], [0]]}


@pytest.fixture(params=PARTS)
def parts(request):
    return PARTS[request.param]


@pytest.fixture
def classes(parts):
    return ClassesOfParts.of([torch.tensor(labels) for labels in parts])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cells():
    centers = [[(x + 0.5) * SIZE[0] - 1, (y + 0.5) * SIZE[1] + 2] for y in range(ROWS) for x in range(COLUMNS)]
    return CenterCells(torch.tensor(centers), SIZE)


def test_boxes_are_those_of_a_loop_over_cells_and_carry_no_gradient():
    maps = [{name: noise(FRAMES, width, ROWS, COLUMNS, seed=k) for name, width in BRANCHES.items()} for k in (1, 2)]
    codes = [codes_of(part).requires_grad_() for part in maps]
    boxes = cells().decode(codes)
    assert codes[0].shape == (FRAMES, CODE_SIZE, ROWS, COLUMNS)
    assert boxes.shape == (FRAMES, ROWS * COLUMNS, 2, 7)
    assert not boxes.requires_grad
    for frame, row, column, part in torch.cartesian_prod(*map(torch.arange, (FRAMES, ROWS, COLUMNS, 2))).tolist():
        dx, dy, z, *sizes, cosine, sine = codes[part][frame, :, row, column].tolist()
        expected = [(column + dx) * SIZE[0] - 1, (row + dy) * SIZE[1] + 2, z, *map(math.exp, sizes)]
        found = boxes[frame, row * COLUMNS + column, part].tolist()
        assert found == pytest.approx([*expected, math.atan2(sine, cosine)], rel=1e-5, abs=1e-5)


def test_maps_of_parts_are_joined_by_class(parts, classes):
    maps = [noise(FRAMES, len(labels), ROWS, COLUMNS, seed=k).requires_grad_() for k, labels in enumerate(parts)]
    joined = classes.join(maps)
    assert joined.requires_grad
    for part, labels in zip(maps, parts, strict=True):
        for channel, label in enumerate(labels):
            assert torch.equal(joined[..., label], part[:, channel].flatten(1))


def test_boxes_go_to_classes_and_the_best_class_takes_the_cell(parts, classes):
    logits, boxes = noise(FRAMES, 12, 3, seed=3), noise(FRAMES, 12, len(parts), 7, seed=4)
    best, of_classes = classes.best_boxes(logits, boxes), classes.boxes_of_classes(boxes)
    part_of = {label: number for number, labels in enumerate(parts) for label in labels}
    for frame in range(FRAMES):
        for cell in range(12):
            winner = int(logits[frame, cell].argmax())
            assert torch.equal(best[frame, cell], boxes[frame, cell, part_of[winner]])
            for label in range(3):
                found = of_classes[frame, cell] if len(parts) == 1 else of_classes[frame, cell, label]
                assert torch.equal(found, boxes[frame, cell, part_of[label]])
