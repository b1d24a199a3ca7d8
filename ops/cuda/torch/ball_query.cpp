// The first points, in the order of the rows, nearer than some radii to each query, on CUDA tensors.
#include "ball_query.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks/ball_query.h"
#include "device.h"
#include "frame_starts.h"

namespace cakdp {
namespace {

using Answers = std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>>;  // index and empty, a radius each

Answers ball_query(const at::Tensor& xyz, const at::Tensor& counts, const at::Tensor& new_xyz,
                   const at::Tensor& new_counts, at::ArrayRef<double> radii, at::IntArrayRef num_samples) {
    check_ball_query(xyz, counts, new_xyz, new_counts, radii, num_samples);
    const CurrentStream stream(xyz);
    const at::Tensor points = xyz.t().contiguous(), queries = new_xyz.contiguous();
    const at::Tensor starts = frame_starts(counts, xyz.size(0));
    const at::Tensor query_starts = frame_starts(new_counts, new_xyz.size(0));
    const Stacks stacks{starts.const_data_ptr<int64_t>(), query_starts.const_data_ptr<int64_t>(), counts.size(0),
                        xyz.size(0), new_xyz.size(0)};
    std::vector<at::Tensor> index, empty;
    for (const int64_t number : num_samples) {
        index.push_back(at::empty({new_xyz.size(0), number}, counts.options()));
        empty.push_back(at::empty({new_xyz.size(0)}, counts.options().dtype(at::kBool)));
    }
    AT_DISPATCH_FLOATING_TYPES(xyz.scalar_type(), "ball_query", [&] {
        for (size_t first = 0; first < radii.size(); first += kBallsAtOnce) {
            Balls<scalar_t> balls{};
            for (size_t i = first; i < radii.size() && balls.count < kBallsAtOnce; ++i, ++balls.count) {
                const auto radius_squared = static_cast<scalar_t>(radii[i] * radii[i]);
                balls.radius_squared[balls.count] = radius_squared;
                balls.largest_squared = std::max(balls.largest_squared, radius_squared);
                balls.num_samples[balls.count] = num_samples[i];
                balls.index[balls.count] = index[i].mutable_data_ptr<int64_t>();
                balls.empty[balls.count] = empty[i].mutable_data_ptr<bool>();
            }
            ball_query_cuda(points.const_data_ptr<scalar_t>(), queries.const_data_ptr<scalar_t>(), stacks, balls,
                            stream);
        }
    });
    return {index, empty};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) { m.impl("ball_query", ball_query); }

}  // namespace cakdp
