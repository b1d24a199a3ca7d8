// Mean and maximum of the features of each cell's points, and their gradients, on CUDA tensors.
#include "pool_cells.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "checks/cells.h"
#include "device.h"

namespace cakdp {
namespace {

// Holds on to contiguous lists for as long as a call lasts.
class Lists {
  public:
    Lists(const at::Tensor& first, const at::Tensor& count, const at::Tensor& members)
        : first_(first.contiguous()), count_(count.contiguous()), members_(members.contiguous()) {}

    CellLists with(int64_t num_rows, int64_t channels) const {
        return {first_.const_data_ptr<int64_t>(),
                count_.const_data_ptr<int64_t>(),
                members_.const_data_ptr<int64_t>(),
                first_.size(0),
                members_.size(0),
                num_rows,
                channels};
    }

  private:
    at::Tensor first_, count_, members_;
};

at::Tensor pool_cells_mean(const at::Tensor& features, const at::Tensor& first, const at::Tensor& count,
                           const at::Tensor& members) {
    check_cells(features, first, count, members);
    const CurrentStream stream(features);
    const at::Tensor rows = features.contiguous();
    const Lists lists(first, count, members);
    at::Tensor pooled = at::empty({first.size(0), rows.size(1)}, rows.options());
    AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "pool_cells_mean", [&] {
        pool_cells_mean_cuda(rows.const_data_ptr<scalar_t>(), lists.with(rows.size(0), rows.size(1)),
                             pooled.mutable_data_ptr<scalar_t>(), stream);
    });
    return pooled;
}

at::Tensor pool_cells_mean_backward(const at::Tensor& grad, const at::Tensor& first, const at::Tensor& count,
                                    const at::Tensor& members, int64_t num_rows) {
    check_cells_backward(grad, first, count, members, num_rows);
    const CurrentStream stream(grad);
    const at::Tensor rows = grad.contiguous();
    const Lists lists(first, count, members);
    at::Tensor grad_features = at::zeros({num_rows, rows.size(1)}, rows.options());
    AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "pool_cells_mean_backward", [&] {
        pool_cells_mean_backward_cuda(rows.const_data_ptr<scalar_t>(), lists.with(num_rows, rows.size(1)),
                                      grad_features.mutable_data_ptr<scalar_t>(), stream);
    });
    return grad_features;
}

std::tuple<at::Tensor, at::Tensor> pool_cells_max(const at::Tensor& features, const at::Tensor& first,
                                                  const at::Tensor& count, const at::Tensor& members) {
    check_cells(features, first, count, members);
    const CurrentStream stream(features);
    const at::Tensor rows = features.contiguous();
    const Lists lists(first, count, members);
    at::Tensor pooled = at::empty({first.size(0), rows.size(1)}, rows.options());
    at::Tensor winner = at::empty({first.size(0), rows.size(1)}, members.options());
    AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "pool_cells_max", [&] {
        pool_cells_max_cuda(rows.const_data_ptr<scalar_t>(), lists.with(rows.size(0), rows.size(1)),
                            pooled.mutable_data_ptr<scalar_t>(), winner.mutable_data_ptr<int64_t>(), stream);
    });
    return {pooled, winner};
}

at::Tensor pool_cells_max_backward(const at::Tensor& grad, const at::Tensor& winner, int64_t num_rows) {
    check_winners(grad, winner, num_rows);
    const CurrentStream stream(grad);
    const at::Tensor rows = grad.contiguous(), winners = winner.contiguous();
    at::Tensor grad_features = at::zeros({num_rows, rows.size(1)}, rows.options());
    AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "pool_cells_max_backward", [&] {
        pool_cells_max_backward_cuda(rows.const_data_ptr<scalar_t>(), winners.const_data_ptr<int64_t>(), rows.size(0),
                                     num_rows, rows.size(1), grad_features.mutable_data_ptr<scalar_t>(), stream);
    });
    return grad_features;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) {
    m.impl("pool_cells_mean", pool_cells_mean);
    m.impl("pool_cells_mean_backward", pool_cells_mean_backward);
    m.impl("pool_cells_max", pool_cells_max);
    m.impl("pool_cells_max_backward", pool_cells_max_backward);
}

}  // namespace cakdp
