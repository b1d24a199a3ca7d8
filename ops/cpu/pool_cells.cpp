// Mean and maximum of the features of each cell's points, and their gradients. The gradients are shared out by channel,
// so every sum is taken in one order whatever the number of threads.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "checks/cells.h"
#include "exceeds.h"
#include "neighbor_lists.h"

namespace cakdp {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 15;

int64_t per_task(int64_t items, int64_t numbers) { return items * kNumbersPerTask / std::max<int64_t>(1, numbers) + 1; }

at::Tensor pool_cells_mean(const at::Tensor& features, const at::Tensor& first, const at::Tensor& count,
                           const at::Tensor& members) {
    check_cells(features, first, count, members);
    const NeighborLists cells(first, count, members, features.size(0));
    const at::Tensor rows = features.contiguous();
    const int64_t channels = features.size(1);
    at::Tensor pooled = at::zeros({cells.size(), channels}, features.options());
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "pool_cells_mean", [&] {
        const scalar_t* from = rows.const_data_ptr<scalar_t>();
        scalar_t* out = pooled.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, cells.size(), per_task(cells.size(), pooled.numel()), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                scalar_t* sum = out + i * channels;
                const auto number = static_cast<scalar_t>(cells.length(i));
                for (const int64_t* row = cells.begin(i); row < cells.end(i); ++row)
                    for (int64_t c = 0; c < channels; ++c) sum[c] += from[*row * channels + c];
                for (int64_t c = 0; c < channels && number > 1; ++c) sum[c] /= number;
            }
        });
    });
    return pooled;
}

at::Tensor pool_cells_mean_backward(const at::Tensor& grad, const at::Tensor& first, const at::Tensor& count,
                                    const at::Tensor& members, int64_t num_rows) {
    check_cells_backward(grad, first, count, members, num_rows);
    const NeighborLists cells(first, count, members, num_rows);
    const at::Tensor rows = grad.contiguous();
    const int64_t channels = grad.size(1);
    at::Tensor grad_features = at::zeros({num_rows, channels}, grad.options());
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "pool_cells_mean_backward", [&] {
        const scalar_t* from = rows.const_data_ptr<scalar_t>();
        scalar_t* out = grad_features.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, channels, per_task(channels, members.numel() * channels), [&](int64_t begin, int64_t end) {
            for (int64_t i = 0; i < cells.size(); ++i) {
                const auto number = static_cast<scalar_t>(cells.length(i));
                for (const int64_t* row = cells.begin(i); row < cells.end(i); ++row)
                    for (int64_t c = begin; c < end; ++c) out[*row * channels + c] += from[i * channels + c] / number;
            }
        });
    });
    return grad_features;
}

template <typename T>
void largest_of_cell(const T* features, const int64_t* begin, const int64_t* end, int64_t channels, T* best,
                     int64_t* winner) {
    if (begin == end) return;
    std::copy_n(features + *begin * channels, channels, best);
    std::fill_n(winner, channels, *begin);
    for (const int64_t* row = begin + 1; row < end; ++row)
        for (int64_t c = 0; c < channels; ++c) {
            const T value = features[*row * channels + c];
            if (!exceeds(value, best[c])) continue;
            best[c] = value;
            winner[c] = *row;
        }
}

std::tuple<at::Tensor, at::Tensor> pool_cells_max(const at::Tensor& features, const at::Tensor& first,
                                                  const at::Tensor& count, const at::Tensor& members) {
    check_cells(features, first, count, members);
    const NeighborLists cells(first, count, members, features.size(0));
    const at::Tensor rows = features.contiguous();
    const int64_t channels = features.size(1);
    at::Tensor pooled = at::zeros({cells.size(), channels}, features.options());
    at::Tensor winner = at::full({cells.size(), channels}, -1, members.options());
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "pool_cells_max", [&] {
        const scalar_t* from = rows.const_data_ptr<scalar_t>();
        scalar_t* out = pooled.mutable_data_ptr<scalar_t>();
        int64_t* winners = winner.mutable_data_ptr<int64_t>();
        at::parallel_for(0, cells.size(), per_task(cells.size(), pooled.numel()), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                largest_of_cell(from, cells.begin(i), cells.end(i), channels, out + i * channels,
                                winners + i * channels);
        });
    });
    return {pooled, winner};
}

at::Tensor pool_cells_max_backward(const at::Tensor& grad, const at::Tensor& winner, int64_t num_rows) {
    check_winners(grad, winner, num_rows);
    const at::Tensor rows = grad.contiguous(), wins = winner.contiguous();
    const int64_t count = grad.size(0), channels = grad.size(1);
    const int64_t* winners = wins.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < wins.numel(); ++i)
        TORCH_CHECK_VALUE(winners[i] < num_rows, "winner holds row ", winners[i], " of ", num_rows);
    at::Tensor grad_features = at::zeros({num_rows, channels}, grad.options());
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "pool_cells_max_backward", [&] {
        const scalar_t* from = rows.const_data_ptr<scalar_t>();
        scalar_t* out = grad_features.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, channels, per_task(channels, grad.numel()), [&](int64_t begin, int64_t end) {
            for (int64_t i = 0; i < count; ++i)
                for (int64_t c = begin; c < end; ++c) {
                    const int64_t row = winners[i * channels + c];
                    if (row >= 0) out[row * channels + c] += from[i * channels + c];
                }
        });
    });
    return grad_features;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CPU, m) {
    m.impl("pool_cells_mean", pool_cells_mean);
    m.impl("pool_cells_mean_backward", pool_cells_mean_backward);
    m.impl("pool_cells_max", pool_cells_max);
    m.impl("pool_cells_max_backward", pool_cells_max_backward);
}

}  // namespace cakdp
