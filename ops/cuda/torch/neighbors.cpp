// The points of its own frame that each region holds, on CUDA tensors. How long the lists are together is read on the
// host, once a call. Counts that do not add up are not an error here: no row beyond the last one is read.
#include "neighbors.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "checks/neighbors.h"
#include "device.h"
#include "frame_starts.h"

namespace cakdp {
namespace {

using ListsOfRegions = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

template <typename T>
ListsOfRegions find_neighbors(const at::Tensor& points, const Regions<T>& regions, const Stacks& stacks,
                              int64_t max_points, const at::TensorOptions& indices) {
    const CurrentStream stream(points);
    const int64_t chunks = neighbor_chunks(stacks.num_queries, stacks.num_points);
    const T* xyz = points.const_data_ptr<T>();
    at::Tensor counts = at::empty({stacks.num_queries, chunks}, indices);
    count_neighbors_cuda(xyz, regions, stacks, chunks, counts.mutable_data_ptr<int64_t>(), stream);
    const at::Tensor until = chunks > 1 ? counts.cumsum(1) : counts;
    const at::Tensor before = until - counts, held = until.select(1, chunks - 1);
    const at::Tensor length = max_points < 0 ? held.contiguous() : held.clamp_max(max_points).contiguous();
    const at::Tensor ends = length.cumsum(0), start = ends - length;
    const int64_t total = stacks.num_queries > 0 ? ends[stacks.num_queries - 1].item<int64_t>() : 0;
    at::Tensor index = at::empty({total}, indices);
    if (total > 0)
        list_neighbors_cuda(xyz, regions, stacks, chunks, before.const_data_ptr<int64_t>(),
                            start.const_data_ptr<int64_t>(), length.const_data_ptr<int64_t>(),
                            index.mutable_data_ptr<int64_t>(), stream);
    return {start, length, index};
}

ListsOfRegions find(const at::Tensor& points, const at::Tensor& point_counts, const at::Tensor& numbers,
                    const at::Tensor& region_counts, double radius, bool is_ball, int64_t max_points) {
    const at::Tensor positions = points.contiguous(), rows = numbers.contiguous();
    const at::Tensor point_starts = frame_starts(point_counts, points.size(0));
    const at::Tensor region_starts = frame_starts(region_counts, numbers.size(0));
    const Stacks stacks{point_starts.const_data_ptr<int64_t>(), region_starts.const_data_ptr<int64_t>(),
                        point_counts.size(0), points.size(0), numbers.size(0)};
    return AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "neighbors", [&] {
        const Regions<scalar_t> regions{rows.const_data_ptr<scalar_t>(), static_cast<scalar_t>(radius * radius),
                                        is_ball};
        return find_neighbors(positions, regions, stacks, max_points, point_counts.options());
    });
}

ListsOfRegions neighbors_in_boxes(const at::Tensor& points, const at::Tensor& point_counts, const at::Tensor& boxes,
                                  const at::Tensor& box_counts, int64_t max_points) {
    check_neighbors_in_boxes(points, point_counts, boxes, box_counts);
    return find(points, point_counts, boxes, box_counts, 0, false, max_points);
}

ListsOfRegions neighbors_in_balls(const at::Tensor& points, const at::Tensor& point_counts, const at::Tensor& centers,
                                  const at::Tensor& center_counts, double radius, int64_t max_points) {
    check_neighbors_in_balls(points, point_counts, centers, center_counts);
    return find(points, point_counts, centers, center_counts, radius, true, max_points);
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) {
    m.impl("neighbors_in_boxes", neighbors_in_boxes);
    m.impl("neighbors_in_balls", neighbors_in_balls);
}

}  // namespace cakdp
