// The three nearest of a list of points to each of the centres that go with the list, on CUDA tensors.
#include "three_nn_local.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "checks/cells.h"
#include "device.h"

namespace cakdp {
namespace {

std::tuple<at::Tensor, at::Tensor> three_nn_local(const at::Tensor& points, const at::Tensor& centers,
                                                  const at::Tensor& start, const at::Tensor& length,
                                                  const at::Tensor& index) {
    check_three_nn_local(points, centers, start, length, index);
    const CurrentStream stream(points);
    const at::Tensor positions = points.contiguous(), middles = centers.contiguous();
    const at::Tensor starts = start.contiguous(), lengths = length.contiguous(), entries = index.contiguous();
    const PointLists lists{starts.const_data_ptr<int64_t>(),
                           lengths.const_data_ptr<int64_t>(),
                           entries.const_data_ptr<int64_t>(),
                           starts.size(0),
                           entries.size(0),
                           positions.size(0)};
    at::Tensor distance = at::empty_like(middles);
    at::Tensor nearest = at::empty(middles.sizes(), entries.options());
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "three_nn_local", [&] {
        three_nn_local_cuda(positions.const_data_ptr<scalar_t>(), middles.const_data_ptr<scalar_t>(), lists,
                            middles.size(1), distance.mutable_data_ptr<scalar_t>(), nearest.mutable_data_ptr<int64_t>(),
                            stream);
    });
    return {distance, nearest};
}

}  // namespace

TORCH_LIBRARY_IMPL(cakdp, CAKDP_DEVICE, m) { m.impl("three_nn_local", three_nn_local); }

}  // namespace cakdp
