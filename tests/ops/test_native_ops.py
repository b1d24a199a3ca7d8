"""The compiled ops as PyTorch sees them, and how the package says which implementation runs."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from shapely_boxes import jittered, random_boxes

from cakdp_ext import ops
from cakdp_ext.ops import native
from cakdp_ext.ops.reference import nms as reference

ROOT = Path(__file__).resolve().parents[2]
without_cuda = pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA")
ONE = torch.zeros(1, dtype=torch.int64)
needs_native = pytest.mark.skipif(bool(native.REASON), reason=f"native ops: {native.REASON}")


def arguments(device, dtype):
    boxes = random_boxes(6, 0).to(device, dtype)
    coords = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2]], device=device)
    xyz = torch.rand(2, 3, device=device, dtype=dtype)
    one = torch.tensor([2], device=device)
    two_rows = torch.rand(2, 5, device=device, dtype=dtype, requires_grad=True)
    index = torch.tensor([[0, 1, 0], [1, 1, 1]], device=device)
    weights = torch.rand(2, 3, device=device, dtype=dtype, requires_grad=True)
    grouped = torch.rand(2, 5, 3, device=device, dtype=dtype, requires_grad=True)
    points = boxes[:, :3].contiguous()
    counts = torch.tensor([4, 2], device=device)
    lists = tuple(
        torch.tensor(rows, device=device) for rows in ([0, 2, 4, 5, 5, 5], [2, 2, 1, 0, 0, 1], [0, 3, 1, 2, 2, 5])
    )
    features = torch.rand(6, 5, device=device, dtype=dtype, requires_grad=True)
    return {
        "boxes_overlap_bev": (boxes, boxes[:4]),
        "boxes_overlap_bev_aligned": (boxes, boxes.flip(0)),
        "boxes_iou_bev": (boxes, boxes[:4], True),
        "boxes_iou_bev_aligned": (boxes, boxes.flip(0), True),
        "boxes_iou_3d": (boxes, boxes[:4]),
        "boxes_iou_3d_aligned": (boxes, boxes.flip(0)),
        "nearest_bev_iou": (boxes, boxes[:4]),
        "nms_sorted": (boxes, torch.arange(6, device=device) // 4, 0.1),
        "points_in_boxes": (boxes[None, :, :3].contiguous(), boxes[None]),
        "voxel_query": (coords, xyz, coords, xyz, [3, 3, 3], 1, [1, 1, 1], 2.0, 4),
        "farthest_point_sampling": (xyz, one, [3]),
        "ball_query": (xyz, one, xyz, one, [0.5, 2.0], [2, 4]),
        "group_points": (two_rows, index, torch.tensor([False, True], device=device)),
        "group_points_backward": (grouped, index, None, 4),
        "three_nn": (xyz, one, xyz, one),
        "three_interpolate": (two_rows, index, weights),
        "three_interpolate_backward": (two_rows, index, weights, 4),
        "neighbors_in_boxes": (points, counts, boxes, counts, -1),
        "neighbors_in_balls": (points, counts, points, counts, 3.0, 2),
        "three_nn_local": (points, points[:, None].repeat(1, 4, 1), *lists),
        "group_by_cell": (points, boxes, *lists, [2, 3, 1]),
        "pool_cells_mean": (features, *lists),
        "pool_cells_mean_backward": (features.detach(), *lists, 7),
        "pool_cells_max": (features, *lists),
        "pool_cells_max_backward": (features.detach(), torch.arange(-1, 29, device=device).view(6, 5) // 5, 6),
    }


@needs_native
@pytest.mark.parametrize("name", native.NAMES)
def test_native_op_keeps_pytorchs_rules(device, dtype, name):
    if not native.has_kernel(name, device.type):
        pytest.skip(f"{name} has no {device.type} kernel")
    torch.library.opcheck(getattr(torch.ops.cakdp, name).default, arguments(device, dtype)[name])


@needs_native
def test_every_native_op_is_checked():
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("cakdp::")}
    assert registered == set(native.NAMES) == set(arguments("cpu", torch.float32))


@pytest.mark.skipif(native.EXTENSION != "cakdp_ext._C", reason="kernels for a GPU, run on a processor, have no threads")
@needs_native
def test_number_of_threads_does_not_change_the_answer():
    boxes = jittered(random_boxes(20, 1, spread=60).repeat(2000, 1), 2, 0.05)
    before = torch.get_num_threads()
    answers = []
    groups = torch.arange(len(boxes)) * 5 // len(boxes)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            keep = [torch.ops.cakdp.nms_sorted(boxes, ids, 0.3) for ids in (None, groups)]
            answers.append((*keep, ops.boxes_overlap_bev(boxes[:300], boxes[:300])))
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=0, rtol=0)
    assert 10 <= len(answers[0][0]) < 100


@needs_native
def test_native_and_reference_keep_the_same_of_a_thousand():
    boxes = jittered(random_boxes(200, 3, spread=120).repeat(5, 1), 4)
    found = torch.ops.cakdp.nms_sorted(boxes, None, 0.3)
    torch.testing.assert_close(found, reference.nms_sorted(boxes, None, 0.3))


@needs_native
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: o.boxes_overlap_bev(torch.zeros(2, 6), torch.zeros(2, 7)), r"boxes1 must have shape \[-1, 7\]"),
        (lambda o: o.boxes_overlap_bev_aligned(torch.zeros(2, 7), torch.zeros(3, 7)), "come in pairs, got 2 and 3"),
        (lambda o: o.nms_sorted(torch.zeros(7), None, 0.5), "boxes must have shape"),
        (lambda o: o.nms_sorted(torch.zeros(2, 7), torch.zeros(3, dtype=torch.int64), 0.5), "groups must have shape"),
        (lambda o: o.nms_sorted(torch.zeros(2, 7), torch.zeros(2), 0.5), "groups must be Long"),
        (lambda o: o.points_in_boxes(torch.zeros(1, 2, 3), torch.zeros(1, 2, 7).double()), "must share a dtype"),
        (
            lambda o: o.neighbors_in_boxes(torch.zeros(2, 3), ONE, torch.zeros(2, 7), ONE[:0], -1),
            r"^box_counts must have shape \[1\]",
        ),
        (lambda o: o.neighbors_in_balls(torch.zeros(2, 2), ONE, torch.zeros(2, 3), ONE, 1.0, -1), "points must have"),
        (lambda o: o.three_nn_local(torch.zeros(2, 3), torch.zeros(2, 1, 3), ONE, ONE, ONE), "start must have shape"),
        (lambda o: o.group_by_cell(torch.zeros(2, 3), torch.zeros(1, 7), ONE, ONE, ONE, [1, 0, 1]), "positive numbers"),
        (lambda o: o.pool_cells_mean(torch.zeros(2, 3), ONE, ONE, ONE.int()), "must be Long, got Int"),
        (lambda o: o.pool_cells_max(torch.zeros(2, 3), ONE, ONE[:0], ONE), "length must have shape"),
        (lambda o: o.pool_cells_mean_backward(torch.zeros(2, 3), ONE, ONE, ONE, 2), "grad must have one row a cell"),
        (lambda o: o.pool_cells_max_backward(torch.zeros(2, 3), ONE.view(1, 1), 2), "winner must have shape"),
    ],
)
def test_a_direct_call_refuses_what_would_read_out_of_bounds(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ops.cakdp)


needs_cpu_kernels = pytest.mark.skipif(
    native.EXTENSION != "cakdp_ext._C", reason="CUDA kernels ignore what lies outside, to tell would cost a wait"
)


@needs_native
@needs_cpu_kernels
@pytest.mark.parametrize("coords", [[2, 0, 0, 0], [0, 3, 0, 0], [0, 0, -1, 0], [0, 0, 0, 3]])
def test_a_direct_voxel_query_refuses_voxels_outside_the_grid(coords):
    voxels, xyz = torch.tensor([coords]), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="outside the grid"):
        torch.ops.cakdp.voxel_query(voxels, xyz, voxels, xyz, [3, 3, 3], 2, [1, 1, 1], 1.0, 1)


@needs_native
def test_native_op_has_shapes_under_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        found = torch.ops.cakdp.boxes_overlap_bev(torch.empty(5, 7), torch.empty(3, 7))
    assert found.shape == (5, 3)


def test_without_the_extension_one_warning_an_op_says_how_to_build(monkeypatch):
    monkeypatch.setattr(native, "REASON", "cakdp_ext._C is not built")
    native.has_kernel.cache_clear()
    native._warn_once.cache_clear()
    boxes = random_boxes(2, 2)
    try:
        with pytest.warns(UserWarning, match=r"nms_sorted runs .* is not built; to build it: pip install") as caught:
            ops.nms(boxes, boxes[:, 0], 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            ops.nms(boxes, boxes[:, 0], 0.5, axis_aligned=True)
    finally:
        native.has_kernel.cache_clear()
    assert [Path(warning.filename).name for warning in caught if "nms_sorted" in str(warning.message)] == [
        Path(__file__).name
    ]


def test_switch_forces_references_and_shows():
    command = [sys.executable, "-W", "error", "-m", "cakdp_ext.ops"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"CAKDP_NATIVE": "0"}, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(native.NAMES)
    assert all(line.endswith("reference (CAKDP_NATIVE=0)") for line in lines)


def test_an_extension_that_lacks_an_op_is_not_used(monkeypatch):
    monkeypatch.setattr(native, "NAMES", (*native.NAMES, "an_op_of_tomorrow"))
    reason = native._load()
    if native.REASON:
        pytest.skip(f"native ops: {native.REASON}")
    assert reason == f"{native.EXTENSION} is older than these sources, it lacks an_op_of_tomorrow"


@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [
        ({"CAKDP_BUILD": "0"}, 0, "installing without native ops, CAKDP_BUILD=0"),
        ({"CAKDP_BUILD": "auto", "CXX": "no-such-compiler"}, 0, "there is no C++ compiler (no-such-compiler)"),
        ({"CAKDP_BUILD": "1", "CXX": "no-such-compiler"}, 1, "CAKDP_BUILD=1, but there is no C++ compiler"),
        ({"CAKDP_BUILD": "maybe"}, 1, "CAKDP_BUILD must be auto, 0 or 1, got 'maybe'"),
        ({"CAKDP_CUDA": "0"}, 0, "CUDA kernels: no, CAKDP_CUDA=0"),
        ({"CAKDP_CUDA": "-1"}, 1, "CAKDP_CUDA must be auto, 0 or 1, got '-1'"),
        pytest.param(
            {"CAKDP_CUDA": "1"}, 1, "CAKDP_CUDA=1, but this PyTorch is built without CUDA", marks=without_cuda
        ),
    ],
)
def test_setup_says_whether_native_ops_are_built(environment, code, said):
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
