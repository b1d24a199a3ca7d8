// Points of each cloud, each the farthest from all that were chosen before it, on CUDA tensors.
#include "farthest_point_sampling.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "checks/farthest_point_sampling.h"
#include "device.h"
#include "frame_starts.h"

namespace cakdp {
namespace {

// Where the samples of each cloud begin and the last ones end, as a tensor on the device of counts.
at::Tensor sample_starts(const at::Tensor& counts, at::IntArrayRef num_samples) {
    const bool alike = std::all_of(num_samples.begin(), num_samples.end(),
                                   [&](int64_t number) { return number == num_samples.front(); });
    if (alike) return at::arange(counts.size(0) + 1, counts.options()).mul_(num_samples.front());
    std::vector<int64_t> starts{0};
    for (const int64_t number : num_samples) starts.push_back(starts.back() + number);
    return at::tensor(starts, at::kLong).to(counts.device(), /*non_blocking=*/true);
}

at::Tensor farthest_point_sampling(const at::Tensor& xyz, const at::Tensor& counts, at::IntArrayRef num_samples) {
    check_farthest_point_sampling(xyz, counts, num_samples);
    TORCH_CHECK_VALUE(counts.size(0) <= kMaxClouds, "farthest_point_sampling takes at most ", kMaxClouds,
                      " clouds at once, got ", counts.size(0));
    const CurrentStream stream(xyz);
    int64_t total = 0;
    for (const int64_t number : num_samples) total += number;
    if (total == 0 || xyz.size(0) == 0) return at::full({total}, -1, counts.options());
    const at::Tensor positions = xyz.contiguous(), finite = positions.nan_to_num(0, 0, 0);
    const at::Tensor low = finite.amin(0), high = finite.amax(0);
    const at::Tensor starts = frame_starts(counts, xyz.size(0)), first_sample = sample_starts(counts, num_samples);
    at::Tensor keys = at::empty({xyz.size(0)}, counts.options()), chosen = at::empty({total}, counts.options());
    AT_DISPATCH_FLOATING_TYPES(xyz.scalar_type(), "farthest_point_sampling", [&] {
        curve_keys_cuda(positions.const_data_ptr<scalar_t>(), low.const_data_ptr<scalar_t>(),
                        high.const_data_ptr<scalar_t>(), starts.const_data_ptr<int64_t>(), xyz.size(0), counts.size(0),
                        keys.mutable_data_ptr<int64_t>(), stream);
        const auto [sorted_keys, rows] = keys.sort();
        const at::Tensor sorted = positions.index_select(0, rows).t().contiguous();
        at::Tensor nearest = at::empty({xyz.size(0)}, xyz.options());
        farthest_point_sampling_cuda(sorted.const_data_ptr<scalar_t>(), rows.const_data_ptr<int64_t>(),
                                     sorted_keys.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>(),
                                     first_sample.const_data_ptr<int64_t>(), xyz.size(0), counts.size(0),
                                     nearest.mutable_data_ptr<scalar_t>(), chosen.mutable_data_ptr<int64_t>(), stream);
    });
    return chosen;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) { m.impl("farthest_point_sampling", farthest_point_sampling); }

}  // namespace cakdp
