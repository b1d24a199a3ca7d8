// The features of the points in each group, and their gradient, on CUDA tensors.
#include "group_points.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "checks/group_points.h"
#include "device.h"

namespace cakdp {
namespace {

Groups make_groups(const at::Tensor& index, const at::Tensor& empty, int64_t num_rows, int64_t channels) {
    return {index.const_data_ptr<int64_t>(),
            empty.defined() ? empty.const_data_ptr<bool>() : nullptr,
            num_rows,
            channels,
            index.size(0),
            index.size(1)};
}

at::Tensor group_points(const at::Tensor& features, const at::Tensor& index, const std::optional<at::Tensor>& empty) {
    check_group_points(features, index, empty);
    const CurrentStream stream(features);
    const at::Tensor values = features.contiguous(), members = index.contiguous();
    const at::Tensor none = empty ? empty->contiguous() : at::Tensor();
    const Groups groups = make_groups(members, none, features.size(0), features.size(1));
    at::Tensor grouped = at::empty({groups.groups, groups.channels, groups.samples}, features.options());
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "group_points", [&] {
        group_points_cuda(values.const_data_ptr<scalar_t>(), groups, grouped.mutable_data_ptr<scalar_t>(), stream);
    });
    return grouped;
}

at::Tensor group_points_backward(const at::Tensor& grad, const at::Tensor& index,
                                 const std::optional<at::Tensor>& empty, int64_t num_rows) {
    check_group_points_backward(grad, index, empty, num_rows);
    at::globalContext().alertNotDeterministic("group_points_backward");
    const CurrentStream stream(grad);
    const at::Tensor values = grad.contiguous(), members = index.contiguous();
    const at::Tensor none = empty ? empty->contiguous() : at::Tensor();
    const Groups groups = make_groups(members, none, num_rows, grad.size(1));
    at::Tensor total = at::zeros({num_rows, groups.channels}, grad.options());
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "group_points_backward", [&] {
        group_points_backward_cuda(values.const_data_ptr<scalar_t>(), groups, total.mutable_data_ptr<scalar_t>(),
                                   stream);
    });
    return total;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) {
    m.impl("group_points", group_points);
    m.impl("group_points_backward", group_points_backward);
}

}  // namespace cakdp
