// The weighted features of three points for each row, and their gradient, on CUDA tensors.
#include "three_interpolate.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "checks/three_interpolate.h"
#include "device.h"

namespace cakdp {
namespace {

at::Tensor three_interpolate(const at::Tensor& features, const at::Tensor& index, const at::Tensor& weights) {
    check_three_interpolate(features, index, weights);
    const CurrentStream stream(features);
    const at::Tensor values = features.contiguous(), neighbours = index.contiguous(), shares = weights.contiguous();
    at::Tensor mixed = at::empty({index.size(0), features.size(1)}, features.options());
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "three_interpolate", [&] {
        three_interpolate_cuda(values.const_data_ptr<scalar_t>(), neighbours.const_data_ptr<int64_t>(),
                               shares.const_data_ptr<scalar_t>(), features.size(0), features.size(1), index.size(0),
                               mixed.mutable_data_ptr<scalar_t>(), stream);
    });
    return mixed;
}

at::Tensor three_interpolate_backward(const at::Tensor& grad, const at::Tensor& index, const at::Tensor& weights,
                                      int64_t num_rows) {
    check_three_interpolate_backward(grad, index, weights, num_rows);
    at::globalContext().alertNotDeterministic("three_interpolate_backward");
    const CurrentStream stream(grad);
    const at::Tensor values = grad.contiguous(), neighbours = index.contiguous(), shares = weights.contiguous();
    at::Tensor total = at::zeros({num_rows, grad.size(1)}, grad.options());
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "three_interpolate_backward", [&] {
        three_interpolate_backward_cuda(values.const_data_ptr<scalar_t>(), neighbours.const_data_ptr<int64_t>(),
                                        shares.const_data_ptr<scalar_t>(), num_rows, grad.size(1), index.size(0),
                                        total.mutable_data_ptr<scalar_t>(), stream);
    });
    return total;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) {
    m.impl("three_interpolate", three_interpolate);
    m.impl("three_interpolate_backward", three_interpolate_backward);
}

}  // namespace cakdp
