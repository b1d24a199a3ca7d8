// The weighted features of three points for each row, and their gradient.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "checks/three_interpolate.h"
#include "rows.h"

namespace cakdp {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 15;

at::Tensor three_interpolate(const at::Tensor& features, const at::Tensor& index, const at::Tensor& weights) {
    check_three_interpolate(features, index, weights);
    const int64_t num_rows = features.size(0), channels = features.size(1), count = index.size(0);
    const at::Tensor values = features.contiguous(), neighbours = index.contiguous(), shares = weights.contiguous();
    at::Tensor mixed = at::empty({count, channels}, features.options());
    const int64_t* row = neighbours.const_data_ptr<int64_t>();
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "three_interpolate", [&] {
        const scalar_t *from = values.const_data_ptr<scalar_t>(), *weight = shares.const_data_ptr<scalar_t>();
        scalar_t* to = mixed.mutable_data_ptr<scalar_t>();
        const int64_t per_task = kNumbersPerTask / std::max<int64_t>(1, channels) + 1;
        at::parallel_for(0, count, per_task, [&](int64_t begin, int64_t end) {
            for (int64_t i = 3 * begin; i < 3 * end; i += 3) {
                const scalar_t* first = from + checked_row(row[i], num_rows) * channels;
                const scalar_t* second = from + checked_row(row[i + 1], num_rows) * channels;
                const scalar_t* third = from + checked_row(row[i + 2], num_rows) * channels;
                scalar_t* sum = to + i / 3 * channels;
                for (int64_t c = 0; c < channels; ++c)
                    sum[c] = weight[i] * first[c] + weight[i + 1] * second[c] + weight[i + 2] * third[c];
            }
        });
    });
    return mixed;
}

// Threads share out the channels, so that each sum has one owner and one order.
at::Tensor three_interpolate_backward(const at::Tensor& grad, const at::Tensor& index, const at::Tensor& weights,
                                      int64_t num_rows) {
    check_three_interpolate_backward(grad, index, weights, num_rows);
    const int64_t channels = grad.size(1), count = index.size(0);
    const at::Tensor values = grad.contiguous(), neighbours = index.contiguous(), shares = weights.contiguous();
    at::Tensor total = at::zeros({num_rows, channels}, grad.options());
    const int64_t* row = neighbours.const_data_ptr<int64_t>();
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "three_interpolate_backward", [&] {
        const scalar_t *from = values.const_data_ptr<scalar_t>(), *weight = shares.const_data_ptr<scalar_t>();
        scalar_t* to = total.mutable_data_ptr<scalar_t>();
        const int64_t channels_per_task = kNumbersPerTask / std::max<int64_t>(1, 3 * count) + 1;
        at::parallel_for(0, channels, channels_per_task, [&](int64_t begin, int64_t end) {
            for (int64_t i = 0; i < 3 * count; ++i) {
                scalar_t* sum = to + checked_row(row[i], num_rows) * channels;
                for (int64_t c = begin; c < end; ++c) sum[c] += weight[i] * from[i / 3 * channels + c];
            }
        });
    });
    return total;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) {
    m.impl("three_interpolate", three_interpolate);
    m.impl("three_interpolate_backward", three_interpolate_backward);
}

}  // namespace cakdp
