"""OpenPCDet's compiled modules: what each in-place function leaves in its caller's tensors, against plain loops."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from cakdp_ext import ops
from cakdp_ext.openpcdet.ops import iou3d_nms_cuda, pointnet2_stack_cuda, roiaware_pool3d_cuda

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def boxes(device):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(12, 7, generator=generator) * torch.tensor([8, 8, 1, 4, 2, 2, 6.28]) + torch.tensor(
        [0, 0, 0, 1, 1, 1, 0.0]
    )
    return values.to(device)


@pytest.fixture
def clouds(device):
    """Two frames of 40 and 25 points, and of 6 and 9 queries, in a cube of two metres; one query far away."""
    generator = torch.Generator().manual_seed(1)
    xyz, queries = torch.rand(65, 3, generator=generator) * 2, torch.rand(15, 3, generator=generator) * 2
    queries[3] = 50
    counts, query_counts = torch.tensor([40, 25], dtype=torch.int32), torch.tensor([6, 9], dtype=torch.int32)
    return tuple(item.to(device) for item in (xyz, counts, queries, query_counts))


def frames(counts):
    ends = np.cumsum(counts.tolist())
    return [range(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]


def distances(xyz, queries):
    return np.linalg.norm(queries.cpu().double().numpy()[:, None] - xyz.cpu().double().numpy()[None], axis=2)


def test_overlaps_are_filled_in_place(boxes, device):
    overlap, iou = torch.full((12, 5), -1.0, device=device), torch.full((12, 5), -1.0, device=device)
    assert iou3d_nms_cuda.boxes_overlap_bev_gpu(boxes, boxes[:5], overlap) == 1
    assert iou3d_nms_cuda.boxes_iou_bev_gpu(boxes, boxes[:5], iou) == 1
    areas = boxes[:, 3] * boxes[:, 4]
    torch.testing.assert_close(iou, overlap / (areas[:, None] + areas[:5] - overlap))
    torch.testing.assert_close(overlap.diagonal(), areas[:5])
    paired = torch.full((12, 1), -1.0, device=device)
    iou3d_nms_cuda.paired_boxes_overlap_bev_gpu(boxes, boxes.flip(0), paired)
    torch.testing.assert_close(paired[:, 0], ops.boxes_overlap_bev(boxes, boxes.flip(0)).diagonal())
    iou3d_nms_cuda.boxes_aligned_iou_bev_cpu(boxes, boxes.flip(0), paired)
    torch.testing.assert_close(paired[:, 0], ops.iou_bev(boxes, boxes.flip(0)).diagonal())


@pytest.mark.parametrize("name", ["nms_gpu", "nms_normal_gpu"])
def test_nms_writes_positions_to_the_cpu(boxes, name):
    keep = torch.full((12,), -1, dtype=torch.int64)
    count = getattr(iou3d_nms_cuda, name)(boxes, keep, 0.1)
    upright = boxes.clone()
    upright[:, 6] *= name == "nms_gpu"
    iou = ops.iou_bev(upright, upright).cpu()
    wanted: list[int] = []
    for i in range(12):
        if all(iou[i, j] <= 0.1 for j in wanted):
            wanted.append(i)
    assert keep[:count].tolist() == wanted
    assert keep[count:].tolist() == [-1] * (12 - count)
    assert 1 < count < 12


def test_points_in_boxes_of_two_frames(boxes, device):
    points = torch.rand(2, 200, 3, generator=torch.Generator().manual_seed(2)).to(device) * 8
    frame_boxes = boxes.reshape(2, 6, 7)
    found = torch.full((2, 200), -1, dtype=torch.int32, device=device)
    roiaware_pool3d_cuda.points_in_boxes_gpu(frame_boxes, points, found)
    assert found.tolist() == ops.points_in_boxes(points, frame_boxes).tolist()
    assert (found >= 0).any(1).all()


def test_points_in_boxes_cpu_marks_every_box_with_a_margin():
    boxes = torch.tensor([[0, 0, 0, 2, 2, 2, 0.0], [0, 0, 0, 4, 4, 2, 0.0]])
    points = torch.tensor([[0.5, 0, 0], [1.009, 0, 0], [1.02, 0, 0], [0, 0, 1.005], [3, 0, 0]])
    inside = torch.zeros(2, 5, dtype=torch.int32)
    roiaware_pool3d_cuda.points_in_boxes_cpu(boxes, points, inside)
    assert inside.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]


def test_ball_query_counts_within_each_frame(clouds, device):
    xyz, counts, queries, query_counts = clouds
    idx = torch.zeros(15, 4, dtype=torch.int32, device=device)
    pointnet2_stack_cuda.ball_query_wrapper(2, 15, 0.6, 4, queries, query_counts, xyz, counts, idx)
    gaps = distances(xyz, queries)
    for points, mine in zip(frames(counts), frames(query_counts), strict=True):
        for query in mine:
            near = [point - points[0] for point in points if gaps[query, point] < 0.6][:4]
            wanted = near + [near[0]] * (4 - len(near)) if near else [-1, 0, 0, 0]
            assert idx[query].tolist() == wanted
    assert idx[3].tolist() == [-1, 0, 0, 0]


def test_voxel_query_names_rows_of_the_voxels(device):
    generator = torch.Generator().manual_seed(3)
    cells = (torch.rand(2, 4, 5, 6, generator=generator) < 0.3).nonzero()
    cells = cells[torch.randperm(len(cells), generator=generator)]
    xyz = cells[:, [3, 2, 1]].float() + 0.5
    indices = torch.full((2, 4, 5, 6), -1, dtype=torch.int32)
    indices[tuple(cells.unbind(1))] = torch.arange(len(cells), dtype=torch.int32)
    queries = torch.tensor([[0, 1, 2, 3], [1, 3, 4, 5], [1, 0, 0, 0], [0, 0, 20, 0]], dtype=torch.int32)
    centers = queries[:, [3, 2, 1]].float() + 0.5
    idx = torch.zeros(4, 3, dtype=torch.int32, device=device)
    arguments = [item.to(device) for item in (centers, xyz, queries, indices)]
    pointnet2_stack_cuda.voxel_query_wrapper(4, 4, 5, 6, 3, 1.5, 1, 1, 1, *arguments, idx)
    for row, (query, center) in enumerate(zip(queries.tolist(), centers, strict=True)):
        around = [
            (z, y, x)
            for z in range(query[1] - 1, query[1] + 2)
            for y in range(query[2] - 1, query[2] + 2)
            for x in range(query[3] - 1, query[3] + 2)
            if 0 <= z < 4 and 0 <= y < 5 and 0 <= x < 6
        ]
        near = [int(indices[query[0], z, y, x]) for z, y, x in around]
        near = [voxel for voxel in near if voxel >= 0 and (xyz[voxel] - center).norm() <= 1.5][:3]
        assert idx[row].tolist() == (near + [near[0]] * (3 - len(near)) if near else [-1, 0, 0])


def test_group_points_and_its_gradient(clouds, device):
    xyz, counts, _, query_counts = clouds
    features = torch.rand(65, 5, generator=torch.Generator().manual_seed(4)).to(device)
    idx = torch.randint(25, (15, 4), generator=torch.Generator().manual_seed(5), dtype=torch.int32).to(device)
    out = torch.zeros(15, 5, 4, device=device)
    pointnet2_stack_cuda.group_points_wrapper(2, 15, 5, 4, features, counts, idx, query_counts, out)
    rows = idx.long() + torch.tensor([0] * 6 + [40] * 9, device=device)[:, None]
    torch.testing.assert_close(out, features[rows].transpose(1, 2))
    grad_out, grad = torch.rand_like(out), torch.zeros_like(features)
    pointnet2_stack_cuda.group_points_grad_wrapper(2, 15, 5, 65, 4, grad_out, idx, query_counts, counts, grad)
    wanted = torch.zeros_like(features)
    for group in range(15):
        for sample in range(4):
            wanted[rows[group, sample]] += grad_out[group, :, sample]
    torch.testing.assert_close(grad, wanted)


def farthest(xyz, count):
    points = xyz.cpu().double().numpy()
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int(np.linalg.norm(points[:, None] - points[chosen][None], axis=2).min(1).argmax()))
    return chosen


def test_farthest_points_of_batches_and_of_stacks(clouds, device):
    xyz, counts, *_ = clouds
    batch = xyz[:50].reshape(2, 25, 3).contiguous()
    out = torch.zeros(2, 8, dtype=torch.int32, device=device)
    temp = torch.full((2, 25), 1e10, device=device)
    pointnet2_stack_cuda.farthest_point_sampling_wrapper(2, 25, 8, batch, temp, out)
    assert out.tolist() == [farthest(cloud, 8) for cloud in batch]
    stacked = torch.zeros(12, dtype=torch.int32, device=device)
    numbers = torch.tensor([7, 5], dtype=torch.int32, device=device)
    pointnet2_stack_cuda.stack_farthest_point_sampling_wrapper(xyz, temp, counts, stacked, numbers)
    assert stacked.tolist() == farthest(xyz[:40], 7) + [40 + row for row in farthest(xyz[40:], 5)]


def test_three_nearest_and_interpolation(clouds, device):
    xyz, counts, queries, query_counts = clouds
    dist2, idx = torch.zeros(15, 3, device=device), torch.zeros(15, 3, dtype=torch.int32, device=device)
    pointnet2_stack_cuda.three_nn_wrapper(queries, query_counts, xyz, counts, dist2, idx)
    gaps = distances(xyz, queries)
    for points, mine in zip(frames(counts), frames(query_counts), strict=True):
        for query in mine:
            wanted = sorted(points, key=lambda point, row=query: gaps[row, point])[:3]
            assert idx[query].tolist() == wanted
            np.testing.assert_allclose(dist2[query].cpu().numpy(), gaps[query, wanted] ** 2, rtol=1e-5)
    features = torch.rand(65, 5, generator=torch.Generator().manual_seed(6)).to(device)
    weights = torch.rand(15, 3, generator=torch.Generator().manual_seed(7)).to(device)
    out = torch.zeros(15, 5, device=device)
    pointnet2_stack_cuda.three_interpolate_wrapper(features, idx, weights, out)
    torch.testing.assert_close(out, (features[idx.long()] * weights[..., None]).sum(1))
    grad_out, grad = torch.rand_like(out), torch.zeros_like(features)
    pointnet2_stack_cuda.three_interpolate_grad_wrapper(grad_out, idx, weights, grad)
    wanted = torch.zeros_like(features)
    for row in range(15):
        for k in range(3):
            wanted[idx[row, k].long()] += weights[row, k] * grad_out[row]
    torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("method", [0, 1], ids=["max", "mean"])
def test_roi_aware_pooling_and_its_gradient(device, method):
    generator = torch.Generator().manual_seed(8)
    rois = torch.tensor([[0, 0, 0, 4, 2, 2, 0.0], [9, 9, 9, 1, 1, 1, 0.0]], device=device)
    points = ((torch.rand(60, 3, generator=generator) - 0.5) * torch.tensor([5, 3, 3])).to(device)
    features = torch.rand(60, 3, generator=generator).to(device)
    shape, width = (2, 2, 1), 4
    argmax = torch.zeros(2, *shape, 3, dtype=torch.int32, device=device)
    table = torch.zeros(2, *shape, 1 + width, dtype=torch.int32, device=device)
    pooled, grad_in = torch.zeros(2, *shape, 3, device=device), torch.zeros_like(features)
    roiaware_pool3d_cuda.forward(rois, points, features, argmax, table, pooled, method)
    grad_out, wanted_grad = torch.rand_like(pooled), torch.zeros_like(features)
    for x in range(2):
        for y in range(2):
            inside = (points.abs() <= torch.tensor([2, 1, 1], device=device)).all(1)
            inside &= (points[:, 0] >= 0) == bool(x)
            inside &= (points[:, 1] >= 0) == bool(y)
            rows = inside.nonzero().squeeze(1)[:width]
            assert table[0, x, y, 0].tolist() == [len(rows), *rows.tolist()] + [0] * (width - len(rows))
            if method:
                wanted = features[rows].mean(0)
                wanted_grad[rows] += grad_out[0, x, y, 0] / len(rows)
            else:
                wanted, winner = features[rows].max(0)
                assert argmax[0, x, y, 0].tolist() == rows[winner].tolist()
                wanted_grad[rows[winner], torch.arange(3, device=device)] += grad_out[0, x, y, 0]
            torch.testing.assert_close(pooled[0, x, y, 0], wanted)
    assert (table[1] == 0).all()
    assert (pooled[1] == 0).all()
    roiaware_pool3d_cuda.backward(table, argmax, grad_out, grad_in, method)
    torch.testing.assert_close(grad_in, wanted_grad)


@pytest.mark.parametrize("method", [0, 1])
def test_roi_aware_pooling_of_no_point_and_its_gradient(device, method):
    rois = torch.tensor([[0, 0, 0, 4, 2, 2, 0.0]], device=device)
    nothing, pooled = torch.zeros(0, 3, device=device), torch.ones(1, 2, 2, 2, 3, device=device)
    argmax = torch.full(pooled.shape, 9, dtype=torch.int32, device=device)
    table = torch.full((1, 2, 2, 2, 4), 9, dtype=torch.int32, device=device)
    roiaware_pool3d_cuda.forward(rois, nothing, nothing, argmax, table, pooled, method)
    roiaware_pool3d_cuda.backward(table, argmax, torch.ones_like(pooled), nothing, method)
    assert not pooled.any()
    assert not table.any()


@pytest.mark.parametrize("neighbor_type", [0, 1], ids=["cube", "ball"])
def test_local_neighbours_and_their_three_nearest(clouds, device, neighbor_type):
    xyz, counts, queries, query_counts = clouds
    stack = torch.zeros(15 * 10, dtype=torch.int32, device=device)
    start_len = torch.zeros(15, 2, dtype=torch.int32, device=device)
    total = torch.zeros(1, dtype=torch.int32, device=device)
    pointnet2_stack_cuda.query_stacked_local_neighbor_idxs_wrapper_stack(
        xyz, counts, queries, query_counts, stack, start_len, total, 10, 0.5, 5, neighbor_type
    )
    offsets = (xyz[None] - queries[:, None]).cpu().numpy()
    reach = np.linalg.norm(offsets, axis=2) if neighbor_type else np.abs(offsets).max(2)
    lists = []
    for points, mine in zip(frames(counts), frames(query_counts), strict=True):
        for query in mine:
            near = [point for point in points if reach[query, point] <= 0.5][:5]
            begin, length = start_len[query].tolist()
            assert stack[begin : begin + length].tolist() == near
            lists.append(near)
    assert int(total) == sum(map(len, lists))
    assert {len(near) for near in lists} >= {0, 5}
    centers = queries[:, None] + 0.3 * torch.randn(15, 2, 3, generator=torch.Generator().manual_seed(9)).to(device)
    idxs = torch.full((15, 2, 3), -1, dtype=torch.int32, device=device)
    dist2 = torch.zeros(15, 2, 3, device=device)
    pointnet2_stack_cuda.query_three_nn_by_stacked_local_idxs_wrapper_stack(
        xyz, queries, centers, idxs, dist2, stack, start_len, 15, 2
    )
    for query, near in enumerate(lists):
        for center in range(2):
            gaps = {row: float((xyz[row] - centers[query, center]).square().sum()) for row in near}
            best = sorted(near, key=gaps.get)[:3]
            best += [best[0] if best else -1] * (3 - len(best))
            assert idxs[query, center].tolist() == best
            wanted = [gaps.get(row, np.inf) for row in best]
            np.testing.assert_allclose(dist2[query, center].cpu().numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize("pooling_type", [0, 1], ids=["mean", "first"])
def test_vector_pooling_and_its_gradient(clouds, device, pooling_type):
    xyz, counts, queries, query_counts = clouds
    features = torch.rand(65, 4, generator=torch.Generator().manual_seed(10)).to(device)
    new_features, local_xyz = torch.zeros(15, 8 * 2, device=device), torch.zeros(15, 8 * 3, device=device)
    number = torch.zeros(15, 8, dtype=torch.int32, device=device)
    grouped = torch.zeros(15 * 40, 3, dtype=torch.int32, device=device)
    total = pointnet2_stack_cuda.vector_pool_wrapper(
        xyz, counts, features, queries, query_counts, new_features, local_xyz, number, grouped,
        2, 2, 2, 0.5, True, len(grouped), -1, 0, pooling_type,
    )  # fmt: skip
    sums, offsets = torch.zeros(15, 8, 2, device=device), torch.zeros(15, 8, 3, device=device)
    found = torch.zeros_like(number)
    triples = set()
    for points, mine in zip(frames(counts), frames(query_counts), strict=True):
        for query in mine:
            for point in points:
                offset = xyz[point] - queries[query]
                cell = int(((offset >= 0).long() * torch.tensor([4, 2, 1], device=device)).sum())
                if offset.abs().max() > 0.5 or (pooling_type == 1 and found[query, cell]):
                    continue
                found[query, cell] += 1
                parts = features[point].view(2, 2)
                sums[query, cell] += parts.sum(0) if pooling_type == 0 else parts[1]
                offsets[query, cell] += offset
                triples.add((point, query, cell))
    assert total == len(triples) > 20
    assert {tuple(row) for row in grouped[:total].tolist()} == triples
    assert number.tolist() == found.tolist()
    torch.testing.assert_close(new_features.view(15, 8, 2), sums)
    torch.testing.assert_close(local_xyz.view(15, 8, 3), offsets)
    grad_new, grad = torch.rand_like(new_features), torch.zeros_like(features)
    pointnet2_stack_cuda.vector_pool_grad_wrapper(grad_new, number, grouped[:total], grad)
    wanted = torch.zeros_like(features)
    for point, query, cell in triples:
        wanted[point] += (grad_new.view(15, 8, 2)[query, cell] / found[query, cell]).repeat(2)
    torch.testing.assert_close(grad, wanted)


SIGNATURES = {
    (iou3d_nms_cuda, "boxes_overlap_bev_gpu"): 3,
    (iou3d_nms_cuda, "boxes_aligned_overlap_bev_gpu"): 3,
    (iou3d_nms_cuda, "paired_boxes_overlap_bev_gpu"): 3,
    (iou3d_nms_cuda, "boxes_iou_bev_gpu"): 3,
    (iou3d_nms_cuda, "boxes_iou_bev_cpu"): 3,
    (iou3d_nms_cuda, "nms_gpu"): 3,
    (iou3d_nms_cuda, "nms_normal_gpu"): 3,
    (roiaware_pool3d_cuda, "points_in_boxes_gpu"): 3,
    (roiaware_pool3d_cuda, "points_in_boxes_cpu"): 3,
    (roiaware_pool3d_cuda, "forward"): 7,
    (roiaware_pool3d_cuda, "backward"): 5,
    (pointnet2_stack_cuda, "ball_query_wrapper"): 9,
    (pointnet2_stack_cuda, "voxel_query_wrapper"): 14,
    (pointnet2_stack_cuda, "group_points_wrapper"): 9,
    (pointnet2_stack_cuda, "group_points_grad_wrapper"): 10,
    (pointnet2_stack_cuda, "farthest_point_sampling_wrapper"): 6,
    (pointnet2_stack_cuda, "stack_farthest_point_sampling_wrapper"): 5,
    (pointnet2_stack_cuda, "three_nn_wrapper"): 6,
    (pointnet2_stack_cuda, "three_interpolate_wrapper"): 4,
    (pointnet2_stack_cuda, "three_interpolate_grad_wrapper"): 4,
    (pointnet2_stack_cuda, "query_stacked_local_neighbor_idxs_wrapper_stack"): 11,
    (pointnet2_stack_cuda, "query_three_nn_by_stacked_local_idxs_wrapper_stack"): 9,
    (pointnet2_stack_cuda, "vector_pool_wrapper"): 18,
    (pointnet2_stack_cuda, "vector_pool_grad_wrapper"): 4,
}


@pytest.mark.parametrize(
    ("module", "name"), SIGNATURES, ids=lambda item: getattr(item, "__name__", item).split(".")[-1]
)
def test_every_function_takes_what_the_original_takes(module, name):
    assert len(inspect.signature(getattr(module, name)).parameters) == SIGNATURES[module, name]
