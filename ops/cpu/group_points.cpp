// The features of the points in each group, and their gradient.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "checks/group_points.h"
#include "rows.h"

namespace cakdp {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 15;

at::Tensor group_points(const at::Tensor& features, const at::Tensor& index, const std::optional<at::Tensor>& empty) {
    check_group_points(features, index, empty);
    const int64_t num_rows = features.size(0), groups = index.size(0), samples = index.size(1);
    const int64_t channels = features.size(1), group = channels * samples;
    const at::Tensor values = features.contiguous(), members = index.contiguous();
    const at::Tensor none = empty ? empty->contiguous() : at::Tensor();
    at::Tensor grouped = at::empty({groups, channels, samples}, features.options());
    const int64_t* row = members.const_data_ptr<int64_t>();
    const bool* skip = empty ? none.const_data_ptr<bool>() : nullptr;
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "group_points", [&] {
        const scalar_t* from = values.const_data_ptr<scalar_t>();
        scalar_t* to = grouped.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, groups, kNumbersPerTask / std::max<int64_t>(1, group) + 1, [&](int64_t begin, int64_t end) {
            for (int64_t m = begin; m < end; ++m) {
                if (skip && skip[m]) {
                    std::fill_n(to + m * group, group, scalar_t(0));
                    continue;
                }
                for (int64_t s = 0; s < samples; ++s) {
                    const scalar_t* point = from + checked_row(row[m * samples + s], num_rows) * channels;
                    scalar_t* slot = to + m * group + s;
                    for (int64_t c = 0; c < channels; ++c) slot[c * samples] = point[c];
                }
            }
        });
    });
    return grouped;
}

// Threads share out the channels, so that each sum has one owner and one order.
at::Tensor group_points_backward(const at::Tensor& grad, const at::Tensor& index,
                                 const std::optional<at::Tensor>& empty, int64_t num_rows) {
    check_group_points_backward(grad, index, empty, num_rows);
    const int64_t groups = index.size(0), samples = index.size(1), channels = grad.size(1);
    const at::Tensor values = grad.contiguous(), members = index.contiguous();
    const at::Tensor none = empty ? empty->contiguous() : at::Tensor();
    at::Tensor total = at::zeros({num_rows, channels}, grad.options());
    const int64_t* row = members.const_data_ptr<int64_t>();
    const bool* skip = empty ? none.const_data_ptr<bool>() : nullptr;
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "group_points_backward", [&] {
        const scalar_t* from = values.const_data_ptr<scalar_t>();
        scalar_t* to = total.mutable_data_ptr<scalar_t>();
        const int64_t channels_per_task = kNumbersPerTask / std::max<int64_t>(1, groups * samples) + 1;
        at::parallel_for(0, channels, channels_per_task, [&](int64_t begin, int64_t end) {
            for (int64_t m = 0; m < groups; ++m) {
                if (skip && skip[m]) continue;
                for (int64_t s = 0; s < samples; ++s) {
                    scalar_t* point = to + checked_row(row[m * samples + s], num_rows) * channels;
                    const scalar_t* slot = from + m * channels * samples + s;
                    for (int64_t c = begin; c < end; ++c) point[c] += slot[c * samples];
                }
            }
        });
    });
    return total;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) {
    m.impl("group_points", group_points);
    m.impl("group_points_backward", group_points_backward);
}

}  // namespace cakdp
