// The first box of its frame that holds each point, on CUDA tensors.
#include "points_in_boxes.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "device.h"
#include "checks/points_in_boxes.h"

namespace cakdp {
namespace {

at::Tensor points_in_boxes(const at::Tensor& points, const at::Tensor& boxes) {
    check_points_and_boxes(points, boxes);
    const CurrentStream stream(points);
    const at::Tensor positions = points.contiguous(), rows = boxes.contiguous();
    at::Tensor holder = at::empty({points.size(0), points.size(1)}, points.options().dtype(at::kLong));
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "points_in_boxes", [&] {
        points_in_boxes_cuda(positions.const_data_ptr<scalar_t>(), rows.const_data_ptr<scalar_t>(), points.size(0),
                             points.size(1), boxes.size(1), holder.mutable_data_ptr<int64_t>(), stream);
    });
    return holder;
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) { m.impl("points_in_boxes", points_in_boxes); }

}  // namespace cakdp
