// The three nearest of a list of points to each of the centres that go with the list.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "checks/cells.h"
#include "neighbor_lists.h"
#include "three_nearest.h"

namespace cakdp {
namespace {

constexpr int64_t kListsPerTask = 64;

std::tuple<at::Tensor, at::Tensor> three_nn_local(const at::Tensor& points, const at::Tensor& centers,
                                                  const at::Tensor& start, const at::Tensor& length,
                                                  const at::Tensor& index) {
    check_three_nn_local(points, centers, start, length, index);
    const NeighborLists lists(start, length, index, points.size(0));
    const at::Tensor positions = points.contiguous(), middles = centers.contiguous();
    const int64_t per_list = centers.size(1);
    at::Tensor distance = at::empty({lists.size(), per_list, 3}, points.options());
    at::Tensor nearest = at::empty({lists.size(), per_list, 3}, index.options());
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "three_nn_local", [&] {
        const scalar_t *xyz = positions.const_data_ptr<scalar_t>(), *middle = middles.const_data_ptr<scalar_t>();
        scalar_t* distances = distance.mutable_data_ptr<scalar_t>();
        int64_t* rows = nearest.mutable_data_ptr<int64_t>();
        at::parallel_for(0, lists.size(), kListsPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin * per_list; i < end * per_list; ++i) {
                ThreeNearest<scalar_t> found;
                for (const int64_t* row = lists.begin(i / per_list); row < lists.end(i / per_list); ++row)
                    found.show(*row, squared_distance(xyz + 3 * *row, middle + 3 * i));
                std::copy_n(found.distance_squared, 3, distances + 3 * i);
                std::copy_n(found.index, 3, rows + 3 * i);
            }
        });
    });
    return {distance, nearest};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) { m.impl("three_nn_local", three_nn_local); }

}  // namespace cakdp
